"""What is shown where no Gaussian is: colours that flow in from around the hole."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

_FAINT = 1e-6
"""Mean opacity of a render that says as little about colours as nothing at all."""


def diffuse_colors(
    colors: Float[Tensor, "H W 3"], alpha: Float[Tensor, "H W 1"], unseen: Float[Tensor, "3"]
) -> Float[Tensor, "H W 3"]:
    """Return a render whose holes are filled from their surroundings, the smoother the larger.

    Push and pull over an image pyramid (Gortler et al., "The Lumigraph", 1996, section 3.4):
    halve colours and opacities until one pixel is left, then put every level over the one below
    it. What is opaque stays as it is.

    Args:
        colors: Render on black, so that colours are already multiplied by opacity.
        alpha: Opacity in [0, 1].
        unseen: Colour of a render in which nothing is seen from which colours could flow.
    """
    level = torch.cat([colors, alpha], dim=-1).permute(2, 0, 1)[None]
    levels = [level]
    while max(level.shape[-2:]) > 1:
        level = F.avg_pool2d(level, 2, ceil_mode=True, count_include_pad=False)
        # A half-seen block says as much about its colour as a seen one, so opacity saturates.
        full = level[:, 3:]
        level = level * ((2 * full).clamp_max(1.0) / full.clamp_min(1e-6))
        levels.append(level)
    top = levels.pop()
    filled = (top[:, :3] + _FAINT * unseen[:, None, None]) / (top[:, 3:] + _FAINT)
    for level in reversed(levels):
        below = F.interpolate(filled, level.shape[-2:], mode="bilinear", align_corners=False)
        filled = level[:, :3] + (1 - level[:, 3:]) * below
    return filled[0].permute(1, 2, 0)


def fill_holes(
    colors: Float[Tensor, "1 H W 3"], alpha: Float[Tensor, "1 H W 1"], unseen: Float[Tensor, "3"]
) -> Float[Tensor, "1 H W 3"]:
    """Put a render on black on colours from around its holes; on `unseen` where all is a hole."""
    return colors + (1 - alpha) * diffuse_colors(colors[0], alpha[0], unseen)
