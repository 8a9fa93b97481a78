"""Textures with mipmaps: one atlas a world, sampled trilinearly at any number of points."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class Atlas:
    """Square textures and their halved copies in one row of texels."""

    texels: Float[Tensor, "M 3"]
    """Linear colours: level by level, texture by texture, row by row."""
    starts: Int[Tensor, "L"]
    """Where each level begins."""
    num_levels: int
    side: int
    """Texels along a side at level 0; a power of two."""
    mirrored: Bool[Tensor, "N"]
    """Textures that do not tile and are mirrored at their borders instead."""

    def to(self, device: torch.device | str) -> "Atlas":
        """Move the tensors to a device."""
        return Atlas(
            texels=self.texels.to(device),
            starts=self.starts.to(device),
            num_levels=self.num_levels,
            side=self.side,
            mirrored=self.mirrored.to(device),
        )


def make_atlas(images: Float[Tensor, "N 3 S S"], mirrored: Bool[Tensor, "N"]) -> Atlas:
    """Build the atlas of square images with colours as displayed (gamma 2.2)."""
    level = images.clamp(0, 1) ** 2.2
    rows, starts, total = [], [], 0
    while True:
        starts.append(total)
        rows.append(level.permute(0, 2, 3, 1).reshape(-1, 3))
        total += rows[-1].shape[0]
        if level.shape[-1] == 1:
            break
        level = F.avg_pool2d(level, 2)
    return Atlas(
        texels=torch.cat(rows),
        starts=torch.tensor(starts, device=images.device),
        num_levels=len(starts),
        side=images.shape[-1],
        mirrored=mirrored.to(images.device),
    )


def sample_atlas(
    atlas: Atlas,
    texture: Int[Tensor, "P"],
    uv: Float[Tensor, "P 2"],
    footprint: Float[Tensor, "P"],
) -> Float[Tensor, "P 3"]:
    """Return linear colours at texture coordinates, blurred over a footprint.

    Args:
        atlas: The textures.
        texture: Which texture each point shows.
        uv: Coordinates in repeats.
        footprint: Width of a pixel in repeats.
    """
    folded = 1 - (1 - uv.remainder(2.0)).abs()
    uv = torch.where(atlas.mirrored[texture][:, None], folded, uv)
    level = (footprint * atlas.side).clamp_min(1e-6).log2().clamp(0, atlas.num_levels - 1)
    low = level.floor().long()
    high = (low + 1).clamp(max=atlas.num_levels - 1)
    share = (level - low)[:, None]
    coarse = _bilinear(atlas, texture, uv, high)
    return torch.lerp(_bilinear(atlas, texture, uv, low), coarse, share)


def _bilinear(atlas: Atlas, texture: Tensor, uv: Tensor, level: Tensor) -> Tensor:
    side = atlas.side >> level
    start = atlas.starts[level] + texture * side * side
    place = uv * side[:, None] - 0.5
    base = place.floor()
    weight = place - base
    corner = base.long()
    edge = atlas.mirrored[texture]
    columns, rows = (_pair(corner[:, k], side, edge) for k in range(2))
    total = torch.zeros(len(texture), 3, device=uv.device)
    for i in range(2):
        for j in range(2):
            share = (weight[:, 1] if i else 1 - weight[:, 1]) * (
                weight[:, 0] if j else 1 - weight[:, 0]
            )
            total = total + atlas.texels[start + rows[i] * side + columns[j]] * share[:, None]
    return total


def _pair(first: Tensor, side: Tensor, edge: Tensor) -> tuple[Tensor, Tensor]:
    """Two neighbouring texels: wrapped round where textures tile, clamped where they do not."""
    return _wrap(first, side, edge), _wrap(first + 1, side, edge)


def _wrap(index: Tensor, side: Tensor, edge: Tensor) -> Tensor:
    clamped = torch.minimum(index.clamp_min(0), side - 1)
    return torch.where(edge, clamped, index.remainder(side))
