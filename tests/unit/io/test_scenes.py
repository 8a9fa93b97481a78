from pathlib import Path

import numpy as np
import pytest
import torch
from room_folder import write_room
from scene_folder import write_colmap, write_scene

from fvgen_recon.errors import InputError
from fvgen_recon.geometry.projection import project_points
from fvgen_recon.io.scenes import (
    LOADERS,
    ViewSelection,
    load_capture,
    load_scene,
    posed_scenes,
    select_views,
)


@pytest.mark.parametrize(
    ("name", "error_px"),
    [("fox", 0.641), ("llff_fern", 0.746), ("fountain_p11", 0.244), ("m360_kitchen", 0.418),
     ("7scenes_redkitchen", 0.749), ("south_building", 0.315)],
)  # fmt: skip
@pytest.mark.scenes
def test_real_tracks_project_to_where_they_were_seen(scenes, name, error_px):
    """The mean error over all observations is what structure from motion reported."""
    capture = load_capture(scenes / name)
    assert capture.points is not None
    assert capture.tracks is not None
    errors = []
    for frame, camera in enumerate(capture.cameras):
        seen = capture.tracks.frame == frame
        uv, depth = project_points(capture.points.xyz[capture.tracks.point[seen]], camera)
        assert bool((depth > 0).all())
        errors.append((uv - capture.tracks.uv[seen]).norm(dim=-1))
    assert float(torch.cat(errors).mean()) == pytest.approx(error_px, abs=0.004)


@pytest.mark.scenes
def test_a_real_scene_at_a_small_size(scenes):
    capture = load_capture(scenes / "llff_fern")
    split = select_views(capture, ViewSelection(count=3, evenly=True))
    scene = load_scene(capture, split.inputs, height=64, width=96)
    assert scene.images.shape == (3, 3, 64, 96)
    assert scene.points is not None
    assert len(scene.points) == 1259


def test_formats_are_recognised(tmp_path):
    write_scene(tmp_path / "a")
    write_colmap(tmp_path / "b")
    write_scene(tmp_path / "c")
    (tmp_path / "c" / "train_test_split_3.json").write_text("{}")
    write_colmap(tmp_path / "d")
    write_scene(tmp_path / "d")
    found = [load_capture(tmp_path / name).format for name in "abcd"]
    assert found == ["nerfstudio", "colmap", "seva", "nerfstudio"]
    assert load_capture(tmp_path / "d", format="colmap").format == "colmap"
    assert LOADERS["photos"].detect(tmp_path / "a")


def test_a_missing_folder(tmp_path):
    with pytest.raises(InputError, match=r"gone was expected and is not there"):
        load_capture(tmp_path / "gone")


def test_not_a_scene(tmp_path):
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(InputError, match="is not a scene"):
        load_capture(tmp_path)
    with pytest.raises(InputError, match="is not a scene"):
        load_capture(tmp_path / "notes.txt")


def test_an_unknown_format(tmp_path):
    with pytest.raises(InputError, match=r"no scene format `obj`: choose one of seva, nerfstudio"):
        load_capture(tmp_path, format="obj")


def test_a_format_that_is_not_there(tmp_path):
    write_scene(tmp_path)
    with pytest.raises(InputError, match="holds no COLMAP model"):
        load_capture(tmp_path, format="colmap")
    with pytest.raises(InputError, match=r"transforms\.json was expected"):
        load_capture(tmp_path / "images", format="nerfstudio")


def test_no_photo_on_disk(tmp_path):
    write_scene(tmp_path)
    for path in (tmp_path / "images").iterdir():
        path.unlink()
    with pytest.raises(InputError, match=r"No images were found for the 4 frames.*images/000\.png"):
        load_capture(tmp_path)


def test_a_truncated_photo(tmp_path):
    path = write_scene(tmp_path) / "images" / "001.png"
    path.write_bytes(path.read_bytes()[:200])
    capture = load_capture(tmp_path)
    assert np.isfinite(load_scene(capture, (0, 2)).images.numpy()).all()
    with pytest.raises(InputError, match=r"001\.png cannot be read"):
        load_scene(capture, (0, 1))


def test_scenes_of_every_format_with_poses_are_found(tmp_path: Path) -> None:
    write_room(tmp_path / "room", seed=1, num_photos=2, height=32, width=32)
    model = tmp_path / "castle" / "sparse" / "0"
    model.mkdir(parents=True)
    for name in ("cameras.bin", "images.bin", "points3D.bin"):
        (model / name).touch()
    (tmp_path / "nothing").mkdir()
    assert [folder.name for folder in posed_scenes(tmp_path)] == ["castle", "room"]
    assert posed_scenes(tmp_path / "castle") == (tmp_path / "castle",)
    for name, sentence in (("nothing", "No scene with poses"), ("absent", "absent is not there")):
        with pytest.raises(InputError, match=sentence):
            posed_scenes(tmp_path / name)
