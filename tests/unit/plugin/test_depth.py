"""Depth of the inputs out of the points that were lifted from them."""

from dataclasses import replace

import torch
from factories import make_scene

from fvgen_nerfstudio.depth import collect_depth, nearest_depth, pixel_spacing
from fvgen_recon.pointcloud.depth_map import DepthMaps, lift_depth
from fvgen_recon.types import PointCloud


def _maps(scene, rng) -> DepthMaps:
    shape = (len(scene), scene.cameras.height, scene.cameras.width)
    return DepthMaps(
        depth=2 + 3 * torch.rand(shape, generator=rng),
        confidence=0.1 + 0.8 * torch.rand(shape, generator=rng),
    )


def test_lifted_depth_comes_back_pixel_by_pixel(rng):
    scene = make_scene(3)
    maps = _maps(scene, rng)
    cloud = lift_depth(scene, maps)
    order = torch.randperm(len(cloud), generator=rng)
    targets = collect_depth(cloud[order], scene.cameras)
    torch.testing.assert_close(targets.depth[:, 0], maps.depth, atol=1e-4, rtol=0)
    torch.testing.assert_close(targets.weight[:, 0], maps.confidence)


def test_the_nearest_surface_is_that_of_trusted_points_of_one_view(rng):
    scene = make_scene(3)
    maps = _maps(scene, rng)
    depth, confidence = maps.depth.clone(), torch.full_like(maps.confidence, 0.9)
    depth[1] = 1.5 + 0.1 * torch.rand(depth[1].shape, generator=rng)  # This view sees it nearest.
    confidence[2], depth[2] = 0.4, 0.2  # Nearer still, but not trusted.
    depth[0, 0, :2] = 0.1  # Wrong points are few.
    cloud = lift_depth(scene, DepthMaps(depth=depth, confidence=confidence))
    assert 1.5 <= nearest_depth(cloud, scene.cameras) < 1.51
    doubted = replace(cloud, confidence=torch.full_like(cloud.confidence, 0.4))
    assert nearest_depth(doubted, scene.cameras) == 0


def test_pixels_without_points_and_points_without_views_have_no_weight(rng):
    scene = make_scene(2)
    cloud = lift_depth(scene, _maps(scene, rng))
    half = cloud[cloud.view == 0]
    targets = collect_depth(half, scene.cameras)
    assert (targets.weight[0] > 0).all()
    assert (targets.weight[1] == 0).all()
    assert (targets.depth[1] == 1).all()
    nowhere = PointCloud(xyz=half.xyz, rgb=half.rgb, confidence=half.confidence, view=half.view - 1)
    assert (collect_depth(nowhere, scene.cameras).weight == 0).all()
    assert (pixel_spacing(nowhere, scene.cameras) == 0).all()


def test_pixel_spacing_is_depth_over_focal_length(rng):
    scene = make_scene(3)
    maps = _maps(scene, rng)
    spacing = pixel_spacing(lift_depth(scene, maps), scene.cameras)
    expected = maps.depth / scene.cameras.K[:, :1, :1]
    torch.testing.assert_close(spacing, expected.reshape(-1), atol=1e-5, rtol=1e-4)
