"""Depth of the input views, taken back from the points that were lifted from them."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from fvgen_recon.geometry.projection import project_points
from fvgen_recon.types import Cameras, PointCloud

_TRUSTED = 0.5
"""Confidence from which a point counts as a surface."""
_NEAREST = 0.02
"""Share of the trusted points that may be nearer than the nearest surface: some are wrong."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DepthTargets:
    """Measured depth of the input views, for as many pixels as have one."""

    depth: Float[Tensor, "V 1 H W"]
    """Z-depth in the splat's world; 1 where there is none."""
    weight: Float[Tensor, "V 1 H W"]
    """Confidence in [0, 1]; 0 where there is no depth."""


def collect_depth(cloud: PointCloud, cameras: Cameras) -> DepthTargets:
    """Project every point into the view that it was lifted from.

    Args:
        cloud: Points; those of no view are passed over.
        cameras: The input views at the size that the points were lifted at.
    """
    shape = (len(cameras), 1, cameras.height, cameras.width)
    depth, weight = cloud.xyz.new_ones(shape), cloud.xyz.new_zeros(shape)
    for view, camera in enumerate(cameras):
        own = cloud[cloud.view == view]
        if not len(own):
            continue
        pixels, z = project_points(own.xyz, camera)
        column, row = pixels.floor().long().unbind(-1)
        inside = (column >= 0) & (column < cameras.width) & (row >= 0) & (row < cameras.height)
        inside &= z > 0
        depth[view, 0, row[inside], column[inside]] = z[inside]
        weight[view, 0, row[inside], column[inside]] = own.confidence[inside]
    return DepthTargets(depth=depth, weight=weight)


def nearest_depth(cloud: PointCloud, cameras: Cameras) -> float:
    """Return the distance of the nearest surface that a view shows, in world units.

    It is the least over the views of a low quantile of z-depth of their trusted points; 0 where no
    view has any.

    Args:
        cloud: Points; those of no view are passed over.
        cameras: The input views.
    """
    found = []
    for view, camera in enumerate(cameras):
        own = cloud[(cloud.view == view) & (cloud.confidence >= _TRUSTED)]
        _, z = project_points(own.xyz, camera)
        z = z[z > 0]
        if len(z):
            place = 1 + int(_NEAREST * (len(z) - 1))
            found.append(float(z.kthvalue(place).values))
    return min(found, default=0.0)


def pixel_spacing(cloud: PointCloud, cameras: Cameras) -> Float[Tensor, "N"]:
    """Return the width of a pixel at each point, in world units; 0 for points of no view."""
    spacing = torch.zeros(len(cloud), device=cloud.xyz.device)
    for view, camera in enumerate(cameras):
        own = cloud.view == view
        _, z = project_points(cloud.xyz[own], camera)
        spacing[own] = z.clamp_min(0).to(spacing) / camera.K[0, 0].to(spacing)
    return spacing
