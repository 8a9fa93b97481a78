"""Sums with a bias, and gated activations, each in one pass over memory."""

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
"""Numbers that a block works on."""


@triton.jit
def _add_kernel(  # noqa: PLR0917 - as kernels are called
    x,
    other,
    bias,
    num_rows,
    channels,
    BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
    HAS_OTHER: tl.constexpr,
):
    """Add a number a channel and, if there is one, another tensor, in place."""
    row = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = (row < num_rows)[:, None]
    places = row[:, None] * channels + column[None, :]
    values = tl.load(x + places, mask=inside, other=0.0).to(tl.float32)
    values += tl.load(bias + column).to(tl.float32)[None, :]
    if HAS_OTHER:
        values += tl.load(other + places, mask=inside, other=0.0).to(tl.float32)
    tl.store(x + places, values.to(x.dtype.element_ty), mask=inside)


@triton.jit
def _gated_gelu_kernel(x, out, num_rows, width, BLOCK: tl.constexpr, ROWS: tl.constexpr):
    """Multiply the first half of each row by the GELU of its second half."""
    row = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = (row < num_rows)[:, None]
    places = row[:, None] * (2 * width) + column[None, :]
    value = tl.load(x + places, mask=inside, other=0.0).to(tl.float32)
    gate = tl.load(x + places + width, mask=inside, other=0.0).to(tl.float32)
    value *= 0.5 * gate * (1.0 + tl.erf(gate * 0.7071067811865476))
    places = row[:, None] * width + column[None, :]
    tl.store(out + places, value.to(out.dtype.element_ty), mask=inside)


def add_bias(
    x: Float[Tensor, "N C *S"],
    bias: Float[Tensor, "C"],
    other: Float[Tensor, "N C *S"] | None = None,
) -> Float[Tensor, "N C *S"]:
    """Return `x + bias + other`, channels-last; `x` is overwritten.

    Args:
        x: A tensor that nobody else needs.
        bias: One number a channel.
        other: Another tensor to add.
    """
    refuse_gradients(x)
    rows = x.movedim(1, -1).contiguous()
    others = rows if other is None else other.movedim(1, -1).contiguous()
    channels = rows.shape[-1]
    num_rows, (block, tile) = rows.numel() // channels, _tile(channels)
    # Row tiles may be more than the 65,535 that later axes of a grid allow.
    _add_kernel[(triton.cdiv(num_rows, tile), channels // block)](
        rows, others, bias, num_rows, channels, BLOCK=block, ROWS=tile, HAS_OTHER=other is not None
    )
    return rows.movedim(-1, 1)


def gated_gelu(x: Float[Tensor, "*S D"]) -> Float[Tensor, "*S E"]:
    """Return the first half of the last axis times the exact GELU of the second half."""
    refuse_gradients(x)
    rows = x.contiguous()
    width = rows.shape[-1] // 2
    out = torch.empty(*rows.shape[:-1], width, dtype=x.dtype, device=x.device)
    num_rows, (block, tile) = out.numel() // width, _tile(width)
    _gated_gelu_kernel[(triton.cdiv(num_rows, tile), width // block)](
        rows, out, num_rows, width, BLOCK=block, ROWS=tile
    )
    return out


def _tile(channels: int) -> tuple[int, int]:
    """Return how many channels and rows a block works on."""
    block = math.gcd(channels, 256)
    return block, max(1, _TILE // block)
