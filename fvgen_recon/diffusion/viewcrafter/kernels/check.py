"""Whether the kernels compile and are right on this GPU, found out in seconds."""

import warnings
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fvgen_recon.diffusion.viewcrafter.kernels.frames import frame_attention
from fvgen_recon.diffusion.viewcrafter.kernels.norm import group_norm
from fvgen_recon.diffusion.viewcrafter.kernels.pointwise import add_bias, gated_gelu
from fvgen_recon.diffusion.viewcrafter.kernels.rows import add_norm

_TOLERANCE = 0.02
"""Largest relative error; bfloat16 alone makes 0.004."""


@torch.no_grad()
def working_kernels(device: torch.device, dtype: torch.dtype) -> set[str]:
    """Return the names of the kernels that work; a warning names each one that does not."""
    checks = {
        "norm": _check_norm,
        "pointwise": _check_pointwise,
        "rows": _check_rows,
        "frames": _check_frames,
    }
    rng = torch.Generator(device).manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=rng, device=device).to(dtype)

    found = set()
    for name, check in checks.items():
        try:
            error = check(draw)
            reason = "" if error < _TOLERANCE else f"its relative error is {error:.2g}"
        except Exception as failure:  # Compilers fail in many ways, and plain layers always work.
            reason = f"{type(failure).__name__}: {str(failure)[:200]}"
        if reason:
            warnings.warn(f"The kernel '{name}' is left out: {reason}.", stacklevel=2)
        else:
            found.add(name)
    return found


def _check_norm(draw: Callable[..., Tensor]) -> float:
    errors = []
    for channels in (128, 320):
        x, added = draw(2, channels, 24, 40), draw(2, channels)
        norm = nn.GroupNorm(32, channels)
        norm.weight, norm.bias = nn.Parameter(draw(channels)), nn.Parameter(draw(channels))
        plain = F.group_norm(
            x.float() + added.float()[:, :, None, None],
            32, norm.weight.float(), norm.bias.float(),
        )  # fmt: skip
        errors.append(_error(group_norm(x, norm, added=added, silu=True), F.silu(plain)))
    return max(errors)


def _check_pointwise(draw: Callable[..., Tensor]) -> float:
    x, other, bias = draw(2, 320, 24, 40), draw(2, 320, 24, 40), draw(320)
    plain = x.float() + other.float() + bias.float()[:, None, None]
    both = draw(500, 2560)
    value, gate = both.float().chunk(2, dim=-1)
    return max(
        _error(add_bias(x, bias, other), plain),
        _error(gated_gelu(both), value * F.gelu(gate)),
    )


def _check_rows(draw: Callable[..., Tensor]) -> float:
    errors = []
    for channels in (320, 1280):
        x, other = draw(70, channels), draw(70, channels)
        norm = nn.LayerNorm(channels)
        norm.weight, norm.bias = nn.Parameter(draw(channels)), nn.Parameter(draw(channels))
        plain = x.float() + other.float()
        total, normed = add_norm(x, other, norm)
        errors.append(_error(total, plain))
        plain = F.layer_norm(plain, (channels,), norm.weight.float(), norm.bias.float())
        errors.append(_error(normed, plain))
    return max(errors)


def _check_frames(draw: Callable[..., Tensor]) -> float:
    errors = []
    for num_frames in (16, 25):
        parts = draw(num_frames, 30, 3 * 5 * 64).chunk(3, dim=2)
        query, key, value = (x.float().unflatten(2, (5, 64)).permute(1, 2, 0, 3) for x in parts)
        plain = F.scaled_dot_product_attention(query, key, value).permute(2, 0, 1, 3).flatten(2)
        ours = frame_attention(parts[0], parts[1], parts[2], num_frames, 5)
        errors.append(_error(ours, plain))
    return max(errors)


def _error(ours: Tensor, plain: Tensor) -> float:
    return float((ours.float() - plain).norm() / plain.norm())
