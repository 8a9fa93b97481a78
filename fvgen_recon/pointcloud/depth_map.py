"""Depth and confidence for each pixel of each input view, and their lift to a point cloud."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from fvgen_recon.geometry.projection import unproject_depth
from fvgen_recon.types import Cameras, PointCloud, Scene


@dataclass(frozen=True, kw_only=True, slots=True)
class DepthMaps:
    """Depth of every pixel of every input view."""

    depth: Float[Tensor, "V H W"]
    """Distance along each camera's +z axis in world units, positive and finite everywhere."""
    confidence: Float[Tensor, "V H W"]
    """Calibrated chance that the depth is right, in [0, 1]; below 0.5 where it was filled in."""


def lift_depth(scene: Scene, maps: DepthMaps) -> PointCloud:
    """Lift every pixel of every view to a coloured point; `view` says which view it is from."""
    xyz, _ = unproject_depth(maps.depth, scene.cameras)
    num_views, height, width = maps.depth.shape
    view = torch.arange(num_views, device=maps.depth.device)[:, None].expand(-1, height * width)
    return PointCloud(
        xyz=xyz.reshape(-1, 3),
        rgb=scene.images.permute(0, 2, 3, 1).reshape(-1, 3).clamp(0, 1),
        confidence=maps.confidence.reshape(-1),
        view=view.reshape(-1),
    )


def reduce_scene(scene: Scene, long_side: int) -> tuple[Float[Tensor, "V 3 H W"], Cameras]:
    """Return photos and cameras with the longer side at most `long_side`."""
    height, width = scene.cameras.height, scene.cameras.width
    scale = min(1.0, long_side / max(height, width))
    size = (max(1, round(height * scale)), max(1, round(width * scale)))
    if size == (height, width):
        return scene.images, scene.cameras
    images = F.interpolate(scene.images, size, mode="area")
    return images, scene.cameras.resize(*size)
