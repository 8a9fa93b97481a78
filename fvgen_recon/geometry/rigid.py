"""Rotations and rigid motions."""

import torch
from jaxtyping import Float
from torch import Tensor


def normalise(vector: Float[Tensor, "*B D"]) -> Float[Tensor, "*B D"]:
    """Scale vectors to unit length; zero stays zero."""
    return vector / vector.norm(dim=-1, keepdim=True).clamp_min(1e-12)


def look_at(
    position: Float[Tensor, "*B 3"], target: Float[Tensor, "*B 3"], up: Float[Tensor, "3"]
) -> Float[Tensor, "*B 4 4"]:
    """Return OpenCV camera-to-world poses at `position` that look at `target`, `up` upwards."""
    z = normalise(target - position)
    x = normalise(torch.linalg.cross(z, up.expand_as(z)))
    y = torch.linalg.cross(z, x)
    c2w = torch.zeros(*position.shape[:-1], 4, 4, dtype=position.dtype, device=position.device)
    c2w[..., :3, 0], c2w[..., :3, 1], c2w[..., :3, 2] = x, y, z
    c2w[..., :3, 3] = position
    c2w[..., 3, 3] = 1.0
    return c2w


def rotation_angle(
    first: Float[Tensor, "*B 3 3"], second: Float[Tensor, "*B 3 3"]
) -> Float[Tensor, "*B"]:
    """Return the angle in radians of the rotation that takes `first` to `second`."""
    trace = (first.mT @ second).diagonal(dim1=-2, dim2=-1).sum(-1)
    return torch.arccos(((trace - 1) / 2).clamp(-1, 1))
