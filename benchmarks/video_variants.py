"""Other ways to compute parts of the video model, each compared in time and output.

Layers are timed alone, at the sizes of one clip, so that a dozen ways fit in a few minutes.
"""

import copy
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.models.upsampling import Upsample2D
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from video_rig import Rig, relative_error, timed

from fvgen_recon.diffusion.viewcrafter.attention import use_frame_kernels
from fvgen_recon.diffusion.viewcrafter.norm import ChannelNorm, use_channel_norms
from fvgen_recon.diffusion.viewcrafter.upsample import MergedUpsample

Result = dict[str, float]

BACKENDS = ("FLASH_ATTENTION", "CUDNN_ATTENTION", "EFFICIENT_ATTENTION")

COMPILE_OPTIONS: dict[str, dict[str, Any]] = {
    "default": {},
    "tuned pointwise": {"max_autotune_pointwise": True},
    "coordinate descent": {"coordinate_descent_tuning": True},
    "tuned products": {"max_autotune_gemm": True, "max_autotune_gemm_backends": "ATEN,TRITON"},
}
"""Options of the compiler by name."""

_CALLS = 5
"""Calls between two looks at the clock: a layer takes little more than a look."""


def attention_ways(rig: Rig) -> Iterator[tuple[str, Result]]:
    """Time attention in a frame, to the context and along frames, at each level."""
    height, width = rig.latents.shape[-2:]
    frames, heads, size = rig.latents.shape[2], 5, 64
    for level in range(3):
        pixels = height * width // 4**level
        tokens = torch.randn(frames, pixels, 3 * heads * size, device=rig.device).bfloat16()
        query, key, value = (x.unflatten(2, (heads, size)) for x in tokens.chunk(3, dim=2))
        along = [x.permute(1, 2, 0, 3) for x in (query, key, value)]
        inside = [x.transpose(1, 2) for x in (query, key, value)]
        context = torch.randn(1, heads, 256, size, device=rig.device).bfloat16()
        folded = query.flatten(0, 1)[None].transpose(1, 2)
        kinds = {
            "in a frame": inside,
            "to 77 tokens": [folded, context[:, :, :77], context[:, :, :77]],
            "to 256 tokens": [folded, context, context],
            "along frames": along,
        }
        for kind, x in kinds.items():
            for backend in BACKENDS:
                with sdpa_kernel(getattr(SDPBackend, backend)):
                    yield f"{kind}, level {level}, {backend.lower()}", _time(_attend, *x)
        yield f"along frames, level {level}, one kernel", _frame_kernel(tokens, along, heads)
        heads *= 2


def projection_ways(rig: Rig) -> Iterator[tuple[str, Result]]:
    """Time queries, keys and values as three products, as one, and as one of joined weights."""
    height, width = rig.latents.shape[-2:]
    for level, channels in enumerate((320, 640, 1280)):
        rows = rig.latents.shape[2] * height * width // 4**level
        x = torch.randn(rows, channels, device=rig.device).bfloat16()
        parts = [torch.randn(channels, channels, device=rig.device).bfloat16() for _ in range(3)]
        whole = torch.cat(parts)
        ways: dict[str, Callable[[], Any]] = {
            "three": lambda x=x, parts=parts: [F.linear(x, part) for part in parts],
            "one": lambda x=x, whole=whole: F.linear(x, whole),
            "joined": lambda x=x, parts=parts: F.linear(x, torch.cat(parts)),
        }
        for name, work in ways.items():
            yield f"projections, level {level}, {name}", _time(work)


def picture_attention_ways(rig: Rig) -> Iterator[tuple[str, Result]]:
    """Time the attention in the autoencoder's middle: one head of 512 channels."""
    height, width = rig.latents.shape[-2:]
    shape = (rig.latents.shape[2], 1, height * width, 512)
    x = [torch.randn(shape, device=rig.device).bfloat16() for _ in range(3)]
    expected = _attend(*x)
    plain = torch.compile(_plain_attention, dynamic=False)
    for name, work in (("efficient", _attend), ("matrix products", plain)):
        yield f"autoencoder, {name}", _time(work, *x, expected=expected)


