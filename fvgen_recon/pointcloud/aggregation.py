"""Semi-global aggregation of a cost volume.

H. Hirschmueller, "Stereo processing by semiglobal matching and mutual information", PAMI 2008,
equation 13: along each path, L(p, d) = C(p, d) + min(L(q, d), L(q, d +- 1) + P1, min L(q) + P2)
- min L(q), with q the pixel before p; the sum over eight paths is minimised at each pixel.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

_COLOUR_SCALE = 0.06


def _advance(
    cost: Float[Tensor, "2 1 V D W"],
    before: Float[Tensor, "2 P V D W"],
    jump: Float[Tensor, "2 P V 1 W"],
    small: float,
) -> Float[Tensor, "2 P V D W"]:
    """One step of P paths both ways; `before` is zero where a path starts here."""
    lowest = before.amin(dim=-2, keepdim=True)
    padded = F.pad(before, (0, 0, 1, 1), value=float("inf"))
    beside = torch.minimum(padded[..., :-2, :], padded[..., 2:, :]) + small
    return cost + torch.minimum(torch.minimum(before, beside), lowest + jump) - lowest


def _shift(values: Float[Tensor, "*B W"], step: int) -> Float[Tensor, "*B W"]:
    """Move along the last axis by `step`; zeros come in."""
    if step == 0:
        return values
    return F.pad(values, (1, -1) if step > 0 else (-1, 1))


def _jump_penalties(
    image: Float[Tensor, "H V C W"], slants: tuple[int, ...], penalties: tuple[float, float]
) -> Float[Tensor, "H 2 P V 1 W"]:
    """Penalty for a jump in depth at each step of each path, in the order of the scan.

    Lower where the colour changes too, never below one and a half times P1.
    """
    small, large = penalties
    both = []
    for ordered in (image, image.flip(0)):
        before = torch.cat([ordered[:1], ordered[:-1]])
        changes = [(ordered - _shift(before, s)).abs().mean(2, keepdim=True) for s in slants]
        both.append(torch.stack(changes, dim=1))
    change = torch.stack(both, dim=1)
    return (large * torch.exp(-change / _COLOUR_SCALE)).clamp_min(1.5 * small)


def _scan(
    cost: Float[Tensor, "H V D W"],
    image: Float[Tensor, "H V C W"],
    slants: tuple[int, ...],
    penalties: tuple[float, float],
) -> Float[Tensor, "H V D W"]:
    """Sum of path costs down and up the first axis, one path for each sideways step."""
    total = torch.zeros_like(cost)
    height = cost.shape[0]
    jumps = _jump_penalties(image, slants, penalties)
    state = cost.new_zeros(2, len(slants), *cost.shape[1:])
    for i in range(height):
        rows = torch.stack([cost[i], cost[height - 1 - i]])
        if slants != (0,):
            state = torch.stack([_shift(state[:, k], s) for k, s in enumerate(slants)], dim=1)
        state = _advance(rows[:, None], state, jumps[i], penalties[0])
        step = state.sum(dim=1)
        total[i] += step[0]
        total[height - 1 - i] += step[1]
    return total


def aggregate_cost(
    cost: Float[Tensor, "V D H W"],
    images: Float[Tensor, "V C H W"],
    *,
    small: float,
    large: float,
) -> Float[Tensor, "V D H W"]:
    """Mean path cost over eight directions.

    Args:
        cost: Matching cost of each depth label of each pixel.
        images: Guides: where colour changes, depth may jump.
        small: P1, the price of a change by one label.
        large: P2, the price of any larger change where the colour stays the same.
    """
    penalties = (small, large)
    down = _scan(
        cost.permute(2, 0, 1, 3).contiguous(),
        images.permute(2, 0, 1, 3).contiguous(),
        (-1, 0, 1),
        penalties,
    ).permute(1, 2, 0, 3)
    across = _scan(
        cost.permute(3, 0, 1, 2).contiguous(),
        images.permute(3, 0, 1, 2).contiguous(),
        (0,),
        penalties,
    ).permute(1, 2, 3, 0)
    return (down + across) / 8


def pick_label(
    cost: Float[Tensor, "V D H W"],
) -> tuple[Float[Tensor, "V H W"], Float[Tensor, "V H W"]]:
    """Return the cheapest label with sub-label precision and how clear the choice is.

    A parabola through the cheapest label and its neighbours gives the fraction. Clarity is the
    cost of the best label that is not a neighbour of the cheapest, less the cheapest.
    """
    num_labels = cost.shape[1]
    lowest, index = cost.min(dim=1, keepdim=True)
    left = cost.gather(1, (index - 1).clamp_min(0))
    right = cost.gather(1, (index + 1).clamp_max(num_labels - 1))
    curvature = left + right - 2 * lowest
    inner = (index > 0) & (index < num_labels - 1) & (curvature > 1e-9)
    offset = torch.where(inner, (left - right) / (2 * curvature.clamp_min(1e-9)), 0.0)
    labels = torch.arange(num_labels, device=cost.device)[None, :, None, None]
    other = cost.masked_fill((labels - index).abs() <= 2, float("inf")).amin(dim=1)
    clarity = (other - lowest[:, 0]).clamp(0, 10)
    return (index + offset.clamp(-0.5, 0.5))[:, 0], clarity
