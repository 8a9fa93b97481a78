"""A splat of several members, trained apart from different points and shown together.

Each source of points is wrong at other places. Where members differ a mean of their renders is
nearer to the truth than any of them, as with every ensemble of independent guesses. Gaussians of
two members in one render would cover each other, so each is rendered on its own.
"""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor


def member_indices(member: Float[Tensor, "N"], count: int) -> list[Int[Tensor, "_"]]:
    """Return the indices of each member's Gaussians; found once, as the host waits for them.

    Args:
        member: The member that each Gaussian belongs to, from 0.
        count: Number of members.
    """
    return [(member == k).nonzero()[:, 0] for k in range(count)]


def mean_render(renders: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the mean of the renders of one camera by several members.

    Args:
        renders: Images by name; what is no tensor is taken from the first.
    """
    if len(renders) == 1:
        return renders[0]
    return {
        name: torch.stack([render[name] for render in renders]).mean(0)
        if isinstance(value, Tensor)
        else value
        for name, value in renders[0].items()
    }
