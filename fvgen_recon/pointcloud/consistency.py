"""Do the depth maps of several views agree with each other?"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from fvgen_recon.geometry.projection import inverse_intrinsics, pixel_centres
from fvgen_recon.pointcloud.neighbour import other_views
from fvgen_recon.pointcloud.sweep import (
    inside_image,
    project_inverse_depth,
    relate_views,
    sample_views,
)
from fvgen_recon.types import Cameras

_CHUNK_CPU = 2**24
_CHUNK_CUDA = 2**25
"""Pairs of a pixel and a view that are looked at together, some 70 bytes each."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Agreement:
    """How each pixel's depth fares in each of the other views (S = V - 1)."""

    error: Float[Tensor, "R S H W"]
    """Pixels between a pixel and its way to the other view and, by that view's depth, back."""
    relative: Float[Tensor, "R S H W"]
    """Depth after the way there and back over the pixel's own depth, less one."""
    seen: Bool[Tensor, "R S H W"]
    """True where the point lies inside the other view."""


def view_chunks(others: Int[Tensor, "V S"], inverse_depth: Float[Tensor, "V H W"]) -> list[slice]:
    """Split the views so that comparing some of them with their others bounds the memory.

    Every view is compared with every other one, so that what that takes all at once grows with the
    square of their number: twenty gigabytes for sixty photos.
    """
    most = _CHUNK_CUDA if inverse_depth.is_cuda else _CHUNK_CPU
    step = max(1, most // max(1, others.shape[1] * inverse_depth[0].numel()))
    return [slice(start, start + step) for start in range(0, len(others), step)]


def compare_depth(
    inverse_depth: Float[Tensor, "V H W"],
    cameras: Cameras,
    others: Int[Tensor, "V S"] | None = None,
    views: slice = slice(None),
) -> Agreement:
    """Project pixels into other views, look up their depth there, project back.

    Args:
        inverse_depth: Depth maps of all views.
        cameras: Their cameras.
        others: What each view is compared with; by default all other views.
        views: The views whose pixels are compared; all by default. See `view_chunks`.
    """
    num_views, height, width = inverse_depth.shape
    size = (height, width)
    if others is None:
        others = other_views(num_views, inverse_depth)
    own, others = inverse_depth[views], others[views]
    uv, z = project_inverse_depth(relate_views(cameras, others, views), own[:, None], size)
    uv, z = uv[:, :, 0], z[:, :, 0]
    found = sample_views(inverse_depth[:, None], others.reshape(-1), uv.flatten(0, 1))
    found = found.reshape(z.shape)
    back, scale = _project_back(cameras, others, views, uv, found)
    error = (back - pixel_centres(height, width, uv)).norm(dim=-1)
    relative = scale / (found * (1 / own)[:, None]) - 1
    return Agreement(error=error, relative=relative, seen=inside_image(uv, z, size))


def _project_back(
    cameras: Cameras,
    others: Int[Tensor, "R S"],
    views: slice,
    uv: Float[Tensor, "R S H W 2"],
    inverse_depth: Float[Tensor, "R S H W"],
) -> tuple[Float[Tensor, "R S H W 2"], Float[Tensor, "R S H W"]]:
    """From points of the other views, at given inverse depths, to the views themselves."""
    own = cameras[views]
    to_view = own.w2c[:, None] @ cameras.c2w[others]
    K, K_inverse = own.K[:, None], inverse_intrinsics(cameras.K)[others]
    infinity = K @ to_view[..., :3, :3] @ K_inverse
    epipole = (K @ to_view[..., :3, 3:])[..., 0]
    rays = torch.cat([uv, torch.ones_like(uv[..., :1])], dim=-1)
    point = torch.einsum("vsij,vshwj->vshwi", infinity, rays)
    point = point + inverse_depth[..., None] * epipole[:, :, None, None]
    z = point[..., 2]
    return point[..., :2] / z.clamp_min(1e-6)[..., None], z.clamp_min(1e-6)
