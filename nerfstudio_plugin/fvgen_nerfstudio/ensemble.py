"""A splat of several members, trained apart from different points and shown together.

Each source of points is wrong at other places. Where members differ a mean of their renders is
nearer to the truth than any of them, as with every ensemble of independent guesses. Gaussians of
two members in one render would cover each other, so each is rendered on its own.
"""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

SPREAD = "spread"
"""Name of the output that shows how far members differ."""


def member_indices(member: Float[Tensor, "N"], count: int) -> list[Int[Tensor, "_"]]:
    """Return the indices of each member's Gaussians; found once, as the host waits for them.

    Args:
        member: The member that each Gaussian belongs to, from 0.
        count: Number of members.
    """
    return [(member == k).nonzero()[:, 0] for k in range(count)]


def mean_render(renders: list[dict[str, Any]], *, with_spread: bool = False) -> dict[str, Any]:
    """Return the mean of the renders of one camera by several members.

    Args:
        renders: Images by name; what is no tensor is taken from the first.
        with_spread: Whether `SPREAD` is among them.
    """
    mean = renders[0] if len(renders) == 1 else _mean(renders)
    if not with_spread:
        return mean
    return {**mean, SPREAD: spread_of([render["rgb"] for render in renders])}


def _mean(renders: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        name: torch.stack([render[name] for render in renders]).mean(0)
        if isinstance(value, Tensor)
        else value
        for name, value in renders[0].items()
    }


def spread_of(images: list[Float[Tensor, "H W 3"]]) -> Float[Tensor, "H W 1"]:
    """Return the standard deviation between images, its root mean square over the channels."""
    variance = torch.stack(images).var(0, correction=0)
    return variance.mean(-1, keepdim=True).sqrt()
