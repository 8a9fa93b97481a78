"""Attention along frames as one GPU kernel, for inference.

Each pixel has a sequence of its own, of 16 or 25 frames. General kernels give a thread block to
each sequence and head and leave most of it idle. Here a block takes as many pixels as fill a tile
of 64 rows and masks what belongs to other pixels, so tensor cores do some work in vain and memory,
which decides the time, is read and written once, in the order in which tokens lie.
"""

# Triton's types do not describe what its compiler takes.
# pyright: reportArgumentType=false, reportCallIssue=false

import torch
import triton
import triton.language as tl
from jaxtyping import Float
from torch import Tensor

from fvgen_recon.diffusion.viewcrafter.kernels.inference import refuse_gradients

_ROWS = 64
"""Rows of a tile: frames of one or several pixels."""


@triton.jit
def _frame_attention_kernel(  # noqa: PLR0913, PLR0917 - as kernels are called
    query,
    key,
    value,
    out,
    num_pixels,
    num_frames,
    stride,
    out_stride,
    scale,
    FRAMES: tl.constexpr,
    ROWS: tl.constexpr,
    HEAD: tl.constexpr,
):
    """Attend along the frames of `ROWS // FRAMES` pixels in one head of one clip."""
    head = tl.program_id(0)
    rows = tl.arange(0, ROWS)
    frame = rows % FRAMES
    pixel = tl.program_id(1) * (ROWS // FRAMES) + rows // FRAMES
    known = frame < num_frames
    inside = known & (pixel < num_pixels)
    token = (tl.program_id(2) * num_frames + frame).to(tl.int64) * num_pixels + pixel
    column = head * HEAD + tl.arange(0, HEAD)
    offsets = token[:, None] * stride + column[None, :]
    q = tl.load(query + offsets, mask=inside[:, None], other=0.0)
    k = tl.load(key + offsets, mask=inside[:, None], other=0.0)
    v = tl.load(value + offsets, mask=inside[:, None], other=0.0)
    scores = tl.dot(q, tl.trans(k), input_precision="ieee") * scale
    seen = (pixel[:, None] == pixel[None, :]) & known[None, :]
    scores = tl.where(seen, scores, float("-inf"))
    weights = tl.exp2(scores - tl.max(scores, 1)[:, None])
    total = tl.sum(weights, 1)
    result = tl.dot(weights.to(v.dtype), v, input_precision="ieee") / total[:, None]
    places = token[:, None] * out_stride + column[None, :]
    tl.store(out + places, result.to(out.dtype.element_ty), mask=inside[:, None])


def frame_attention(
    query: Float[Tensor, "R N C"],
    key: Float[Tensor, "R N C"],
    value: Float[Tensor, "R N C"],
    num_frames: int,
    num_heads: int,
) -> Float[Tensor, "R N C"]:
    """Attend along the frames of each pixel; no gradients.

    Args:
        query: Queries of R = B * T frames, with the channels of a head together.
        key: Keys of the same shape and strides.
        value: Values of the same shape and strides.
        num_frames: T, at most 64.
        num_heads: Heads; C / heads is a power of two of at least 16.

    Returns:
        The weighted values, contiguous.
    """
    refuse_gradients(query)
    num_rows, num_pixels, width = query.shape
    out = torch.empty((num_rows, num_pixels, width), dtype=query.dtype, device=query.device)
    frames = max(16, triton.next_power_of_2(num_frames))
    grid = (num_heads, triton.cdiv(num_pixels, _ROWS // frames), num_rows // num_frames)
    head = width // num_heads
    _frame_attention_kernel[grid](
        query,
        key,
        value,
        out,
        num_pixels,
        num_frames,
        query.stride(1),
        out.stride(1),
        head**-0.5 * 1.4426950408889634,
        FRAMES=frames,
        ROWS=_ROWS,
        HEAD=head,
        num_warps=4,
    )
    return out
