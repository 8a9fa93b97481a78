import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from unit.diffusion.viewcrafter.small import NUM_FRAMES, make_unet, write_model

from fvgen_recon.diffusion.viewcrafter.pipeline import ViewCrafterPipeline
from fvgen_recon.diffusion.viewcrafter.replay import ReplayedForward, replay_forwards
from fvgen_recon.diffusion.viewcrafter.student import FVGenPipeline

pytest.importorskip("triton")

_SETUP = """
import torch
from torch import nn
from torch.testing import assert_close

torch.manual_seed(0)
"""

_FRAMES = """
from fvgen_recon.diffusion.viewcrafter.kernels.frames import frame_attention

def plain(parts, num_frames, num_heads):
    heads = [
        x.unflatten(0, (-1, num_frames)).unflatten(3, (num_heads, -1)).permute(0, 2, 3, 1, 4)
        for x in parts
    ]
    out = nn.functional.scaled_dot_product_attention(*heads)
    return out.permute(0, 3, 1, 2, 4).flatten(3).flatten(0, 1)

for clips, frames, pixels, num_heads, size in [
    (1, 16, 10, 2, 16), (2, 25, 7, 3, 32), (1, 5, 3, 1, 16), (1, 40, 2, 5, 64)
]:
    whole = torch.randn(clips * frames, pixels, 3 * num_heads * size)
    parts = whole.chunk(3, dim=2)
    out = frame_attention(*parts, frames, num_heads)
    assert_close(out, plain(parts, frames, num_heads), atol=1e-5, rtol=1e-5)
"""

_NORMS = """
from fvgen_recon.diffusion.viewcrafter.kernels.norm import group_norm

for shape, offset in [
    ((3, 64, 5), 0.0), ((2, 320, 17, 9), 0.0), ((2, 96, 4, 6, 7), 300.0), ((1, 1920, 2, 3), 1.0),
    ((1, 64, 30, 40), 3.0), ((2, 32, 1, 1), 0.0)
]:
    norm = nn.GroupNorm(32, shape[1], eps=1e-5)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    x = torch.randn(shape) * torch.rand(shape[1], *[1] * (len(shape) - 2)) + offset
    axes = (slice(None), slice(None), *[None] * (len(shape) - 2))
    for added in (None, torch.randn(shape[1]), torch.randn(shape[:2])):
        moved = x if added is None else x + (added.expand(shape[:2])[axes])
        expected = norm.double()(moved.double()).float()
        norm.float()
        # One number a group has variance 0, and 1 / sqrt(eps) multiplies its rounding by 316.
        tolerance = 2e-5 + 2e-6 * offset if x[0, 0].numel() > 1 else 1e-4
        silu = added is not None
        out = group_norm(x, norm, added=added, silu=silu)
        expected = nn.functional.silu(expected) if silu else expected
        assert_close(out, expected, atol=tolerance, rtol=1e-5)
assert_close(
    group_norm(torch.full((1, 32, 4, 4), 7.0), nn.GroupNorm(32, 32)), torch.zeros(1, 32, 4, 4)
)
x = torch.randn(2, 64, 6, 4).to(memory_format=torch.channels_last).half()
out = group_norm(x, nn.GroupNorm(32, 64).half())
assert out.dtype == torch.float16
assert out.is_contiguous(memory_format=torch.channels_last)
"""

_POINTWISE = """
from fvgen_recon.diffusion.viewcrafter.kernels.pointwise import add_bias, gated_gelu

for shape in [(2, 6, 5, 4), (3, 320, 7, 9), (1, 4, 40, 50), (2, 64, 3, 5, 4)]:
    x, other, bias = torch.randn(shape), torch.randn(shape), torch.randn(shape[1])
    moved = x + bias[(slice(None), *[None] * (len(shape) - 2))]
    assert_close(add_bias(x.clone(), bias), moved)
    assert_close(add_bias(x.clone(), bias, other), moved + other)
for shape in [(2, 5, 128), (3000, 24), (7, 11, 2560)]:
    x = torch.randn(shape)
    value, gate = x.chunk(2, dim=-1)
    assert_close(gated_gelu(x), value * nn.functional.gelu(gate))
"""

