"""Small real objects for tests."""

import math

import torch

from fvgen_recon.geometry.rigid import look_at
from fvgen_recon.types import Anchor, Cameras, Guidance, PointCloud, Scene


def make_cameras(
    num_views: int = 3, height: int = 32, width: int = 48, arc_deg: float = 30.0
) -> Cameras:
    """Cameras on an arc of radius 4 around the origin, looking at it."""
    angles = torch.linspace(-math.radians(arc_deg) / 2, math.radians(arc_deg) / 2, num_views)
    position = 4 * torch.stack([angles.sin(), 0 * angles, -angles.cos()], dim=-1)
    c2w = look_at(position, torch.zeros_like(position), torch.tensor([0.0, -1.0, 0.0]))
    K = torch.tensor([[1.2 * width, 0, width / 2], [0, 1.2 * width, height / 2], [0, 0, 1.0]])
    return Cameras(c2w=c2w, K=K.expand(num_views, 3, 3).clone(), height=height, width=width)


def make_cloud(num_points: int = 2000, seed: int = 0) -> PointCloud:
    """Random points in a unit ball around the origin."""
    rng = torch.Generator().manual_seed(seed)
    xyz = torch.randn(num_points, 3, generator=rng) * 0.4
    return PointCloud(
        xyz=xyz,
        rgb=torch.rand(num_points, 3, generator=rng),
        confidence=torch.ones(num_points),
        view=torch.zeros(num_points, dtype=torch.long),
    )


def make_scene(num_views: int = 3, height: int = 32, width: int = 48, seed: int = 0) -> Scene:
    """A scene of random images."""
    rng = torch.Generator().manual_seed(seed)
    return Scene(
        images=torch.rand(num_views, 3, height, width, generator=rng),
        cameras=make_cameras(num_views, height, width),
        names=tuple(f"{i:03d}.png" for i in range(num_views)),
    )


def make_guidance(
    num_frames: int = 4, height: int = 32, width: int = 48, seed: int = 1
) -> Guidance:
    """Random guidance with anchors at both ends, two layers and all kinds of support."""
    rng = torch.Generator().manual_seed(seed)
    mask = torch.rand(num_frames, 1, height, width, generator=rng) > 0.4
    mask[[0, -1]] = True
    frames = torch.rand(num_frames, 3, height, width, generator=rng) * mask
    layer_masks = torch.rand(2, num_frames, 1, height, width, generator=rng) > 0.5
    layers = torch.rand(2, num_frames, 3, height, width, generator=rng) * layer_masks
    return Guidance(
        frames=frames,
        mask=mask,
        depth=mask.float() * 4.0,
        layers=layers,
        layer_masks=layer_masks,
        anchors=(Anchor(frame=0, view=0), Anchor(frame=num_frames - 1, view=1)),
        reference=frames[0],
    )
