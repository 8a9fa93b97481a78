"""Views and batches: what is opened, in which frame, and what is drawn when."""

import json
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from factories import make_cameras, make_cloud, make_scene
from nerfstudio.cameras.camera_optimizers import CameraOptimizerConfig
from nerfstudio.data.datamanagers.full_images_datamanager import FullImageDatamanagerConfig

from fvgen_nerfstudio import source
from fvgen_nerfstudio.datamanager import FvgenDatamanager, FvgenDatamanagerConfig
from fvgen_nerfstudio.dataparser import FvgenDataParserConfig, distortion
from fvgen_nerfstudio.source import fit_similarity
from fvgen_recon.densify.bank import Bank, Origin
from fvgen_recon.errors import InputError
from fvgen_recon.geometry.conventions import opengl_to_opencv
from fvgen_recon.geometry.projection import project_points
from fvgen_recon.io.image import write_image
from fvgen_recon.io.scenes import Lens, load_scene, write_transforms
from fvgen_recon.types import Clip, Guidance

NUM_VIEWS = 5


def _write_scene(folder: Path, num_views: int) -> Path:
    scene = make_scene(num_views)
    names = tuple(f"images/{name}" for name in scene.names)
    for name, image in zip(names, scene.images, strict=True):
        write_image(folder / name, image)
    write_transforms(folder, scene.cameras, names)
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return _write_scene(tmp_path, NUM_VIEWS)


def _datamanager(folder: Path, test_mode="val", **options) -> FvgenDatamanager:
    parser = FvgenDataParserConfig(data=folder, estimator="random", num_points=50, **options)
    return FvgenDatamanagerConfig(dataparser=parser).setup(device="cpu", test_mode=test_mode)


def _fill_bank(folder: Path, rounds: int = 1) -> Bank:
    bank = Bank(folder)
    for index in range(rounds):
        guidance = Guidance(
            frames=torch.rand(3, 3, 16, 24),
            mask=torch.ones(3, 1, 16, 24, dtype=torch.bool),
            depth=torch.ones(3, 1, 16, 24),
            layers=torch.zeros(0, 3, 3, 16, 24),
            layer_masks=torch.zeros(0, 3, 1, 16, 24, dtype=torch.bool),
            anchors=(),
            reference=torch.zeros(3, 16, 24),
        )
        clip = Clip(
            frames=guidance.frames,
            cameras=make_cameras(3, 16, 24),
            guidance=guidance,
            confidence=torch.full((3, 1, 16, 24), 0.5),
        )
        origin = Origin(
            generator="render",
            weights_hash="",
            num_steps=0,
            seed=0,
            round=index,
            trajectory=0,
            guidance_hash=str(index),
        )
        bank.add_clip(clip, origin)
        bank.finish_round(index, (origin,))
    return bank


def test_it_is_the_config_that_ns_render_asks_for():
    assert issubclass(FvgenDatamanagerConfig, FullImageDatamanagerConfig)


def test_photos_are_opened_once_though_many_threads_ask(folder, monkeypatch):
    """From Python 3.12 on a cached property has no lock."""
    data = _datamanager(folder)
    place, opened = data.dataparser.source, []

    def load(*args, **sizes):
        opened.append(args)
        time.sleep(0.1)
        return load_scene(*args, **sizes)

    monkeypatch.setattr(source, "load_scene", load)
    place._scene = None
    with ThreadPoolExecutor(4) as threads:
        images = list(threads.map(place.image, place.split.inputs))
    assert len(images) == NUM_VIEWS
    assert len(opened) == 1


def test_held_out_files_are_opened_by_evaluation_alone(folder):
    parser = FvgenDataParserConfig(data=folder, estimator="random", views=3, num_points=50)
    data = FvgenDatamanagerConfig(dataparser=parser).setup(device="cpu", test_mode="val")
    held_out = data.dataparser.source.split.held_out
    assert len(held_out) == 2
    for view in held_out:
        data.dataparser.source.capture.paths[view].write_bytes(b"garbage")
    data = FvgenDatamanagerConfig(dataparser=parser).setup(device="cpu", test_mode="val")
    for step in range(6):
        data.next_train(step)
    assert len(data.train_dataset) == 3
    with pytest.raises(InputError, match="cannot be read"):
        data.next_eval_image(0)


def test_photos_and_cameras_fit_together(folder):
    data = _datamanager(folder)
    camera, batch = data.next_train(0)
    view = camera.metadata["cam_idx"]
    photo = make_scene(NUM_VIEWS).images[view].permute(1, 2, 0)
    torch.testing.assert_close(batch["image"] / 255, photo, atol=0.003, rtol=0)
    assert batch["is_generated"] is False
    moved = data.dataparser.source.similarity.cameras(make_cameras(NUM_VIEWS))
    expected = opengl_to_opencv(moved.c2w)[view, :3]
    torch.testing.assert_close(camera.camera_to_worlds[0], expected, atol=1e-5, rtol=0)
    assert camera.fx.item() == pytest.approx(1.2 * 48)
    assert (int(camera.height), int(camera.width)) == (32, 48)