def upsampling_ways(rig: Rig) -> Iterator[tuple[str, Result]]:
    """Time doubling with a convolution, and one transposed convolution, at the decoder's sizes."""
    height, width = rig.latents.shape[-2:]
    for level, channels in enumerate((512, 512, 256)):
        plain = Upsample2D(channels, use_conv=True).to(rig.device, torch.bfloat16)
        plain.to(memory_format=torch.channels_last)
        x = _random(rig, rig.latents.shape[2], channels, height << level, width << level)
        for name, module in (("plain", plain), ("merged", MergedUpsample(plain))):
            yield f"upsampling {level}, {name}", _time(module, x, expected=_call(plain, x))


def layer_ways(rig: Rig) -> Iterator[tuple[str, Callable[[], Result]]]:
    """Yield, by name, ways to run one layer of the top level and the top of the decoder."""
    unet, frames = rig.pipeline.unet, rig.latents.shape[2]
    layer, decoder = _plain(unet.up_blocks[-1]), _plain(rig.pipeline.vae.decoder.up_blocks[-1])
    height, width = rig.latents.shape[-2:]
    first = unet.config["block_out_channels"][0]
    x = _random(rig, frames, layer.resnets[1].in_channels, height, width)
    picture = _random(rig, frames, decoder.resnets[0].in_channels, 8 * height, 8 * width)
    time = torch.randn(frames, 4 * first, device=rig.device).bfloat16()
    context = rig.condition.context.bfloat16()

    def run(module: nn.Module, **options: Any) -> Callable[[], Result]:
        def work() -> Result:
            if module is layer or isinstance(module, type(layer)):
                call, inputs = module._layer, (x, time, context, 1, frames)
                expected = _call(layer._layer, *inputs)
            else:
                call, inputs = module.forward, (picture,)
                expected = _call(decoder, picture)
            fast = torch.compile(call, dynamic=False, options=options)
            return _time(fast, *inputs, expected=expected)

        return work

    channel, kernel = _fast(layer), _fast(layer)
    use_frame_kernels(kernel)
    yield "layer, attention along frames in one kernel", run(kernel)
    for name, options in COMPILE_OPTIONS.items():
        yield f"layer, {name}", run(channel, **options)
        if name != "tuned products":
            yield f"decoder, {name}", run(_fast(decoder), **options)
    yield "layer, group by group", run(layer)
    yield "decoder, group by group", run(decoder)


def _attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(query, key, value)


def _plain_attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    scores = query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5
    return scores.softmax(dim=-1) @ value


def _frame_kernel(tokens: Tensor, along: list[Tensor], heads: int) -> Result:
    from fvgen_recon.diffusion.viewcrafter.kernels.frames import frame_attention

    expected = _attend(*(x.float() for x in along)).permute(2, 0, 1, 3).flatten(2)
    parts = tokens.chunk(3, dim=2)
    return _time(lambda: frame_attention(*parts, tokens.shape[0], heads), expected=expected)


def _random(rig: Rig, *shape: int) -> Tensor:
    x = torch.randn(shape, device=rig.device).bfloat16()
    return x.contiguous(memory_format=torch.channels_last)


def _plain(module: nn.Module) -> Any:
    """Copy a module with group normalisation as PyTorch computes it."""
    module = copy.deepcopy(module)
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, ChannelNorm):
                norm = nn.GroupNorm(child.num_groups, child.num_channels, child.eps, device="meta")
                norm.weight, norm.bias = child.weight, child.bias
                setattr(parent, name, norm)
    return module


def _fast(module: nn.Module) -> Any:
    module = copy.deepcopy(module)
    use_channel_norms(module)
    return module


@torch.no_grad()
def _call(module: Callable[..., Tensor], *inputs: Any) -> Tensor:
    return module(*inputs)


@torch.no_grad()
def _time(work: Callable[..., Any], *inputs: Any, expected: Tensor | None = None) -> Result:
    """Time calls of `work`; say how far its output is from what is expected."""
    error = {} if expected is None else {"error": relative_error(work(*inputs), expected)}

    def calls() -> None:
        for _ in range(_CALLS):
            work(*inputs)

    result = timed(calls, 7)
    spread = {name: result[name] / _CALLS for name in ("median_s", "min_s", "max_s")}
    return {"first_s": result["first_s"], **spread, **error}
