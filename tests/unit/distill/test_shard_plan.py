import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from scene_folder import write_colmap, write_photo, write_scene

from fvgen_recon.distill.shard_plan import (
    ShardSettings,
    drop_excluded,
    find_scenes,
    make_plan,
    open_capture,
    read_plan,
    scene_windows,
    write_plan,
)
from fvgen_recon.errors import InputError
from fvgen_recon.io.scenes import load_frame

TINY = ShardSettings(num_frames=3, height=24, width=32, clips_per_shard=2)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    root = tmp_path / "data"
    write_scene(root / "1K" / "aaa", num_views=7)
    write_scene(root / "2K" / "bbb" / "nerfstudio", num_views=4)
    write_colmap(root / "2K" / "bbb" / "colmap")
    write_colmap(root / "ccc")
    return root


def test_scenes_are_found_at_any_depth_and_once(data: Path) -> None:
    assert find_scenes(data) == ["1K/aaa", "2K/bbb/nerfstudio", "ccc"]


def test_exclusion_by_path_or_by_folder_name(data: Path) -> None:
    scenes = find_scenes(data)
    assert drop_excluded(scenes, ["bbb", "", "1K/aaa\n"]) == ["ccc"]
    assert drop_excluded(scenes, ["aa"]) == scenes
    assert drop_excluded(scenes, ["2K/bbb", "./1K/aaa/"]) == ["ccc"]
    assert drop_excluded(scenes, ["K/aaa", "bbb/nerfstudio", "1K/a"]) == scenes
    plan, _ = make_plan(data, TINY, excluded=["aaa"])
    assert {w.scene for shard in plan.shards for w in shard} == {"2K/bbb/nerfstudio"}


def test_windows_are_consecutive_with_each_stride(data: Path) -> None:
    capture = open_capture(data, "1K/aaa", TINY)
    frames = [w.frames for w in scene_windows(capture, "x", replace(TINY, strides=(1, 3)))]
    assert frames == [(0, 1, 2), (3, 4, 5), (0, 3, 6)]
    hopping = scene_windows(capture, "x", replace(TINY, hop=2))
    assert [w.frames for w in hopping] == [(0, 1, 2), (2, 3, 4), (4, 5, 6)]


def test_frames_go_by_number_not_by_spelling_and_missing_photos_are_left_out(
    tmp_path: Path,
) -> None:
    folder = write_scene(tmp_path / "s", num_views=12)
    meta = json.loads((folder / "transforms.json").read_text())
    for i, frame in enumerate(meta["frames"]):
        name = f"images/frame_{i}.png"
        (folder / frame["file_path"]).rename(folder / name)
        frame["file_path"] = name
    (folder / "transforms.json").write_text(json.dumps(meta))
    (folder / "images/frame_1.png").unlink()
    capture = open_capture(tmp_path, "s", TINY)
    (first, *_) = scene_windows(capture, "s", replace(TINY, num_frames=4, hop=20))
    assert [Path(capture.names[i]).stem for i in first.frames] == [
        "frame_0",
        "frame_2",
        "frame_3",
        "frame_4",
    ]


def test_plan_is_the_same_each_time_and_comes_back_from_disk(data: Path, tmp_path: Path) -> None:
    plan, problems = make_plan(data, TINY)
    assert make_plan(data, TINY)[0] == plan
    assert len(problems) == 1
    assert problems[0].startswith("ccc: too few")
    write_plan(tmp_path, plan)
    assert read_plan(tmp_path) == plan
    assert read_plan(tmp_path).fingerprint == plan.fingerprint
    keys = [w.key for shard in plan.shards for w in shard]
    assert len(set(keys)) == len(keys) == 3
    assert not any("." in key or "/" in key for key in keys)


def test_limits_and_seed(data: Path) -> None:
    everything, _ = make_plan(data, replace(TINY, hop=1, clips_per_scene=None))
    assert everything.num_clips == 5 + 2
    few, _ = make_plan(data, replace(TINY, hop=1, clips_per_scene=2, max_clips=3))
    assert few.num_clips == 3
    plans = {make_plan(data, replace(TINY, hop=1, seed=s))[0].shards for s in range(5)}
    assert len(plans) > 1


def test_only_reduced_photos_are_there_as_dl3dv_comes(data: Path) -> None:
    """DL3DV's JSON names `images/` at full size; only `images_4` was downloaded."""
    folder = data / "1K" / "aaa"
    meta = json.loads((folder / "transforms.json").read_text())
    (folder / "images").rename(folder / "images_4")
    for key in ("w", "h", "fl_x", "fl_y", "cx", "cy"):
        meta[key] *= 4
    (folder / "transforms.json").write_text(json.dumps(meta))
    for settings in (TINY, replace(TINY, photos="images_4")):
        capture = open_capture(data, "1K/aaa", settings)
        image, camera = load_frame(capture, 3)
        assert image.shape == (3, 24, 32)
        torch.testing.assert_close(camera.K[0, 0], torch.tensor(20.0))
        assert len(scene_windows(capture, "x", settings)) == 2


def test_photos_of_the_named_folder_are_taken_although_others_are_there(data: Path) -> None:
    folder = data / "1K" / "aaa"
    for index in range(7):
        write_photo(folder / "images_2" / f"{index:03d}.png", height=12, width=16)
    capture = open_capture(data, "1K/aaa", replace(TINY, photos="images_2"))
    assert load_frame(capture, 0)[0].shape == (3, 12, 16)
    with pytest.raises(InputError, match="no photos in images_9"):
        open_capture(data, "1K/aaa", replace(TINY, photos="images_9"))


def test_mistakes_are_sentences(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is not there"):
        find_scenes(tmp_path / "nowhere")
    with pytest.raises(InputError, match="holds no posed scene"):
        find_scenes(tmp_path)
    with pytest.raises(InputError, match="no point-cloud estimator `foo`"):
        ShardSettings(estimator="foo")
    with pytest.raises(InputError, match="fewer views"):
        ShardSettings(num_frames=3, num_views=4)
    with pytest.raises(InputError, match="1 or more"):
        ShardSettings(strides=(0,))
    with pytest.raises(InputError, match="both the codec's kind"):
        ShardSettings(codec="compact")
    write_scene(tmp_path / "s", num_views=2)
    with pytest.raises(InputError, match="gives a clip of 16 photos"):
        make_plan(tmp_path, ShardSettings())


def test_views_are_spread_with_both_ends() -> None:
    assert ShardSettings(num_frames=16, num_views=2).views == (0, 15)
    assert ShardSettings(num_frames=16, num_views=4).views == (0, 5, 10, 15)
