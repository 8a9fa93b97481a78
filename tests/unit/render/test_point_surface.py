from dataclasses import replace

import pytest
import torch
from factories import make_cameras, make_cloud

from fvgen_recon.render.point import projection_matrices, render_points
from fvgen_recon.render.point_reference import blend_surface_reference, find_fragments
from fvgen_recon.render.point_surface import (
    blend_frames_torch,
    blend_surface,
    nearest_depth,
    nearest_frames_torch,
)
from fvgen_recon.types import Cameras, PointCloud


def make_points(xyz):
    xyz = torch.tensor(xyz, dtype=torch.float32).reshape(-1, 3)
    zeros = torch.zeros(len(xyz))
    return PointCloud(
        xyz=xyz, rgb=torch.eye(3)[: len(xyz)], confidence=zeros + 1, view=zeros.long()
    )


def planes_of(render):
    return torch.cat([render.frames, render.alpha, render.depth, render.confidence], dim=1)


def make_unit_camera():
    """A camera in whose image a point (x, y, 1) lies at pixel coordinates (x, y)."""
    return Cameras(c2w=torch.eye(4)[None], K=torch.eye(3)[None], height=6, width=10)


def blend_scattered(cloud, cameras, radius, limit):
    return blend_frames_torch(
        cloud.xyz,
        torch.cat([cloud.rgb, cloud.confidence[:, None]], dim=1),
        projection_matrices(cameras),
        size=(cameras.height, cameras.width),
        radius=radius,
        depth_limit=limit[:, 0],
    )


@pytest.mark.parametrize("radius", [0.4, 1.44, 2.5])
def test_both_fast_paths_equal_the_slow_twin(radius):
    cameras, cloud = make_cameras(2, height=9, width=14), make_cloud(200)
    cloud = replace(cloud, confidence=torch.linspace(0, 1, 200))
    limit = 4 + 0.3 * torch.randn(2, 1, 9, 14, generator=torch.Generator().manual_seed(0))
    slow = blend_surface_reference(cloud, cameras, radius_px=radius, depth_limit=limit)
    fast = blend_surface(cloud, cameras, radius_px=radius, depth_limit=limit)
    scattered = blend_scattered(cloud, cameras, radius, limit)
    assert 0 < slow.alpha.mean() < 1
    assert torch.allclose(scattered, planes_of(slow), atol=1e-5)
    assert torch.allclose(planes_of(fast), planes_of(slow), atol=1e-5)


def test_nearest_depth_equals_the_nearest_fragment():
    cameras, cloud = make_cameras(2, height=9, width=14), make_cloud(200)
    found = find_fragments(cloud, cameras, radius=1.2, points_per_pixel=1)
    expected = torch.where(found.point >= 0, found.depth, torch.inf).movedim(-1, 1)
    fast = nearest_depth(cloud, cameras, radius_px=1.2)
    scattered = nearest_frames_torch(
        cloud.xyz, projection_matrices(cameras), size=(9, 14), radius=1.2
    )
    assert torch.allclose(fast, expected)
    assert torch.allclose(scattered, expected)


def test_the_order_of_depth_does_not_matter():
    limit = torch.full((1, 1, 6, 10), 9.0)
    red, green = 1 - (0.5 / 1.5) ** 2, 1 - (0.7 / 1.5) ** 2
    opacity = 1 - (1 - red) * (1 - green)
    for near, far in ((1.0, 2.0), (2.0, 1.0)):
        cloud = make_points([[3.0 * near, 2.5 * near, near], [4.2 * far, 2.5 * far, far]])
        render = blend_surface(cloud, make_unit_camera(), radius_px=1.5, depth_limit=limit)
        share = red / (red + green)
        assert render.alpha[0, 0, 2, 3] == pytest.approx(opacity)
        assert render.frames[0, 0, 2, 3] == pytest.approx(opacity * share)
        assert render.frames[0, 1, 2, 3] == pytest.approx(opacity * (1 - share))
        assert render.depth[0, 0, 2, 3] == pytest.approx(share * near + (1 - share) * far)


def test_a_slanted_surface_is_not_shifted():
    """Compositing front to back shifts a ramp of colour; the mean does not."""
    line = torch.arange(0, 40, 1.0) + 0.5
    y, x = torch.meshgrid(line, line, indexing="ij")
    depth = 2 + 0.02 * x
    xyz = torch.stack([x * depth, y * depth, depth], dim=-1).reshape(-1, 3)
    rgb = (x / 40).reshape(-1, 1).expand(-1, 3).contiguous()
    zeros = torch.zeros(len(xyz))
    cloud = PointCloud(xyz=xyz, rgb=rgb, confidence=zeros + 1, view=zeros.long())
    camera = Cameras(c2w=torch.eye(4)[None], K=torch.eye(3)[None], height=40, width=40)
    limit = torch.full((1, 1, 40, 40), 9.0)
    inside = (slice(5, -5), slice(5, -5))
    mean = blend_surface(cloud, camera, radius_px=1.44, depth_limit=limit)
    shift = 40 * (mean.frames / mean.alpha)[0, 0][inside] - x[inside]
    assert shift.abs().amax() < 1e-3
    over = render_points(cloud, camera, radius_px=1.44)
    assert (40 * (over.frames / over.alpha)[0, 0][inside] - x[inside]).mean() < -0.2


def test_empty_clouds_and_points_behind_the_camera_leave_nothing():
    camera = make_unit_camera()
    limit = torch.full((1, 1, 6, 10), 9.0)
    for cloud in (make_points([]), make_points([[-3.5, -2.5, -1.0], [3.5, 2.5, 0.0]])):
        render = blend_surface(cloud, camera, radius_px=1.5, depth_limit=limit)
        assert render.frames.amax() == render.alpha.amax() == render.depth.amax() == 0
        assert torch.isinf(nearest_depth(cloud, camera, radius_px=1.5)).all()
        assert blend_scattered(cloud, camera, 1.5, limit).amax() == 0


@pytest.mark.gpu
def test_gpu_equals_cpu():
    cameras, cloud = make_cameras(4, height=60, width=96), make_cloud(20000)
    limit = torch.full((4, 1, 60, 96), 4.0)
    ours = blend_surface(
        cloud.to("cuda"), cameras.to("cuda"), radius_px=1.5, depth_limit=limit.cuda()
    )
    reference = blend_surface(cloud, cameras, radius_px=1.5, depth_limit=limit)
    assert torch.allclose(ours.frames.cpu(), reference.frames, atol=1e-4)
    assert torch.allclose(ours.depth.cpu(), reference.depth, atol=1e-3)
    near = nearest_depth(cloud.to("cuda"), cameras.to("cuda"), radius_px=1.5).cpu()
    assert torch.allclose(near, nearest_depth(cloud, cameras, radius_px=1.5))
