"""Blender's folders, one file for each split."""

import json
import math
from pathlib import Path

import pytest
import torch
from scene_folder import HEIGHT, WIDTH, shifted, write_photo

from fvgen_recon.errors import InputError
from fvgen_recon.io.scenes import ViewSelection, load_capture, load_scene, select_views


def write_blender(folder: Path, **splits: int) -> Path:
    """Cameras in a row; the splits with their numbers of photos."""
    for split, count in splits.items():
        frames = []
        for index in range(count):
            write_photo(folder / split / f"r_{index}.png", seed=index)
            pose = shifted(float(index))
            frames.append({"file_path": f"./{split}/r_{index}", "transform_matrix": pose})
        meta = {"camera_angle_x": math.pi / 2, "frames": frames}
        (folder / f"transforms_{split}.json").write_text(json.dumps(meta))
    return folder


def test_other_splits_are_held_out(tmp_path):
    capture = load_capture(write_blender(tmp_path, train=3, val=1, test=2))
    assert capture.format == "blender"
    assert capture.names[3] == "./val/r_0"
    split = select_views(capture, ViewSelection())
    assert (split.inputs, split.held_out) == ((0, 1, 2), (3, 4, 5))
    scene = load_scene(capture, split.inputs)
    assert scene.images.shape == (3, 3, HEIGHT, WIDTH)
    torch.testing.assert_close(scene.cameras.K[0, 0], torch.tensor([WIDTH / 2, 0, WIDTH / 2]))
    with pytest.raises(InputError, match="4 input views were asked for"):
        select_views(capture, ViewSelection(count=4))


def test_a_photo_of_both_splits_is_held_out(tmp_path):
    write_blender(tmp_path, train=4, test=1)
    path = tmp_path / "transforms_test.json"
    path.write_text(path.read_text().replace("./test/r_0", "./train/r_1"))
    split = select_views(load_capture(tmp_path), ViewSelection())
    assert (split.inputs, split.held_out) == ((0, 2, 3), (1,))


def test_a_training_split_alone_is_a_scene(tmp_path):
    capture = load_capture(write_blender(tmp_path, train=2))
    assert select_views(capture, ViewSelection()).inputs == (0, 1)
