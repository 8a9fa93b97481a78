"""A fold has what a method may see, and not a pixel more."""

import json

import numpy as np
import pytest
import torch
from room_folder import write_room

from fvgen_recon.errors import InputError
from fvgen_recon.evaluation.fold import fold_size, held_out_scene, read_fold, write_fold
from fvgen_recon.evaluation.protocol import Split
from fvgen_recon.io.scenes import load_capture, load_frame, load_scene
from fvgen_recon.pointcloud import ESTIMATORS

SPLIT = Split(inputs=(0, 3, 6), test=(2, 5), rule="by hand")


@pytest.fixture
def room(tmp_path):
    return write_room(tmp_path / "room", num_photos=8)


def write_tracks(folder):
    """Three points: seen by two inputs, by one input and a test view, by all."""
    xyz = np.array([[0.0, 0, 0], [0.1, 0, 0], [0.2, 0.1, 0]], np.float32)
    point, frame = zip((0, 0), (0, 3), (1, 3), (1, 2), *((2, i) for i in range(8)), strict=True)
    np.savez(
        folder / "tracks.npz",
        xyz=xyz,
        rgb=np.full((3, 3), 128, np.uint8),
        obs_point=np.array(point),
        obs_frame=np.array(frame),
        obs_uv=np.zeros((len(point), 2), np.float32),
    )


def test_held_out_photos_do_not_exist_and_their_poses_do(room, tmp_path):
    capture = load_capture(room)
    fold = write_fold(capture, SPLIT, tmp_path / "fold")
    assert sorted(p.stem for p in (fold.folder / "images").iterdir()) == ["00000", "00003", "00006"]
    cut = load_capture(fold.folder)
    ids = json.loads(fold.split.read_text())
    assert [cut.has_photo(i) for i in range(5)] == [True, False, True, False, True]
    assert ids == {"train_ids": [0, 2, 4], "test_ids": [1, 3]}
    for rank, view in zip(ids["test_ids"], SPLIT.test, strict=True):
        torch.testing.assert_close(cut.cameras[rank].c2w, capture.cameras[view].c2w)
        torch.testing.assert_close(cut.cameras[rank].K, capture.cameras[view].K)
        with pytest.raises(InputError, match="expected and is not there"):
            load_frame(cut, rank)


def test_no_held_out_photo_is_opened(room, tmp_path):
    capture = load_capture(room)
    for view in set(range(8)) - set(SPLIT.inputs):
        capture.paths[view].write_bytes(b"poison")
    fold = write_fold(capture, SPLIT, tmp_path / "fold")
    assert (fold.height, fold.width) == (32, 48)
    with pytest.raises(InputError, match="cannot be read"):
        held_out_scene(capture, fold)


def test_unchanged_photos_are_copied_byte_by_byte(room, tmp_path):
    capture = load_capture(room)
    fold = write_fold(capture, SPLIT, tmp_path / "fold")
    for view in SPLIT.inputs:
        copy = fold.folder / "images" / f"{view:05d}.png"
        assert copy.read_bytes() == capture.paths[view].read_bytes()


def test_smaller_and_bent_photos_become_those_of_the_loader(room, tmp_path):
    path = room / "transforms.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "k1": -0.05}))
    capture = load_capture(room)
    assert fold_size(capture, SPLIT, 24) == (16, 24)
    fold = write_fold(capture, SPLIT, tmp_path / "fold", long_side=24)
    ours = load_scene(load_capture(fold.folder), (0, 2, 4))
    wanted = load_scene(capture, SPLIT.inputs, height=16, width=24)
    torch.testing.assert_close(ours.images, wanted.images, atol=0.5 / 255 + 1e-6, rtol=0)
    torch.testing.assert_close(ours.cameras.K, wanted.cameras.K)
    tests = held_out_scene(capture, fold)
    cut = load_capture(fold.folder)
    torch.testing.assert_close(tests.cameras.K[0], cut.cameras[1].K, atol=1e-3, rtol=1e-4)


def test_points_are_those_that_two_inputs_see(room, tmp_path):
    write_tracks(room)
    fold = write_fold(load_capture(room), SPLIT, tmp_path / "fold")
    scene = load_scene(load_capture(fold.folder), (0, 2, 4))
    points = ESTIMATORS["dataset"]().estimate(scene)
    torch.testing.assert_close(points.xyz, torch.tensor([[0.0, 0, 0], [0.2, 0.1, 0]]))
    tracks = np.load(fold.folder / "tracks.npz")
    assert set(tracks["obs_frame"]) == {0, 2, 4}


def test_a_fold_can_be_read_again(room, tmp_path):
    fold = write_fold(load_capture(room), SPLIT, tmp_path / "fold")
    assert read_fold(tmp_path / "fold") == fold
    with pytest.raises(InputError, match="is not there"):
        read_fold(tmp_path / "other")
