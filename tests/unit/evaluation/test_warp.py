import math

import torch
from factories import make_cameras

from fvgen_recon.evaluation.warp import warped_difference
from fvgen_recon.geometry.projection import camera_rays


def painted_plane(cameras, paint):
    """Frames and depth of the plane z = 0 with a colour that depends on x and y."""
    rays = camera_rays(cameras)
    depth = -cameras.position[:, None, None, 2] / rays[..., 2]
    points = cameras.position[:, None, None] + rays * depth[..., None]
    return paint(points).permute(0, 3, 1, 2), depth[:, None]


def smooth(points):
    x, y = points[..., 0], points[..., 1]
    return torch.stack([0.5 + 0.2 * x, 0.5 + 0.2 * y, 0.5 + 0 * x], dim=-1)


def test_a_still_scene_does_not_change_and_a_pulsing_one_does():
    cameras = make_cameras(4, arc_deg=12)
    images, depth = painted_plane(cameras, smooth)
    mask = torch.ones_like(depth, dtype=torch.bool)
    assert float(warped_difference(images, cameras, depth, mask)) < 0.002
    pulse = torch.tensor([0.0, 0.1, 0.0, 0.1])[:, None, None, None]
    changed = warped_difference(images + pulse, cameras, depth, mask)
    assert abs(float(changed) - 0.1) < 0.005


def test_only_shared_trusted_points_count():
    cameras = make_cameras(2, arc_deg=12)
    images, depth = painted_plane(cameras, smooth)
    mask = torch.ones_like(depth, dtype=torch.bool)
    images[1, :, :16] = 0
    mask[1, :, :17] = False
    assert float(warped_difference(images, cameras, depth, mask)) < 0.002
    # A surface that hides the plane in the second view is not the same point.
    depth[1] = 1.0
    assert math.isnan(float(warped_difference(images, cameras, depth, mask)))
