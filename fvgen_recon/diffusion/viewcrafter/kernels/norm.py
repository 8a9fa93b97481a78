"""Group normalisation of channels-last tensors, with the activation after it.

Channels of a group lie in runs of 4 to 80 numbers, which kernels that reduce group by group read
badly. Here whole channels are summed over a share of the pixels each, shares and channels are
joined into groups, and a last pass applies the result: the input is read twice and nothing else of
its size is touched. A bias or a time embedding that the input lacks only moves the means.
"""

# Triton's types do not describe what its compiler takes.
# pyright: reportArgumentType=false, reportCallIssue=false

import math

import torch
import triton
import triton.language as tl
from jaxtyping import Float
from torch import Tensor

from fvgen_recon.diffusion.viewcrafter.kernels.inference import refuse_gradients

_TILE = 4096
"""Numbers that a block loads at once."""
_BLOCKS = 1536
"""Blocks that keep a large GPU busy."""
_SHARES = 64
"""Shares that are joined at once."""


@triton.jit
def _sum_kernel(  # noqa: PLR0913, PLR0917 - as kernels are called
    x,
    sums,
    squares,
    num_pixels,
    channels,
    share,
    num_shares,
    BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
):
    """Sum channels, and their squares, about their first pixel over a share of the pixels."""
    column = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    start = tl.program_id(1) * share
    image = x + tl.program_id(2).to(tl.int64) * num_pixels * channels
    pivot = tl.load(image + column).to(tl.float32)
    # One sum for each row of the tile: rows are joined once, after the loop.
    total = tl.zeros((ROWS, BLOCK), tl.float32)
    square = tl.zeros((ROWS, BLOCK), tl.float32)
    end = tl.minimum(start + share, num_pixels)
    for first in range(start, end, ROWS):
        row = first + tl.arange(0, ROWS)
        places = row.to(tl.int64)[:, None] * channels + column[None, :]
        inside = (row < end)[:, None]
        values = tl.load(image + places, mask=inside, other=0.0).to(tl.float32)
        values = tl.where(inside, values - pivot[None, :], 0.0)
        total += values
        square += values * values
    place = (tl.program_id(2) * num_shares + tl.program_id(1)) * channels + column
    tl.store(sums + place, tl.sum(total, 0))
    tl.store(squares + place, tl.sum(square, 0))


@triton.jit
def _join_kernel(  # noqa: PLR0913, PLR0917 - as kernels are called
    x,
    sums,
    squares,
    added,
    weight,
    centre,
    scale,
    num_pixels,
    channels,
    group,
    num_shares,
    added_stride,
    eps,
    WIDTH: tl.constexpr,
    SHARES: tl.constexpr,
    HAS_ADDED: tl.constexpr,
):
    """Join the sums of one group's channels into what the last pass subtracts and multiplies."""
    image = tl.program_id(1)
    lane = tl.arange(0, WIDTH)
    column = tl.program_id(0) * group + lane
    known = lane < group
    total = tl.zeros((WIDTH,), tl.float32)
    square = tl.zeros((WIDTH,), tl.float32)
    for first in range(0, num_shares, SHARES):
        share = first + tl.arange(0, SHARES)
        places = (image * num_shares + share)[:, None] * channels + column[None, :]
        inside = (share < num_shares)[:, None] & known[None, :]
        total += tl.sum(tl.load(sums + places, mask=inside, other=0.0), 0)
        square += tl.sum(tl.load(squares + places, mask=inside, other=0.0), 0)
    pivot = tl.load(x + image.to(tl.int64) * num_pixels * channels + column, mask=known, other=0.0)
    more = tl.zeros((WIDTH,), tl.float32)
    if HAS_ADDED:
        more = tl.load(added + image * added_stride + column, mask=known, other=0.0).to(tl.float32)
    offset = total / num_pixels
    mean = tl.where(known, pivot.to(tl.float32) + more + offset, 0.0)
    pooled = tl.sum(mean, 0) / group
    spread = square / num_pixels - offset * offset + (mean - pooled) * (mean - pooled)
    variance = tl.sum(tl.where(known, spread, 0.0), 0) / group
    deviation = tl.rsqrt(tl.maximum(variance, 0.0) + eps)
    factor = tl.load(weight + column, mask=known, other=0.0).to(tl.float32)
    tl.store(centre + image * channels + column, pooled - more, mask=known)
    tl.store(scale + image * channels + column, deviation * factor, mask=known)


@triton.jit
def _apply_kernel(  # noqa: PLR0913, PLR0917 - as kernels are called
    x,
    out,
    centre,
    scale,
    bias,
    num_pixels,
    channels,
    BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
    SILU: tl.constexpr,
):
    """Normalise a tile, and activate it."""
    column = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    row = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    image = tl.program_id(2)
    places = (image.to(tl.int64) * num_pixels + row)[:, None] * channels + column[None, :]
    inside = (row < num_pixels)[:, None]
    values = tl.load(x + places, mask=inside, other=0.0).to(tl.float32)
    middle = tl.load(centre + image * channels + column)
    factor = tl.load(scale + image * channels + column)
    moved = tl.load(bias + column).to(tl.float32)
    values = (values - middle[None, :]) * factor[None, :] + moved[None, :]
    if SILU:
        values = values * tl.sigmoid(values)
    tl.store(out + places, values.to(out.dtype.element_ty), mask=inside)


def group_norm(
    x: Float[Tensor, "N C *S"],
    norm: torch.nn.GroupNorm,
    *,
    added: Float[Tensor, "N C"] | Float[Tensor, "C"] | None = None,
    silu: bool = False,
) -> Float[Tensor, "N C *S"]:
    """Normalise `x + added`.

    Args:
        x: The input; channels-last, or it is copied to that layout.
        norm: Number of groups, epsilon, weight and bias.
        added: What the input lacks: one number a channel, or an image and a channel.
        silu: Whether SiLU follows.

    Returns:
        The result in the layout and precision of the input.
    """
    refuse_gradients(x)
    rows = x.movedim(1, -1).contiguous()
    out = torch.empty_like(rows)
    num_images, channels = rows.shape[0], rows.shape[-1]
    num_pixels = rows[0].numel() // channels
    block = math.gcd(channels, 256)
    tile = max(1, _TILE // block)
    parts = channels // block
    num_shares = max(1, min(_BLOCKS // (num_images * parts), triton.cdiv(num_pixels, tile)))
    share = triton.cdiv(num_pixels, num_shares)
    options = {"dtype": torch.float32, "device": x.device}
    sums, squares = torch.empty(2, num_images, num_shares, channels, **options)
    _sum_kernel[(parts, num_shares, num_images)](
        rows, sums, squares, num_pixels, channels, share, num_shares, BLOCK=block, ROWS=tile
    )
    centre, scale = torch.empty(2, num_images, channels, **options)
    group = channels // norm.num_groups
    _join_kernel[(norm.num_groups, num_images)](
        rows, sums, squares, rows if added is None else added, norm.weight, centre, scale,
        num_pixels, channels, group, num_shares,
        added.stride(0) if added is not None and added.ndim > 1 else 0, norm.eps,
        WIDTH=triton.next_power_of_2(group), SHARES=_SHARES, HAS_ADDED=added is not None,
    )  # fmt: skip
    _apply_kernel[(parts, triton.cdiv(num_pixels, tile), num_images)](
        rows, out, centre, scale, norm.bias, num_pixels, channels,
        BLOCK=block, ROWS=tile, SILU=silu,
    )  # fmt: skip
    return out.movedim(-1, 1)
