"""What calls without gradients are recorded of: the same weights in layers of our own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

CODE = """
import torch
from unit.diffusion.viewcrafter.small import make_condition, make_noisy, make_unet
from fvgen_recon.diffusion.viewcrafter.backbone import ViewCrafterBackbone
from fvgen_recon.distill.recording import fused_twin

unet = make_unet(
    image_context="per_frame",
    block_out_channels=(32,),
    attention_levels=(True,),
    layers_per_block=1,
)
plain = ViewCrafterBackbone(unet)
twin = fused_twin(plain)
(x_t, t), condition = make_noisy(), make_condition(unet)
with torch.no_grad():
    for weight in plain.parameters():
        weight.add_(0.1 * torch.randn_like(weight))
    expected, (mid,) = plain(x_t, t, condition, return_mid=True)
    found, (fused_mid,) = twin(x_t, t, condition, return_mid=True)
torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
torch.testing.assert_close(fused_mid, mid, rtol=1e-4, atol=1e-4)
assert type(twin.unet.conv_norm_out) is not type(unet.conv_norm_out)
assert all(p is q for p, q in zip(plain.parameters(), twin.parameters(), strict=True))
plain(x_t, t, condition)[0].sum().backward()
assert all(p.grad is not None for p in plain.parameters())
"""


@pytest.mark.slow
def test_a_fused_twin_follows_the_weights_and_leaves_gradients_alone() -> None:
    # Kernels run in Triton's interpreter, which is chosen when Triton is imported.
    root = Path(__file__).parents[3]
    done = subprocess.run(
        [sys.executable, "-c", CODE],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ
        | {"PYTHONPATH": f"{root}{os.pathsep}{root / 'tests'}", "TRITON_INTERPRET": "1"},
    )
    assert done.returncode == 0, done.stderr
