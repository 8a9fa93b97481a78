import subprocess
import sys
from pathlib import Path

import pytest
import torch
from unit.diffusion.viewcrafter.small import NUM_FRAMES, make_condition, make_noisy, make_unet

from fvgen_recon.diffusion.backbone import VideoBackbone, mid_features
from fvgen_recon.diffusion.viewcrafter.backbone import ViewCrafterBackbone
from fvgen_recon.diffusion.viewcrafter.unet import ViewCrafterUNet
from fvgen_recon.errors import InputError

FRAMES = NUM_FRAMES


def _run(unet, **keywords):
    x_t, t = make_noisy()
    return ViewCrafterBackbone(unet)(x_t, t, make_condition(unet), **keywords)


def test_it_is_a_video_backbone():
    assert isinstance(ViewCrafterBackbone(make_unet()), VideoBackbone)


def test_shared_context_is_per_frame_context_with_repeated_tokens():
    shared, per_frame = make_unet(), make_unet(image_context="per_frame")
    x_t, t = make_noisy()
    condition = make_condition(shared, num_image=3)
    sample = torch.cat([x_t, condition.concat], dim=1)
    text, image = condition.context[:, :77], condition.context[:, 77:]
    repeated = torch.cat([text, image.repeat(1, FRAMES, 1)], dim=1)
    torch.testing.assert_close(
        shared(sample, t, condition.context)[0], per_frame(sample, t, repeated)[0]
    )


def test_per_frame_context_of_one_frame_reaches_other_frames_only_through_time():
    unet = make_unet(image_context="per_frame")
    x_t, t = make_noisy()
    condition = make_condition(unet, num_image=FRAMES)
    sample = torch.cat([x_t, condition.concat], dim=1)
    changed = condition.context.clone()
    changed[:, 77 + 2] += 1.0
    difference = (unet(sample, t, changed)[0] - unet(sample, t, condition.context)[0]).abs()
    assert difference.amax(dim=(0, 1, 3, 4)).argmax() == 2


def test_image_context_is_recorded(tmp_path):
    unet = make_unet()
    unet.set_image_context("per_frame")
    unet.save_pretrained(tmp_path)
    loaded = ViewCrafterUNet.from_pretrained(tmp_path)
    assert loaded.config["image_context"] == "per_frame"
    assert loaded.per_frame
    weights = unet.state_dict()
    assert all(torch.equal(weight, weights[key]) for key, weight in loaded.state_dict().items())
    # Mapped weights lie at other addresses, so kernels may add in another order.
    torch.testing.assert_close(_run(loaded)[0], _run(unet)[0], atol=1e-4, rtol=1e-4)


def test_clips_of_a_batch_do_not_mix():
    unet = make_unet()
    x_t, t = make_noisy(2)
    condition = make_condition(unet, num_clips=2)
    backbone = ViewCrafterBackbone(unet)
    both = backbone(x_t, t, condition)[0]
    for i in range(2):
        part = slice(i, i + 1)
        alone = backbone(x_t[part], t[part], condition[part])[0]
        torch.testing.assert_close(both[part], alone, atol=1e-5, rtol=1e-4)


def test_frame_rate_matters_and_defaults_to_the_recorded_one():
    unet = make_unet(default_fps=12)
    x_t, t = make_noisy()
    condition = make_condition(unet)
    sample = torch.cat([x_t, condition.concat], dim=1)
    default = unet(sample, t, condition.context)[0]
    assert torch.equal(default, unet(sample, t, condition.context, torch.tensor([12]))[0])
    assert not torch.allclose(default, unet(sample, t, condition.context, torch.tensor([30]))[0])


def test_features_are_selectable_and_the_bottleneck_comes_first_by_default():
    unet = make_unet()
    output, (mid,) = _run(unet, return_mid=True)
    assert torch.equal(output, _run(unet)[0])
    assert mid.shape == (1, 64, FRAMES, 2, 3)
    unet.select_features(["mid", "down.0", "up.3"])
    features = _run(unet, return_mid=True)[1]
    assert torch.equal(features[0], mid)
    assert [tuple(f.shape) for f in features[1:]] == [(1, 32, FRAMES, 4, 6)] * 2
    last = unet.conv_out(unet.conv_act(unet.conv_norm_out(features[2][0].transpose(0, 1))))
    torch.testing.assert_close(last.transpose(0, 1)[None], output)
    with pytest.raises(InputError, match=r"no layer 'up\.4'"):
        unet.select_features(["up.4"])


@pytest.mark.parametrize("layers", [["mid"], ["mid", "down.2"], ["up.1", "mid"]])
def test_features_alone_are_those_of_the_whole_network(layers):
    unet = make_unet()
    unet.select_features(layers)
    expected = _run(unet, return_mid=True)[1]
    ran = []
    unet.conv_out.register_forward_hook(lambda *_: ran.append(1))
    x_t, t = make_noisy()
    found = mid_features(ViewCrafterBackbone(unet), x_t, t, make_condition(unet))
    assert len(found) == len(layers)
    for a, b in zip(found, expected, strict=True):
        assert torch.equal(a, b)
    assert bool(ran) == any(name.startswith("up") for name in layers)


