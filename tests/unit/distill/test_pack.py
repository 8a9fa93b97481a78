import torch
from room_folder import write_room

from fvgen_recon.distill.pack import pack_folder, read_pack, warn_of_shared, write_pack
from fvgen_recon.io.scenes import load_capture
from fvgen_recon.render.procedural import random_scene, render_procedural


def test_a_scene_without_points_has_its_depths_matched(tmp_path):
    folder = write_room(tmp_path / "room", num_photos=7, height=72, width=96)
    assert load_capture(folder).points is None
    packed = pack_folder(folder)
    truth = render_procedural(random_scene(0), packed.cameras, supersample=1).depth
    # The middle of the span in inverse depth: a scale that says how wide a baseline is.
    ratio = packed.depth / truth.flatten(1).median(dim=1).values
    assert float(ratio.amin()) > 0.5
    assert float(ratio.amax()) < 2.0
    write_pack([packed], tmp_path / "one.pack")
    (again,) = read_pack(tmp_path / "one.pack")
    torch.testing.assert_close(again.depth, packed.depth)
    assert again.jpegs == packed.jpegs


def test_scenes_trained_on_and_measured_on_are_told(tmp_path, caplog):
    first, second = (
        pack_folder(write_room(tmp_path / name, num_photos=3, height=48, width=64))
        for name in ("first", "second")
    )
    warn_of_shared([first], [second])
    assert not caplog.records
    warn_of_shared([first, second], [second])
    assert [r.getMessage() for r in caplog.records] == ["trained on and measured on alike: second"]