_ROWS = """
from fvgen_recon.diffusion.viewcrafter.kernels.rows import add_norm

for shape in [(2, 9, 320), (3000, 24), (7, 1280)]:
    norm = nn.LayerNorm(shape[-1])
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    x, other = torch.randn(shape) + 3, torch.randn(shape)
    for added in (None, other):
        total, normed = add_norm(x, added, norm)
        expected = x if added is None else x + other
        assert_close(total, expected)
        assert_close(normed, norm(expected), atol=1e-5, rtol=1e-5)
"""

_GRADIENTS = """
from fvgen_recon.diffusion.viewcrafter.kernels.frames import frame_attention
from fvgen_recon.diffusion.viewcrafter.kernels.norm import group_norm
from fvgen_recon.diffusion.viewcrafter.kernels.pointwise import add_bias, gated_gelu
from fvgen_recon.diffusion.viewcrafter.kernels.rows import add_norm
from fvgen_recon.errors import InputError

x = torch.randn(4, 32, 32, requires_grad=True)
for call in [
    lambda: group_norm(x, nn.GroupNorm(32, 32)),
    lambda: add_bias(x, torch.zeros(32)),
    lambda: gated_gelu(x),
    lambda: add_norm(x, None, nn.LayerNorm(32)),
    lambda: frame_attention(x, x, x, 4, 2),
]:
    with torch.no_grad():
        call()
    try:
        call()
    except InputError as error:
        assert "make no gradients" in str(error)
    else:
        raise AssertionError("a gradient was lost")
"""

_NETWORKS = """
from unit.diffusion.viewcrafter import test_fast_layer as fast
from fvgen_recon.diffusion.viewcrafter import fused
from fvgen_recon.diffusion.viewcrafter.upsample import merge_upsampling_layers

unet, vae = fast._parts()
expected, names = fast._outputs(unet, vae), (list(unet.state_dict()), list(vae.state_dict()))
unet.to_channels_last()
for module in (unet, vae):
    merge_upsampling_layers(module)
    fused.use_fused_layers(module)
assert (list(unet.state_dict()), list(vae.state_dict())) == names
kinds = {type(m) for net in (unet, vae) for m in net.modules()}
assert not kinds & set(fused._FUSED) - {nn.Conv2d}, kinds
assert fused.FusedConv in kinds
for value, plain in zip(fast._outputs(unet, vae), expected, strict=True):
    assert_close(value, plain, atol=1e-4, rtol=1e-4)
"""


_COMPILE = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from fvgen_recon.diffusion.viewcrafter.kernels import frames, norm, pointwise, rows

CONSTANTS = {
    "BLOCK": 64, "ROWS": 64, "SILU": True, "HAS_ADDED": True, "HAS_OTHER": True, "HEAD": 64,
    "FRAMES": 16, "WIDTH": 16, "SHARES": 64,
}
FLOATS = {"sums": "*fp32", "squares": "*fp32", "centre": "*fp32", "scale": "*fp32", "eps": "fp32"}
for kernel, half, floats in [
    (norm._sum_kernel, "x", {}),
    (norm._join_kernel, "x added weight", {}),
    (norm._apply_kernel, "x bias out", {}),
    (pointwise._add_kernel, "x other bias", {}),
    (pointwise._gated_gelu_kernel, "x out", {}),
    (rows._norm_kernel, "x other weight bias total out", {}),
    (frames._frame_attention_kernel, "query key value out", {"scale": "fp32"}),
]:
    kinds = FLOATS | floats | dict.fromkeys(half.split(), "*bf16")
    kinds |= dict.fromkeys(CONSTANTS, "constexpr")
    signature = {name: kinds.get(name, "i32") for name in kernel.arg_names}
    constants = {n: v for n, v in CONSTANTS.items() if n in signature}
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants)
    assert triton.compile(source, target=GPUTarget("cuda", 90, 32)).asm["cubin"]
