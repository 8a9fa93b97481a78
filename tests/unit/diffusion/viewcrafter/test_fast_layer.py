import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL
from diffusers.models.upsampling import Upsample2D
from torch import nn
from unit.diffusion.viewcrafter.small import make_condition, make_noisy, make_unet

from fvgen_recon.diffusion.viewcrafter.architecture import vae_config
from fvgen_recon.diffusion.viewcrafter.backbone import ViewCrafterBackbone
from fvgen_recon.diffusion.viewcrafter.kernel import load_kernels
from fvgen_recon.diffusion.viewcrafter.norm import ChannelNorm, use_channel_norms
from fvgen_recon.diffusion.viewcrafter.upsample import MergedUpsample, merge_upsampling_layers
from fvgen_recon.errors import InputError


def _norm(kind, channels=64, eps=1e-5):
    torch.manual_seed(1)
    norm = kind(32, channels, eps=eps)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    return norm


@pytest.mark.parametrize("shape", [(3, 64, 5), (2, 64, 6, 4), (1, 64, 3, 5, 4)])
@pytest.mark.parametrize("offset", [0.0, 300.0])
def test_channel_norm_equals_group_norm(shape, offset):
    torch.manual_seed(0)
    x = torch.randn(shape) * torch.rand(64, *([1] * (len(shape) - 2))) + offset
    expected = _norm(nn.GroupNorm).double()(x.double()).float()
    # float32 resolves numbers near 300 to 3e-5; sums about 0 would lose a hundred times more.
    tolerance = 1e-5 + 2e-6 * offset
    torch.testing.assert_close(_norm(ChannelNorm)(x), expected, atol=tolerance, rtol=1e-5)


def test_channel_norm_of_a_constant_is_its_bias():
    norm = _norm(ChannelNorm)
    out = norm(torch.full((1, 64, 4, 4), 7.0))
    torch.testing.assert_close(out, norm.bias[None, :, None, None].expand_as(out))


def test_channel_norm_keeps_layout_and_precision():
    x = torch.randn(2, 64, 6, 4).to(memory_format=torch.channels_last).bfloat16()
    out = _norm(ChannelNorm)(x)
    assert out.dtype == torch.bfloat16
    assert out.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("size", [(1, 1), (5, 7)])
def test_merged_upsampling_equals_doubling_and_convolution(size):
    torch.manual_seed(0)
    plain = Upsample2D(6, use_conv=True, out_channels=4)
    x = torch.randn(2, 6, *size)
    torch.testing.assert_close(MergedUpsample(plain)(x), plain(x), atol=1e-5, rtol=1e-5)


def _parts():
    torch.manual_seed(0)
    vae = AutoencoderKL(**vae_config(block_out_channels=(32, 32, 64, 64), layers_per_block=1))
    return make_unet(), vae.eval()


def _hasten(unet, vae):
    unet.to_channels_last()
    for module in (unet, vae):
        use_channel_norms(module)
        merge_upsampling_layers(module)


@torch.no_grad()
def _outputs(unet, vae):
    x_t, t = make_noisy()
    z = torch.randn(2, 4, 4, 6, generator=torch.Generator().manual_seed(3))
    image = vae.decode(z).sample
    return ViewCrafterBackbone(unet)(x_t, t, make_condition(unet))[0], image, vae.encoder(image)


def test_fast_networks_equal_plain_ones_and_keep_their_names():
    unet, vae = _parts()
    expected, names = _outputs(unet, vae), (list(unet.state_dict()), list(vae.state_dict()))
    _hasten(unet, vae)
    assert (list(unet.state_dict()), list(vae.state_dict())) == names
    assert not [m for net in (unet, vae) for m in net.modules() if type(m) is nn.GroupNorm]
    assert sum(isinstance(m, MergedUpsample) for m in vae.modules()) == 3
    assert sum(isinstance(m, MergedUpsample) for m in unet.modules()) == 1
    for value, plain in zip(_outputs(unet, vae), expected, strict=True):
        torch.testing.assert_close(value, plain, atol=1e-4, rtol=1e-4)


_COMPILE = """
import sys
from pathlib import Path

import torch
from unit.diffusion.viewcrafter.small import make_condition, make_noisy, make_unet
from fvgen_recon.diffusion.viewcrafter.backbone import ViewCrafterBackbone
from fvgen_recon.diffusion.viewcrafter.kernel import load_kernels, save_kernels
from fvgen_recon.diffusion.viewcrafter.norm import use_channel_norms
from fvgen_recon.errors import InputError

kernels = Path(sys.argv[1])
try:
    save_kernels(kernels)
except InputError as error:
    assert "no compiled kernels" in str(error)
else:
    raise AssertionError("nothing was compiled and something was saved")
unet = make_unet(block_out_channels=(32,), attention_levels=(True,))
backbone, condition, (x_t, t) = ViewCrafterBackbone(unet), make_condition(unet), make_noisy()
with torch.no_grad():
    expected = backbone(x_t, t, condition)[0]
    use_channel_norms(unet.to_channels_last())
    unet.compile(fullgraph=True, dynamic=False)
    torch.testing.assert_close(backbone(x_t, t, condition)[0], expected, atol=1e-4, rtol=1e-4)
assert save_kernels(kernels) == kernels.stat().st_size
assert load_kernels(kernels)
"""


@pytest.mark.slow
def test_compiled_network_is_one_graph_equals_the_plain_one_and_is_kept(tmp_path):
    # In a process of its own: the shape checks of these tests cannot be compiled.
    root = Path(__file__).parents[4]
    done = subprocess.run(
        [sys.executable, "-c", _COMPILE, tmp_path / "kernels.bin"],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"PYTHONPATH": f"{root}{os.pathsep}{root / 'tests'}"},
    )
    assert done.returncode == 0, done.stderr


def test_kernels_of_another_machine_or_release_are_left_alone(tmp_path):
    path = tmp_path / "kernels.bin"
    with pytest.raises(InputError, match="is not there"):
        load_kernels(path)
    checksum = hashlib.sha256(b"abc").hexdigest()
    facts = {"torch": "1.0", "device": "another", "sha256": checksum}
    path.with_suffix(".json").write_text(json.dumps(facts))
    with pytest.raises(InputError, match="expected to hold compiled kernels"):
        load_kernels(path)
    path.write_bytes(b"abcd")
    with pytest.raises(InputError, match="not the file that was written"):
        load_kernels(path)
    path.write_bytes(b"abc")
    with pytest.warns(UserWarning, match=r"made with torch 1\.0"):
        assert not load_kernels(path)
