"""The Gaussians that a splat starts with, from points that know how far they may be trusted."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from fvgen_nerfstudio.gaussian import make_gaussians
from fvgen_nerfstudio.settings import FvgenModelConfig
from fvgen_recon.types import PointCloud

SeedPoints = tuple[Tensor, Tensor]
"""Positions `N 3` and colours `N 3` in 0 to 255, as nerfstudio hands them over."""


def seed_gaussians(
    config: FvgenModelConfig, points: SeedPoints | None, metadata: dict[str, Any]
) -> dict[str, Tensor]:
    """Return the Gaussians to start from; random ones where no points came.

    Args:
        config: Sizes and opacities.
        points: Points, or none.
        metadata: The data parser's; holds `points3D_confidence` and `points3D_spacing` where the
            points come from this project.
    """
    if points is None or config.random_init:
        xyz = (torch.rand(config.num_random, 3) - 0.5) * config.random_scale
        rgb, metadata = torch.rand(config.num_random, 3), {}
    else:
        xyz, rgb = points[0].float(), points[1].float() / 255
    confidence = metadata.get("points3D_confidence", torch.ones(len(xyz)))
    spacing = metadata.get("points3D_spacing")
    view = torch.full((len(xyz),), -1, dtype=torch.long)
    low, high = config.seed_opacity
    return make_gaussians(
        PointCloud(xyz=xyz, rgb=rgb, confidence=confidence, view=view),
        config.sh_degree,
        sigma=None if spacing is None else config.seed_size * spacing,
        opacity=low + (high - low) * confidence,
    )


def seed_members(num_points: int, metadata: dict[str, Any]) -> Float[Tensor, "N"]:
    """Return the member of each Gaussian, from 0; strategies carry it as they add and remove.

    Args:
        num_points: Number of Gaussians.
        metadata: The data parser's; holds `points3D_member` where the points are its own.
    """
    member = metadata.get("points3D_member", ())
    return member.float() if len(member) == num_points else torch.zeros(num_points)