def test_photos_kept_off_the_gpu_are_served_without_one_too(folder):
    parser = FvgenDataParserConfig(data=folder, estimator="random", num_points=50)
    config = FvgenDatamanagerConfig(dataparser=parser, cache_images="cpu")
    camera, batch = config.setup(device="cpu", test_mode="val").next_train(0)
    assert batch["image"].shape == (32, 48, 3)
    assert int(camera.width) == 48


def test_another_way_to_size_photos_is_refused(folder):
    parser = FvgenDataParserConfig(data=folder, estimator="random", num_points=50)
    with pytest.raises(InputError, match="sized by"):
        FvgenDatamanagerConfig(dataparser=parser, camera_res_scale_factor=0.5).setup(device="cpu")


def test_points_may_be_sought_in_larger_photos_than_are_trained_on(folder):
    source = _datamanager(folder, views=3, long_side=16).dataparser.source
    trained, larger, smaller = source.scene, source.small_scene(1000), source.small_scene(8)
    assert max(trained.images.shape[-2:]) == 16
    whole = make_scene(NUM_VIEWS).images.shape[-2:]
    assert larger.images.shape[-2:] == whole
    assert max(smaller.images.shape[-2:]) == 8
    torch.testing.assert_close(larger.cameras.c2w, trained.cameras.c2w)
    ratio = whole[1] / trained.images.shape[-1]
    torch.testing.assert_close(
        larger.cameras.K[:, 0, 0], trained.cameras.K[:, 0, 0] * ratio, rtol=0.05, atol=0
    )


def test_held_out_cameras_are_known_before_their_photos_are_opened(folder):
    data = _datamanager(folder, views=3, long_side=24)
    source = data.dataparser.source
    everything = tuple(range(NUM_VIEWS))
    cameras = source.cameras(everything)
    inputs = torch.tensor(source.split.inputs)
    torch.testing.assert_close(cameras.K[inputs], source.scene.cameras.K)
    torch.testing.assert_close(cameras.c2w[inputs], source.scene.cameras.c2w)
    assert (cameras.height, cameras.width) == source.size == (16, 24)
    assert data.eval_dataset.get_numpy_image(0).shape == (16, 24, 3)


def test_the_splats_frame_keeps_every_projection():
    cameras = make_cameras(4)
    similarity = fit_similarity(cameras)
    moved = similarity.cameras(cameras)
    points = torch.randn(20, 3) * 0.3
    motion = similarity.motion
    moved_points = similarity.scale * (points @ motion[:, :3].T + motion[:, 3])
    uv, depth = project_points(points, cameras)
    moved_uv, moved_depth = project_points(moved_points, moved)
    torch.testing.assert_close(moved_uv, uv, atol=1e-3, rtol=1e-4)
    torch.testing.assert_close(moved_depth, depth * similarity.scale, atol=1e-5, rtol=1e-4)
    assert moved.position.abs().max() == pytest.approx(1.0, abs=1e-5)
    torch.testing.assert_close(moved.position.mean(0), torch.zeros(3), atol=1e-5, rtol=0)


def test_the_splats_frame_has_an_up_where_those_of_the_photos_cancel():
    upright = make_cameras(2)
    c2w = upright.c2w.clone()
    c2w[1] = c2w[0] @ torch.diag(torch.tensor([-1.0, -1, 1, 1]))  # Upside down, and a step aside.
    c2w[1, :3, 3] += 0.5 * c2w[0, :3, 0]
    cameras = replace(upright, c2w=c2w)
    fitted = fit_similarity(cameras).cameras(cameras)
    torch.testing.assert_close(-fitted.c2w[0, :3, 1], torch.tensor([0.0, 0, 1]), atol=1e-5, rtol=0)
    assert fitted.position.abs().max() == pytest.approx(1.0, abs=1e-5)


@pytest.mark.parametrize(("many", "is_told"), [(NUM_VIEWS - 1, True), (NUM_VIEWS, False)])
def test_many_photos_are_named_before_a_long_wait(folder, monkeypatch, capsys, many, is_told):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(source, "_MANY", many)
    _datamanager(folder).dataparser.source.estimate_points("random", 32)
    assert ("--views 12" in capsys.readouterr().out) == is_told


def test_a_run_lists_its_cameras_for_ns_export(folder):
    exporter = pytest.importorskip("nerfstudio.exporter.exporter_utils")
    dataset = _datamanager(folder, views=3).train_dataset
    optimizer = CameraOptimizerConfig(mode="off").setup(num_cameras=3, device="cpu")
    frames = exporter.collect_camera_poses_for_dataset(dataset, optimizer)
    expected = dataset.cameras.camera_to_worlds
    torch.testing.assert_close(torch.tensor([frame["transform"] for frame in frames]), expected)


