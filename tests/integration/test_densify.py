"""`scripts/densify.py`: a scene of photos and generated frames that other trainers read."""

import json
import logging
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from bad_scene import BAD_SCENES
from room_folder import write_room

from fvgen_recon.densify.bank import Bank
from fvgen_recon.densify.densifier import DensifyConfig
from fvgen_recon.densify.generators import GeneratorConfig
from fvgen_recon.io.image import read_image
from fvgen_recon.io.ply import read_points
from fvgen_recon.io.scenes import ViewSelection, load_capture, load_scene, select_views
from fvgen_recon.pointcloud import ESTIMATORS
from fvgen_recon.pointcloud.plane_sweep import PlaneSweep
from fvgen_recon.types import PointCloud, Scene
from scripts.densify import Options, main

NUM_VIEWS, NUM_FRAMES = 3, 5


def _options(data: Path, output: Path, generator: str = "render") -> Options:
    config = DensifyConfig(
        generator=GeneratorConfig(name=generator, num_frames=NUM_FRAMES), long_side=96
    )
    return Options(data=data, output=output, views=NUM_VIEWS, densify=config, device="cpu")


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A room whose held-out photos cannot be read."""
    folder = write_room(tmp_path_factory.mktemp("room"), num_photos=7, height=64, width=96)
    split = select_views(load_capture(folder), ViewSelection(count=NUM_VIEWS))
    assert len(split.held_out) == 4
    for path in [load_capture(folder).paths[i] for i in split.held_out]:
        path.write_bytes(b"held out")
    return folder


@pytest.fixture(scope="module")
def output(room: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dense") / "out"
    assert main(_options(room, folder)) == 0
    return folder


def test_progress_counts_rounds_and_clips_from_one(
    room: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "fvgen_recon.densify")
    assert main(_options(room, tmp_path / "out")) == 0
    lines = [text for text in caplog.messages if "clip" in text]
    assert lines == ["round 1: clip 1 of 2", "round 1: clip 2 of 2"]


@pytest.mark.parametrize("share", [0.01, 1.0])
def test_photos_that_the_others_hardly_show_are_named(
    room: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    share: float,
) -> None:
    class LessSure(PlaneSweep):
        def estimate(self, scene: Scene) -> PointCloud:
            cloud = super().estimate(scene)
            kept = torch.rand(len(cloud), generator=torch.Generator().manual_seed(0)) < share
            confidence = cloud.confidence * (kept | (cloud.view != 1))
            return replace(cloud, confidence=confidence)

    monkeypatch.setitem(ESTIMATORS, "plane-sweep", LessSure)
    assert main(_options(room, tmp_path / "out")) == 0
    source = load_capture(room)
    name = source.names[select_views(source, ViewSelection(count=NUM_VIEWS)).inputs[1]]
    hints = [text for text in caplog.messages if "in the other input photos" in text]
    assert len(hints) == (share < 0.2)
    assert all(hint.startswith(f"Little of {name} (") for hint in hints)


def test_photos_and_frames_come_back_as_one_scene(room: Path, output: Path) -> None:
    capture = load_capture(output)
    num_frames = (NUM_VIEWS - 1) * (NUM_FRAMES - 2)
    assert len(capture) == NUM_VIEWS + num_frames == NUM_VIEWS + len(Bank(output / "bank"))
    source = load_capture(room)
    inputs = select_views(source, ViewSelection(count=NUM_VIEWS)).inputs
    photos = [i for i, name in enumerate(capture.names) if name.startswith("photos/")]
    for photo, view in zip(photos, inputs, strict=True):
        torch.testing.assert_close(
            capture.cameras[photo].c2w, source.cameras[view].c2w, atol=1e-5, rtol=0
        )
        torch.testing.assert_close(
            read_image(capture.paths[photo]), read_image(source.paths[view]), atol=0.02, rtol=0
        )
    scene = load_scene(capture, tuple(range(len(capture))))
    assert scene.images.shape == (NUM_VIEWS + num_frames, 3, 64, 96)
    assert len(list(output.glob("clip_*.mp4"))) == NUM_VIEWS - 1


def test_points_lie_in_the_world_of_the_photos(room: Path, output: Path) -> None:
    cloud = read_points(output / "points.ply")
    assert len(cloud) > 500
    assert float(cloud.confidence.min()) >= 0.5
    inside = (cloud.xyz.abs() < 4.3).all(dim=-1)  # The room's walls stand at 4.
    assert float(inside.float().mean()) > 0.95


def test_what_nobody_saw_is_masked_out(output: Path) -> None:
    frames = json.loads((output / "transforms.json").read_text())["frames"]
    shares = {}
    for frame in frames:
        mask = read_image(output / frame["mask_path"])
        image = read_image(output / frame["file_path"])
        assert mask.shape == image.shape
        assert set(mask.unique().tolist()) <= {0.0, 1.0}
        shares[frame["file_path"]] = float(mask.mean())
        unknown = mask[0] == 0
        assert float(image[:, unknown].abs().max() if unknown.any() else 0) < 0.1
    assert all(share == 1 for name, share in shares.items() if name.startswith("photos/"))
    generated = [share for name, share in shares.items() if name.startswith("bank/")]
    assert all(0.3 < share < 1 for share in generated)


def test_a_second_run_generates_nothing_again(room: Path, output: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in (output / "bank").glob("*.png")}
    assert main(_options(room, output)) == 0
    assert {path: path.stat().st_mtime_ns for path in (output / "bank").glob("*.png")} == before


def test_another_generator_replaces_the_frames(room: Path, output: Path, tmp_path: Path) -> None:
    for generator in ("render", "fill"):
        assert main(_options(room, tmp_path / "out", generator)) == 0
    bank = Bank(tmp_path / "out" / "bank")
    assert {entry.origin.generator for entry in bank.entries} == {"fill"}
    assert len(load_capture(tmp_path / "out")) == len(load_capture(output))


def test_videos_of_an_earlier_run_do_not_stay(room: Path, tmp_path: Path) -> None:
    options = _options(room, tmp_path / "out")
    for views in (NUM_VIEWS, 2):
        assert main(replace(options, views=views)) == 0
    assert [path.name for path in (tmp_path / "out").glob("clip_*.mp4")] == ["clip_000.mp4"]


def test_a_scene_is_never_written_over(
    room: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (room / "transforms.json").read_text()
    other = tmp_path / "other"
    other.mkdir()
    (other / "transforms.json").write_text("{}")
    for output in (room, room / ".." / room.name, other):
        assert main(_options(room, output)) == 2
        assert "holds a scene already" in capsys.readouterr().err
    assert (room / "transforms.json").read_text() == before
    assert [path.name for path in other.iterdir()] == ["transforms.json"]


def test_settings_that_cannot_be_end_with_one_sentence_and_leave_nothing(
    room: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = _options(room, tmp_path / "out")
    one_frame = GeneratorConfig(name="render", num_frames=1)
    for changed, sentence in (
        (replace(options, device="nonsense"), "The device nonsense cannot be used here"),
        (replace(options, densify=replace(options.densify, num_samples=0)), "one sample"),
        (replace(options, densify=replace(options.densify, long_side=0)), "one pixel"),
        (replace(options, densify=replace(options.densify, generator=one_frame)), "two frames"),
    ):
        assert main(changed) == 2
        assert sentence in capsys.readouterr().err
        assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("place", ["file", "file/out", "folder"])
def test_an_output_that_is_a_file_is_told_before_the_work(
    room: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], place: str
) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "bank").write_text("mine")
    assert main(_options(room, tmp_path / place)) == 2
    assert "is a file; name another" in capsys.readouterr().err


def test_a_users_own_path_is_followed(room: Path, tmp_path: Path) -> None:
    poses = torch.tensor(
        [
            frame["transform_matrix"]
            for frame in json.loads((room / "transforms.json").read_text())["frames"]
        ]
    )
    poses[:, 1, 3] += 0.2  # Every camera a little higher than the photos.
    rows = [{"camera_to_world": pose.flatten().tolist(), "fov": 45.0} for pose in poses[1:6]]
    path = tmp_path / "path.json"
    path.write_text(json.dumps({"camera_type": "perspective", "camera_path": rows}))
    options = _options(room, tmp_path / "out")
    densify = replace(options.densify, planner="file", camera_path=path)
    assert main(replace(options, densify=densify)) == 0
    capture = load_capture(tmp_path / "out")
    heights = {
        kind: [
            float(camera.position[1])
            for name, camera in zip(capture.names, capture.cameras, strict=True)
            if name.startswith(kind)
        ]
        for kind in ("photos", "bank")
    }
    assert len(heights["bank"]) == NUM_FRAMES - 2
    assert min(heights["bank"]) > max(heights["photos"]) + 0.1


@pytest.mark.parametrize("name", BAD_SCENES)
def test_bad_scenes_end_with_one_sentence_and_leave_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    bad = BAD_SCENES[name]
    bad.write(tmp_path / "scene")
    options = _options(tmp_path / "scene", tmp_path / "out")
    assert main(options) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert bad.sentence in line
    assert not (tmp_path / "out").exists()
