"""How steady a scene stands in a video: frames warped onto their neighbours by known depth."""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from fvgen_recon.geometry.projection import project_points, unproject_depth
from fvgen_recon.types import Cameras

_DEPTH_TOLERANCE = 0.05


def warped_difference(
    images: Float[Tensor, "T 3 H W"],
    cameras: Cameras,
    depth: Float[Tensor, "T 1 H W"],
    mask: Bool[Tensor, "T 1 H W"],
) -> Float[Tensor, ""]:
    """Return the mean change of what neighbour frames show of the same points; NaN without any.

    Args:
        images: Frames in order.
        cameras: Their cameras.
        depth: Z-depth of each frame in world units.
        mask: Where depth may be trusted; only points trusted in both frames count.
    """
    total, count = images.new_zeros(()), images.new_zeros(())
    for index in range(len(images) - 1):
        difference, is_shared = _warp_difference(images, cameras, depth, mask, index)
        total = total + (difference * is_shared).sum()
        count = count + is_shared.sum()
    return total / count if bool(count > 0) else images.new_full((), torch.nan)


def _warp_difference(
    images: Tensor, cameras: Cameras, depth: Tensor, mask: Tensor, index: int
) -> tuple[Float[Tensor, "N"], Bool[Tensor, "N"]]:
    """Compare a frame's trusted pixels with where the next frame shows them."""
    size = (cameras.height, cameras.width)
    points, given = unproject_depth(depth[index, 0], cameras[index])
    chosen = given & mask[index, 0]
    uv, z = project_points(points[chosen], cameras[index + 1])
    grid = (2 * uv / uv.new_tensor([size[1], size[0]]) - 1)[None, None]
    planes = torch.cat([images[index + 1], depth[index + 1], mask[index + 1].float()])
    found = F.grid_sample(planes[None], grid, align_corners=False)[0, :, 0]
    nearest = F.grid_sample(depth[None, index + 1], grid, mode="nearest", align_corners=False)
    inside = (uv >= 0).all(dim=-1) & (uv[:, 0] < size[1]) & (uv[:, 1] < size[0]) & (z > 0)
    near = (nearest[0, 0, 0] - z).abs() < _DEPTH_TOLERANCE * z
    is_shared = inside & near & (found[4] > 0.99)
    difference = (found[:3] - images[index][:, chosen]).abs().mean(dim=0)
    return difference, is_shared
