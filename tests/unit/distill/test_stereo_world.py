"""Procedural worlds for the stereo network: their depth fits their photos and cameras."""

import pytest
import torch

from fvgen_recon.distill.stereo.world import load_world, photograph_world, save_world
from fvgen_recon.pointcloud.consistency import compare_depth


@pytest.fixture(scope="module")
def world():
    return photograph_world(3, None, long_side=64, num_views=9, device=torch.device("cpu"))


def test_the_depth_of_its_views_agrees(world):
    assert world.photos.shape[:2] == (9, 3)
    assert max(world.photos.shape[-2:]) == 64
    known = world.inverse_depth > 0
    assert known.float().mean() > 0.5
    nearest = world.inverse_depth.clamp_min(1e-3)
    found = compare_depth(nearest, world.cameras)
    close = found.seen & (found.relative.abs() < 0.05)
    assert close.any(dim=1)[known].float().mean() > 0.6


def test_it_comes_back_as_a_scene_with_wide_gaps(world, tmp_path):
    path = tmp_path / "procedural-3.safetensors"
    save_world(path, world)
    scene = load_world(path, torch.device("cpu"))
    assert scene is not None
    assert scene.name == "procedural-3"
    assert torch.equal(scene.photos, world.photos)
    assert torch.equal(scene.truth, world.inverse_depth)
    known = scene.angle[scene.angle < 1e3]
    assert known.max() > 15
    assert torch.equal(scene.angle, scene.angle.T)


def test_another_seed_is_another_world_and_some_photos_stand_upright(world):
    other = photograph_world(5, None, long_side=64, num_views=9, device=torch.device("cpu"))
    assert other.photos.shape[-2:] == (64, 48)
    assert (other.cameras.height, other.cameras.width) == (64, 48)
    assert (other.inverse_depth > 0).float().mean() > 0.3
    assert other.photos.shape != world.photos.shape