"""

_PIPELINE = """
import sys
import warnings
from unit.diffusion.viewcrafter.small import make_guidance
from fvgen_recon.diffusion.viewcrafter.student import FVGenPipeline

def seed():
    return torch.Generator().manual_seed(0)

plain = FVGenPipeline.from_pretrained(sys.argv[1]).to("cuda")
torch.backends.cudnn.allow_tf32 = False
for dtype, tolerance in ((torch.float32, 1e-3), (torch.bfloat16, 0.05)):
    pipeline = FVGenPipeline.from_pretrained(sys.argv[1]).to("cuda", dtype)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*(left out|not recorded)")
        pipeline.enable_kernels()
        for guidance in (make_guidance(), make_guidance(seed=3), make_guidance()):
            expected = plain(guidance, generator=seed()).frames
            frames = pipeline(guidance, generator=seed()).frames
            assert (frames - expected).square().mean().sqrt() < tolerance
    again = pipeline.to("cpu").to("cuda")(guidance, generator=seed()).frames
    assert (again - frames).abs().max() < tolerance
"""

_CHECK = """
import warnings
from fvgen_recon.diffusion.viewcrafter.kernels import check

device = torch.device("cpu")
assert check.working_kernels(device, torch.float32) == {"norm", "pointwise", "rows", "frames"}
check.add_bias = lambda x, bias, other: x
check.frame_attention = None
with warnings.catch_warnings(record=True) as seen:
    assert check.working_kernels(device, torch.float32) == {"norm", "rows"}
assert "'pointwise' is left out: its relative error" in str(seen[0].message)
assert "'frames' is left out: TypeError" in str(seen[1].message)
"""


def _run(body, *arguments, **variables):
    # In a process of its own: Triton reads the source of functions, and the shape checks of these
    # tests wrap them; and its interpreter is chosen when it is imported.
    root = Path(__file__).parents[4]
    found = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    paths = os.pathsep.join([str(root), str(root / "tests"), *found])
    done = subprocess.run(
        [sys.executable, "-c", _SETUP + body, *arguments],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"PYTHONPATH": paths} | variables,
    )
    assert done.returncode == 0, done.stderr


BODIES = {
    "frames": _FRAMES,
    "norms": _NORMS,
    "pointwise": _POINTWISE,
    "rows": _ROWS,
    "gradients": _GRADIENTS,
    "networks": _NETWORKS,
    "check": _CHECK,
}


@pytest.mark.slow
@pytest.mark.parametrize("body", BODIES)
def test_kernels_equal_plain_layers(body):
    _run(BODIES[body], TRITON_INTERPRET="1")


def test_kernels_compile_for_an_h100():
    _run(_COMPILE)


@pytest.mark.gpu
def test_kernels_and_replays_change_frames_by_rounding_only(tmp_path):
    teacher = ViewCrafterPipeline.from_pretrained(write_model(tmp_path))
    student = FVGenPipeline(**teacher.components, base_scale=0.3, num_frames=[NUM_FRAMES])
    student.save_pretrained(tmp_path / "student")
    _run(_PIPELINE, str(tmp_path / "student"))


def test_without_kernels_layers_stay_plain():
    from fvgen_recon.diffusion.viewcrafter.fused import use_fused_layers

    unet = make_unet()
    kinds = [type(module) for module in unet.modules()]
    use_fused_layers(unet, set())
    assert [type(module) for module in unet.modules()] == kinds


def test_a_replayed_forward_runs_as_before_without_a_gpu():
    unet = make_unet()
    replay_forwards([unet])
    replay_forwards([unet])
    assert isinstance(unet.forward, ReplayedForward)
    assert not isinstance(unet.forward.plain, ReplayedForward)
    x, t, context = torch.randn(1, 8, 4, 8, 8), torch.tensor([3]), torch.randn(1, 93, 24)
    with torch.no_grad():
        expected = unet.forward.plain(x, t, context)[0]
        output, features = unet(x, t, context, return_mid=True)
    assert torch.equal(output, expected)
    assert len(features) == 1
