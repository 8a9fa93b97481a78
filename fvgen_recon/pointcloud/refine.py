"""A second sweep along the surface that the first one found.

Windows of a plane sweep face the camera, so slanted surfaces do not match at wide angles. Here
the hypotheses of a pixel are offsets from a smooth surface through the first depths: each window
is warped along that surface's own slant.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from fvgen_recon.pointcloud.fill import spread_guided

_CARRIED_CONFIDENCE = 0.7


def base_surface(
    inverse_depth: Float[Tensor, "V H W"],
    confidence: Float[Tensor, "V H W"],
    images: Float[Tensor, "V 3 H W"],
) -> Float[Tensor, "V H W"]:
    """Smooth the trusted inverse depths and carry them over the untrusted ones."""
    trusted = (confidence >= _CARRIED_CONFIDENCE) * confidence
    reach = 0.1 * max(images.shape[-2:])
    carried, weight = spread_guided(inverse_depth, trusted, images, reach=reach)
    carried = torch.where((trusted > 0) | (weight < 1e-12), inverse_depth, carried)
    smooth, _ = spread_guided(carried, trusted + 0.05, images, reach=3.0)
    return smooth


def offset_hypotheses(
    surface: Float[Tensor, "V H W"], step: Float[Tensor, "V"], count: int
) -> Float[Tensor, "V D H W"]:
    """Inverse depths around a surface, `step` apart."""
    offsets = torch.arange(count, device=step.device) - (count - 1) / 2
    return surface[:, None] + (offsets * step[:, None])[..., None, None]
