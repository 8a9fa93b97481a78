"""Layer normalisation of a sum: the sum and its normalised rows in one pass over memory."""

# Triton's types do not describe what its compiler takes.
# pyright: reportArgumentType=false, reportCallIssue=false

import torch
import triton
import triton.language as tl
from jaxtyping import Float
from torch import Tensor

from fvgen_recon.diffusion.viewcrafter.kernels.inference import refuse_gradients

_TILE = 4096
"""Numbers that a block works on."""


@triton.jit
def _norm_kernel(  # noqa: PLR0913, PLR0917 - as kernels are called
    x,
    other,
    weight,
    bias,
    total,
    out,
    num_rows,
    channels,
    eps,
    WIDTH: tl.constexpr,
    ROWS: tl.constexpr,
    HAS_OTHER: tl.constexpr,
):
    """Add rows, keep the sum, and normalise it."""
    row = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)
    column = tl.arange(0, WIDTH)
    known = column < channels
    inside = (row < num_rows)[:, None] & known[None, :]
    places = row[:, None] * channels + column[None, :]
    values = tl.load(x + places, mask=inside, other=0.0).to(tl.float32)
    if HAS_OTHER:
        values += tl.load(other + places, mask=inside, other=0.0).to(tl.float32)
        stored = values.to(total.dtype.element_ty)
        tl.store(total + places, stored, mask=inside)
        values = stored.to(tl.float32)
    mean = tl.sum(values, 1) / channels
    values = tl.where(inside, values - mean[:, None], 0.0)
    deviation = tl.rsqrt(tl.sum(values * values, 1) / channels + eps)
    factor = tl.load(weight + column, mask=known, other=0.0).to(tl.float32)
    moved = tl.load(bias + column, mask=known, other=0.0).to(tl.float32)
    values = values * deviation[:, None] * factor[None, :] + moved[None, :]
    tl.store(out + places, values.to(out.dtype.element_ty), mask=inside)


def add_norm(
    x: Float[Tensor, "*S C"], other: Float[Tensor, "*S C"] | None, norm: torch.nn.LayerNorm
) -> tuple[Float[Tensor, "*S C"], Float[Tensor, "*S C"]]:
    """Return `x + other` and its layer normalisation.

    Args:
        x: Tokens.
        other: What is added; none leaves the sum `x`.
        norm: Weight, bias and epsilon.
    """
    refuse_gradients(x)
    rows = x.contiguous()
    out = torch.empty_like(rows)
    total = rows if other is None else torch.empty_like(rows)
    channels = rows.shape[-1]
    width = triton.next_power_of_2(channels)
    num_rows, tile = rows.numel() // channels, max(1, _TILE // width)
    _norm_kernel[(triton.cdiv(num_rows, tile),)](
        rows, rows if other is None else other.contiguous(), norm.weight, norm.bias, total, out,
        num_rows, channels, norm.eps, WIDTH=width, ROWS=tile, HAS_OTHER=other is not None,
    )  # fmt: skip
    return total, out