def test_gradient_checkpointing_changes_no_gradient():
    grads = []
    for checkpointing in (False, True):
        unet = make_unet().train()
        if checkpointing:
            unet.enable_gradient_checkpointing()
        output, (mid,) = _run(unet, return_mid=True)
        (output.square().mean() + mid.mean()).backward()
        grads.append({name: p.grad for name, p in unet.named_parameters()})
    assert all(grad is not None for grad in grads[0].values())
    for name, grad in grads[0].items():
        torch.testing.assert_close(grad, grads[1][name], msg=name)


def test_gradient_checkpointing_keeps_fewer_activations():
    sizes = []
    for checkpointing in (False, True):
        unet = make_unet().train()
        if checkpointing:
            unet.enable_gradient_checkpointing()
        saved = []
        with torch.autograd.graph.saved_tensors_hooks(
            lambda x, saved=saved: saved.append(x.numel()) or x, lambda x: x
        ):
            _run(unet)
        sizes.append(sum(saved))
    assert sizes[1] < 0.5 * sizes[0]


def test_channels_last_and_bfloat16_stay_close():
    expected = _run(make_unet())[0]
    torch.testing.assert_close(_run(make_unet().to_channels_last())[0], expected)
    rounded = _run(make_unet().to_channels_last().bfloat16())[0]
    assert rounded.dtype == torch.float32
    assert (rounded - expected).norm() < 0.05 * expected.norm()


@pytest.mark.slow
def test_forward_compiles_to_one_graph():
    # In a process of its own, because the shape checks that tests switch on cannot be compiled.
    code = """
import torch
from unit.diffusion.viewcrafter.small import make_condition, make_noisy, make_unet
unet = make_unet(image_context="per_frame", block_out_channels=(32,), attention_levels=(True,))
(x_t, t), condition = make_noisy(), make_condition(unet)
arguments = (torch.cat([x_t, condition.concat], dim=1), t, condition.context)
compiled = torch.compile(unet, fullgraph=True, backend="eager")
torch.testing.assert_close(compiled(*arguments)[0], unet(*arguments)[0])
"""
    tests = Path(__file__).parents[3]
    subprocess.run([sys.executable, "-c", code], cwd=tests, check=True, timeout=300)


def test_compiled_parts_give_the_same_output_and_gradients():
    # In a process of its own for the same reason. Every part must be one graph.
    code = """
import copy, functools, torch
from unit.diffusion.viewcrafter.small import make_condition, make_noisy, make_unet
from fvgen_recon.diffusion.viewcrafter.backbone import ViewCrafterBackbone
torch.compile = functools.partial(torch.compile, backend="aot_eager", fullgraph=True)
torch._dynamo.config.recompile_limit = 64
plain = ViewCrafterBackbone(make_unet())
compiled = copy.deepcopy(plain)
compiled.compile_parts()
(x_t, t), condition = make_noisy(), make_condition(plain.unet)
grads = []
for network in (plain, compiled):
    output, (mid,) = network(x_t, t, condition, return_mid=True)
    (output.square().mean() + mid.square().mean()).backward()
    grads.append({name: p.grad for name, p in network.named_parameters()} | {"": output})
assert grads[0].keys() == grads[1].keys()
for name, grad in grads[0].items():
    torch.testing.assert_close(grads[1][name], grad, rtol=1e-3, atol=1e-5, msg=name)
assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 5
"""
    tests = Path(__file__).parents[3]
    subprocess.run([sys.executable, "-c", code], cwd=tests, check=True, timeout=600)


def test_bad_sizes_and_token_counts_are_refused():
    unet = make_unet(image_context="per_frame")
    x_t, t = make_noisy()
    condition = make_condition(unet)
    sample = torch.cat([x_t, condition.concat], dim=1)
    with pytest.raises(InputError, match="multiples of 2, 3x6 came"):
        unet(sample[..., :3, :], t, condition.context)
    with pytest.raises(InputError, match="a multiple of 4 image tokens"):
        unet(sample, t, condition.context[:, :-1])
    with pytest.raises(InputError, match=", 0 came"):
        unet(sample, t, condition.context[:, :77])


def test_half_weights_do_the_same_with_and_without_autocast() -> None:
    unet = make_unet().bfloat16()
    seen: list[torch.dtype] = []
    unet.mid_block.resnets[0].norm1.register_forward_hook(lambda *a: seen.append(a[2].dtype))
    plain = _run(unet)[0]
    with torch.autocast("cpu", torch.bfloat16):
        within = _run(unet)[0]
    assert torch.equal(plain, within)
    assert set(seen) == {torch.bfloat16}
