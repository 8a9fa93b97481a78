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


@dataclass(frozen=True, kw_only=True, slots=True)
class Agreement:
    """How each pixel's depth fares in each of the other views (S = V - 1)."""

    error: Float[Tensor, "V S H W"]
    """Pixels between a pixel and its way to the other view and, by that view's depth, back."""
    relative: Float[Tensor, "V S H W"]
    """Depth after the way there and back over the pixel's own depth, less one."""
    seen: Bool[Tensor, "V S H W"]
    """True where the point lies inside the other view."""


def compare_depth(
    inverse_depth: Float[Tensor, "V H W"],
    cameras: Cameras,
    others: Int[Tensor, "V S"] | None = None,
) -> Agreement:
    """Project each pixel into other views (by default all), look up their depth, project back."""
    num_views, height, width = inverse_depth.shape
    size = (height, width)
    if others is None:
        others = other_views(num_views, inverse_depth)
    uv, z = project_inverse_depth(relate_views(cameras, others), inverse_depth[:, None], size)
    uv, z = uv[:, :, 0], z[:, :, 0]
    found = sample_views(inverse_depth[:, None], others.reshape(-1), uv.flatten(0, 1))
    found = found.reshape(z.shape)
    back, scale = _project_back(cameras, others, uv, found)
    error = (back - pixel_centres(height, width, uv)).norm(dim=-1)
    relative = scale / (found * (1 / inverse_depth)[:, None]) - 1
    return Agreement(error=error, relative=relative, seen=inside_image(uv, z, size))


def _project_back(
    cameras: Cameras,
    others: Int[Tensor, "V S"],
    uv: Float[Tensor, "V S H W 2"],
    inverse_depth: Float[Tensor, "V S H W"],
) -> tuple[Float[Tensor, "V S H W 2"], Float[Tensor, "V S H W"]]:
    """From points of the other views, at given inverse depths, to the views themselves."""
    to_view = cameras.w2c[:, None] @ cameras.c2w[others]
    K, K_inverse = cameras.K[:, None], inverse_intrinsics(cameras.K)[others]
    infinity = K @ to_view[..., :3, :3] @ K_inverse
    epipole = (K @ to_view[..., :3, 3:])[..., 0]
    rays = torch.cat([uv, torch.ones_like(uv[..., :1])], dim=-1)
    point = torch.einsum("vsij,vshwj->vshwi", infinity, rays)
    point = point + inverse_depth[..., None] * epipole[:, :, None, None]
    z = point[..., 2]
    return point[..., :2] / z.clamp_min(1e-6)[..., None], z.clamp_min(1e-6)
