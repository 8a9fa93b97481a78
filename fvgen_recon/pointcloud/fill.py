"""Guesses for pixels that stereo could not measure, led by colour."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

_NUM_PASSES = 3
_FILLED_CONFIDENCE = 0.49


def _recurse(values: Float[Tensor, "H V C W"], keep: Float[Tensor, "H V 1 W"]) -> Tensor:
    """Sum over the first axis with weights that decay by `keep` at each step, both ways."""
    # Both ways in one loop: the second half runs over the flipped rows.
    back = torch.cat([keep[:1], keep[1:].flip(0)])
    total = torch.stack([values, values.flip(0)], dim=1)
    decay = torch.stack([keep, back], dim=1)
    for i in range(1, values.shape[0]):
        total[i].addcmul_(decay[i], total[i - 1])
    return total[:, 0] + total[:, 1].flip(0) - values


def spread_guided(
    values: Float[Tensor, "V H W"],
    weight: Float[Tensor, "V H W"],
    guide: Float[Tensor, "V C H W"],
    *,
    reach: float,
    colour: float = 0.08,
) -> tuple[Float[Tensor, "V H W"], Float[Tensor, "V H W"]]:
    """Weighted mean of values, near in place and colour (domain transform, recursive form).

    E. Gastal and M. Oliveira, "Domain transform for edge-aware image and video processing",
    SIGGRAPH 2011, equations 12 and 21, applied to values times weight and to weight.

    Args:
        values: What to spread.
        weight: How much each value counts; 0 for unknown.
        guide: Photos; values do not cross their edges easily.
        reach: Standard deviation of the spread in pixels.
        colour: Standard deviation in colour, of [0, 1].

    Returns:
        The means (0 where no weight arrives) and the weights that arrive.
    """
    state = torch.stack([values * weight, weight], dim=1)
    distance_y = _path_length(guide, 2, reach / colour)
    distance_x = _path_length(guide, 3, reach / colour)
    for i in range(_NUM_PASSES):
        sigma = reach * math.sqrt(3) * 2 ** (_NUM_PASSES - 1 - i) / math.sqrt(4**_NUM_PASSES - 1)
        keep_y = torch.exp(-math.sqrt(2) / sigma * distance_y)
        keep_x = torch.exp(-math.sqrt(2) / sigma * distance_x)
        state = _recurse(
            state.permute(2, 0, 1, 3).contiguous(), keep_y.permute(1, 0, 2)[:, :, None]
        )
        state = state.permute(3, 1, 2, 0).contiguous()
        state = _recurse(state, keep_x.permute(2, 0, 1)[:, :, None]).permute(1, 2, 3, 0)
    total = state[:, 1]
    return state[:, 0] / total.clamp_min(1e-20) * (total > 1e-20), total


def _path_length(guide: Float[Tensor, "V C H W"], axis: int, scale: float) -> Tensor:
    """Length of the step to each pixel from the one before, colour changes included (V H W)."""
    change = guide.diff(dim=axis).abs().mean(dim=1)
    length = torch.ones_like(guide[:, 0])
    length.narrow(axis - 1, 1, guide.shape[axis] - 1).add_(scale * change)
    return length


def fill_untrusted(
    inverse_depth: Float[Tensor, "V H W"],
    confidence: Float[Tensor, "V H W"],
    images: Float[Tensor, "V 3 H W"],
) -> tuple[Float[Tensor, "V H W"], Float[Tensor, "V H W"]]:
    """Replace depths of confidence below 0.5 by trusted neighbours; they stay below 0.5."""
    trusted = confidence >= 0.5
    reach = 0.1 * max(images.shape[-2:])
    spread, weight = spread_guided(inverse_depth, trusted * confidence, images, reach=reach)
    filled = torch.where(trusted | (weight < 1e-12), inverse_depth, spread)
    return filled, torch.where(trusted, confidence, confidence.clamp_max(_FILLED_CONFIDENCE))
