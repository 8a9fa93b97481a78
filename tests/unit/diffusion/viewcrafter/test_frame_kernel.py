import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

_COMPARE = """
import torch
from unit.diffusion.viewcrafter.small import make_condition, make_noisy, make_unet
from fvgen_recon.diffusion.viewcrafter.attention import use_frame_kernels
from fvgen_recon.diffusion.viewcrafter.backbone import ViewCrafterBackbone
from fvgen_recon.diffusion.viewcrafter.frame_kernel import frame_attention

torch.library.wrap_triton = lambda kernel: kernel  # The interpreter needs no tracing.


def plain(parts, num_frames, num_heads):
    heads = [
        x.unflatten(0, (-1, num_frames)).unflatten(3, (num_heads, -1)).permute(0, 2, 3, 1, 4)
        for x in parts
    ]
    out = torch.nn.functional.scaled_dot_product_attention(*heads)
    return out.permute(0, 3, 1, 2, 4).flatten(3).flatten(0, 1)


for clips, frames, pixels, num_heads, size in [
    (1, 16, 10, 2, 16), (2, 25, 7, 3, 32), (1, 5, 3, 1, 16), (1, 40, 2, 5, 64)
]:
    torch.manual_seed(frames)
    whole = torch.randn(clips * frames, pixels, 3 * num_heads * size)
    parts = whole.chunk(3, dim=2)
    out = frame_attention(*parts, frames, num_heads)
    torch.testing.assert_close(out, plain(parts, frames, num_heads), atol=1e-5, rtol=1e-5)

unet = make_unet()
backbone, condition, (x_t, t) = ViewCrafterBackbone(unet), make_condition(unet), make_noisy()
with torch.no_grad():
    expected = backbone(x_t, t, condition)[0]
    use_frame_kernels(unet)
    torch.testing.assert_close(backbone(x_t, t, condition)[0], expected, atol=1e-4, rtol=1e-4)
"""


def test_one_kernel_equals_attention_along_frames():
    # The kernel runs in Triton's interpreter, which is chosen when Triton is imported.
    root = Path(__file__).parents[4]
    paths = f"{root}{os.pathsep}{root / 'tests'}"
    done = subprocess.run(
        [sys.executable, "-c", _COMPARE],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"PYTHONPATH": paths, "TRITON_INTERPRET": "1"},
    )
    assert done.returncode == 0, done.stderr
