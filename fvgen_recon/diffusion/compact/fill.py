"""Push-pull filling: the smooth completion of an image with holes."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


def push_pull(
    color: Float[Tensor, "N 3 H W"], weight: Float[Tensor, "N 1 H W"]
) -> Float[Tensor, "N 3 H W"]:
    """Fill pixels of weight 0 from ever coarser averages of the known ones.

    Follows the pull and push phases of Gortler et al., "The Lumigraph" (1996), section 3.4. Known
    pixels keep their colours. An image without any known pixel becomes 0 everywhere.

    Args:
        color: Colours; their values where the weight is 0 do not matter.
        weight: Trust of each pixel in [0, 1].

    Returns:
        Colours without holes.
    """
    height, width = color.shape[-2:]
    known = weight.clamp(0, 1)
    if max(height, width) == 1:
        return color * (known > 0)
    pad = (0, width % 2, 0, height % 2)
    weighted = F.avg_pool2d(F.pad(color * known, pad), 2) * 4
    total = F.avg_pool2d(F.pad(known, pad), 2) * 4
    coarse = push_pull(weighted / total.clamp_min(1e-6), total.clamp_max(1))
    fine = F.interpolate(coarse, scale_factor=2, mode="bilinear", align_corners=False)
    return torch.lerp(fine[..., :height, :width], color, known)