def test_with_many_photos_generated_views_are_fewer(tmp_path):
    data = _datamanager(_write_scene(tmp_path, 9))
    assert data.schedule == FvgenDatamanagerConfig().schedule().for_inputs(9)
    few = _datamanager(tmp_path, views=3)
    assert few.schedule == FvgenDatamanagerConfig().schedule()


def test_generated_views_come_by_schedule_weighed_and_without_an_index(folder, tmp_path):
    data = _datamanager(folder)
    data.num_steps = 100
    data.use_bank(_fill_bank(tmp_path / "bank"), "latest")
    draws = [data.next_train(step) for step in range(100)]
    generated = [i for i, (_, batch) in enumerate(draws) if batch["is_generated"]]
    assert 15 < len(generated) < 50
    assert max(generated) < 100 * data.schedule.end
    camera, batch = draws[generated[0]]
    assert camera.metadata is None or "cam_idx" not in camera.metadata
    assert tuple(batch["image"].shape) == (16, 24, 3)
    torch.testing.assert_close(batch["weight"], torch.full((16, 24, 1), 0.5), atol=0.003, rtol=0)
    assert batch["factor"] == data.schedule.weight
    assert len(data.train_dataset) == NUM_VIEWS
    again = [data.next_train(step)[1]["is_generated"] for step in range(100)]
    assert again == [batch["is_generated"] for _, batch in draws]


def test_the_latest_round_replaces_the_ones_before_or_joins_them(folder, tmp_path):
    data = _datamanager(folder)
    bank = _fill_bank(tmp_path / "bank", rounds=2)
    data.use_bank(bank, "latest")
    assert {e.origin.round for e in data._entries} == {1}
    data.use_bank(bank, "all")
    assert {e.origin.round for e in data._entries} == {0, 1}


def test_without_held_out_views_evaluation_is_on_the_inputs(folder):
    parser = _datamanager(folder).dataparser
    assert parser.views_of("train") == parser.views_of("test") == tuple(range(NUM_VIEWS))


def test_a_split_file_and_names_choose_views(folder):
    split = {"train_ids": [0, 4], "test_ids": [2]}
    (folder / "train_test_split_2.json").write_text(json.dumps(split))
    parser = _datamanager(folder, split_file=Path("train_test_split_2.json")).dataparser
    assert (parser.views_of("train"), parser.views_of("test")) == ((0, 4), (2,))
    parser = _datamanager(folder, view_names=("001.png", "003.png")).dataparser
    assert parser.views_of("train") == (1, 3)


def test_evaluation_needs_no_points(folder):
    assert "points3D_xyz" in _datamanager(folder).train_dataparser_outputs.metadata
    outputs = _datamanager(folder, test_mode="test").train_dataparser_outputs
    assert "points3D_xyz" not in outputs.metadata


def test_a_confidence_that_no_point_has_is_named(folder):
    parser = _datamanager(folder, test_mode="test").dataparser
    parser.config.estimator, parser.config.min_confidence = "plane-sweep", 1.5
    with pytest.raises(InputError, match=r"Only 0 points of 20 .* confidence of 1\.5 or more"):
        parser._draw(make_cloud(20))


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"views": 1}, "two input views"),
        ({"views": 9}, "9 input views were asked for"),
        ({"view_names": ("nobody.png", "000.png")}, "nobody.png"),
    ],
)
def test_wrong_choices_are_named(folder, options, sentence):
    with pytest.raises(InputError, match=sentence):
        _datamanager(folder, **options)


@pytest.mark.parametrize("long_side", [1, 2, 15])
def test_photos_too_small_for_ssim_are_named(folder, long_side):
    with pytest.raises(InputError, match=r"smaller than SSIM's window of 11x11: give larger ones"):
        _datamanager(folder, long_side=long_side)
    assert _datamanager(folder, long_side=16).dataparser.source.size == (11, 16)


def test_unknown_estimators_and_missing_scenes_are_named(folder):
    parser = FvgenDataParserConfig(data=folder, estimator="magic")
    with pytest.raises(InputError, match="no point-cloud estimator `magic`"):
        FvgenDatamanagerConfig(dataparser=parser).setup(device="cpu", test_mode="val")
    parser = FvgenDataParserConfig(data=folder / "absent")
    with pytest.raises(InputError, match="absent"):
        FvgenDatamanagerConfig(dataparser=parser).setup(device="cpu", test_mode="val")


def test_lenses_become_nerfstudios_numbers():
    lens = Lens(coefficients=(0.1, 0.2, 0.3, 0.4, 0.5, 0.0, 0.0, 0.0))
    assert distortion(lens) == (0.1, 0.2, 0.5, 0.0, 0.3, 0.4)
    fisheye = Lens(is_fisheye=True, coefficients=(0.1, 0.2, 0.3, 0.4))
    assert distortion(fisheye) == (0.1, 0.2, 0.3, 0.4, 0.0, 0.0)
    with pytest.raises(InputError, match="rational"):
        distortion(Lens(coefficients=(0.0,) * 5 + (0.1, 0.0, 0.0)))
