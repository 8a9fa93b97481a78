"""Wan's transformer behind the seams, on tiny random weights."""

import json
from dataclasses import replace

import pytest
import torch
from diffusers import AutoencoderKLWan, WanTransformer3DModel
from safetensors.torch import save_file
from torch import nn
from unit.diffusion.viewcrafter.small import make_guidance

from fvgen_recon.diffusion.backbone import Codec, VideoBackbone
from fvgen_recon.diffusion.generator import VideoGenerator
from fvgen_recon.diffusion.sampler import denoiser, sample_few_steps, seeded_noise
from fvgen_recon.diffusion.schedule import FlowSchedule, SamplingSchedule
from fvgen_recon.diffusion.wan import WanBackbone, load_wan, load_wan_student
from fvgen_recon.distill.config import DmdSettings, GanSettings
from fvgen_recon.distill.data import TrainingBatch
from fvgen_recon.distill.model import BACKBONES, start_networks
from fvgen_recon.distill.randomness import batch_rng
from fvgen_recon.distill.role import Roles
from fvgen_recon.distill.rollout import RolloutSettings
from fvgen_recon.distill.stages import dmd_step, gan_init_step
from fvgen_recon.errors import InputError, WeightsError

FRAMES, HEIGHT, WIDTH = 5, 32, 48
CHANNELS, TOKENS, TEXT = 4, 6, 24


def make_transformer(**changes) -> WanTransformer3DModel:
    torch.manual_seed(0)
    config = {
        "num_attention_heads": 2,
        "attention_head_dim": 12,
        "in_channels": 2 * CHANNELS + 4,
        "out_channels": CHANNELS,
        "text_dim": TEXT,
        "freq_dim": 16,
        "ffn_dim": 32,
        "num_layers": 4,
    }
    return WanTransformer3DModel(**(config | changes))


def make_vae() -> AutoencoderKLWan:
    torch.manual_seed(1)
    return AutoencoderKLWan(
        base_dim=8,
        z_dim=CHANNELS,
        dim_mult=[1, 1, 1, 1],
        num_res_blocks=1,
        latents_mean=[0.1, -0.2, 0.3, 0.0],
        latents_std=[0.5, 1.5, 1.0, 2.0],
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("wan")
    make_transformer().save_pretrained(path / "transformer")
    make_vae().save_pretrained(path / "vae")
    rng = torch.Generator().manual_seed(2)
    prompts = torch.randn(2, TOKENS, TEXT, generator=rng).unbind()
    tokens = dict(zip(("prompt", "null_prompt"), (p.contiguous() for p in prompts), strict=True))
    save_file(tokens, path / "prompt.safetensors")
    (path / "scheduler").mkdir()
    (path / "scheduler" / "scheduler_config.json").write_text(json.dumps({"flow_shift": 3.0}))
    return path


@pytest.fixture(scope="module")
def model(folder):
    return BACKBONES["wan"].load(folder, torch.device("cpu"))


def clips(num: int = 1):
    return [
        make_guidance(num_frames=FRAMES, height=HEIGHT, width=WIDTH, seed=i) for i in range(num)
    ]


def test_it_fits_the_seams(model):
    assert isinstance(model.codec, Codec)
    assert isinstance(model.backbone, VideoBackbone)
    assert isinstance(model.schedule, SamplingSchedule)
    assert (model.codec.latent_channels, model.codec.size_multiple) == (CHANNELS, 16)
    assert len(model.weights_hash) == 64


def test_five_frames_become_two_latent_frames_and_back(model):
    frames = torch.stack([g.frames for g in clips(2)])
    z = model.codec.encode(frames)
    assert z.shape == (2, CHANNELS, 2, HEIGHT // 8, WIDTH // 8)
    assert model.codec.decode(z).shape == frames.shape
    drawn = model.codec.encode(frames, torch.Generator().manual_seed(0))
    assert not torch.equal(drawn, z)


def test_latents_are_normalised_with_the_models_own_statistics(model):
    frames = torch.stack([g.frames for g in clips()])
    raw = model.codec.vae.encode(2 * frames.transpose(1, 2) - 1).latent_dist.mean
    z = model.codec.encode(frames)
    torch.testing.assert_close(z[:, 1], (raw[:, 1] + 0.2) / 1.5)
    torch.testing.assert_close(z[:, 3], raw[:, 3] / 2.0)


def test_condition_holds_the_mask_then_the_renders_latents(model):
    (guidance,) = clips()
    mask = torch.zeros(FRAMES, 1, HEIGHT, WIDTH, dtype=torch.bool)
    mask[0], mask[3, :, :8, :4] = True, True
    guidance = replace(guidance, mask=mask)
    condition = model.codec.condition([guidance])
    assert condition.concat.shape == (1, 4 + CHANNELS, 2, HEIGHT // 8, WIDTH // 8)
    shares = condition.concat[0, :4]
    assert torch.equal(shares[:, 0], torch.ones_like(shares[:, 0]))
    # Frames 1 to 4 are the four mask channels of the second latent frame.
    assert shares[2, 1, 0, 0] == 0.5
    assert shares[:, 1].sum() == 0.5
    grey = torch.where(mask, guidance.frames, 0.5)
    expected = model.codec.encode(grey[None])
    torch.testing.assert_close(condition.concat[:, 4:], expected)
    assert condition.context.shape == (1, TOKENS, TEXT)
    assert not torch.equal(condition.context, condition.null_context)


def test_backbone_is_the_stock_transformer_and_shows_its_middle(model):
    condition = model.codec.condition(clips(2))
    x_t = torch.randn(2, CHANNELS, 2, 4, 6, generator=torch.Generator().manual_seed(0))
    t = torch.tensor([1000, 250])
    output, features = model.backbone(x_t, t, condition, return_mid=True)
    sample = torch.cat([x_t, condition.concat], dim=1)
    expected = model.backbone.transformer(sample, t, condition.context).sample
    torch.testing.assert_close(output, expected)
    assert [f.shape for f in features] == [(2, 24, 2, 2, 3)] * 2
    assert model.backbone(x_t, t, condition)[1] == ()
    hooks = [b for b in model.backbone.transformer.blocks if b._forward_hooks]
    assert hooks == []
    # The last feature is what the last block works on.
    seen = []
    handle = model.backbone.transformer.blocks[3].register_forward_hook(
        lambda module, inputs, output: seen.append(output)
    )
    *_, last = model.backbone(x_t, t, condition, return_mid=True)[1]
    handle.remove()
    torch.testing.assert_close(last.flatten(2).transpose(1, 2), seen[0])


def test_times_follow_wans_shift(model):
    assert model.schedule.timesteps(4).tolist() == [1000, 900, 750, 500]
    assert FlowSchedule(num_timesteps=1001).timesteps(4).tolist() == [1000, 750, 500, 250]
    alpha, sigma = model.schedule.alpha_sigma(torch.tensor([750]))
    assert (alpha.item(), sigma.item()) == (0.25, 0.75)


@pytest.mark.parametrize("kind", ["sde", "ode"])
def test_four_steps_are_those_of_the_flow(model, kind):
    condition = model.codec.condition(clips())
    noise = seeded_noise(torch.Generator().manual_seed(0))
    x_T = noise(0, condition.concat[:, 4:])
    times = model.schedule.timesteps(4)
    z = sample_few_steps(
        denoiser(model.backbone, condition),
        x_T,
        model.schedule,
        times=times,
        kind=kind,
        noise=seeded_noise(torch.Generator().manual_seed(1)),
    )
    fresh = seeded_noise(torch.Generator().manual_seed(1))
    x, x0 = x_T, x_T
    with torch.no_grad():
        for i, time in enumerate(times.tolist()):
            velocity, _ = model.backbone(x, torch.tensor([time]), condition)
            u = time / 1000
            x0, eps = x - u * velocity, x + (1 - u) * velocity
            after = ([*times.tolist(), 0])[i + 1] / 1000
            if kind == "sde" and after > 0:
                eps = fresh(i, x0)
            x = (1 - after) * x0 + after * eps
    torch.testing.assert_close(z, x0, atol=1e-5, rtol=1e-4)


def test_both_stages_train_a_student_that_makes_frames(model, folder, tmp_path):
    guidance = clips(2)
    truth = torch.stack([g.frames for g in guidance])
    batch = TrainingBatch(
        x0=model.codec.encode(truth, torch.Generator().manual_seed(0)),
        condition=model.codec.condition(guidance),
    )
    networks = start_networks(model, batch, disc_layers=(0, 1), disc_width=8)
    for head in networks.disc.heads:
        nn.init.normal_(head.last.weight)
    roles = Roles(
        schedule=networks.schedule,
        teacher=networks.teacher,
        student=networks.student,
        critic=networks.critic,
        disc=networks.disc,
        plain_disc=networks.disc,
    )
    rng = batch_rng(torch.Generator().manual_seed(0))
    for step, settings in ((gan_init_step, GanSettings()), (dmd_step, DmdSettings())):
        for turn, trained in (("student", networks.student), ("judges", None)):
            losses, _ = step(roles, batch, rng, settings, turn)
            losses.total().backward()
            if trained is not None:
                grads = [p.grad for p in trained.parameters() if p.grad is not None]
                assert all(torch.isfinite(g).all() for g in grads)
                assert sum(g.abs().sum() for g in grads) > 0
                torch.optim.SGD(trained.parameters(), lr=0.01).step()
                trained.zero_grad()
    assert isinstance(networks.student, WanBackbone)
    BACKBONES["wan"].export(tmp_path, folder, networks.student, RolloutSettings(num_steps=4))
    generator = load_wan_student(tmp_path, num_frames=FRAMES)
    assert isinstance(generator, VideoGenerator)
    frames = generator.generate(guidance[0], seed=0)
    assert frames.shape == (FRAMES, 3, HEIGHT, WIDTH)
    assert torch.equal(frames, generator.generate(guidance[0], seed=0))
    teacher = replace(generator, model=model).generate(guidance[0], seed=0)
    assert not torch.equal(frames, teacher)


def test_misfits_are_named(model, folder, tmp_path):
    with pytest.raises(InputError, match=r"4 k \+ 1 frames, 16 came.*17"):
        model.codec.encode(torch.zeros(1, 16, 3, HEIGHT, WIDTH))
    with pytest.raises(InputError, match="multiples of 16"):
        model.codec.encode(torch.zeros(1, FRAMES, 3, 24, WIDTH))
    with pytest.raises(InputError, match="one length and size"):
        model.codec.condition([*clips(), make_guidance(num_frames=FRAMES, height=64, width=64)])
    with pytest.raises(WeightsError, match="no complete Wan model"):
        load_wan(tmp_path)
    with pytest.raises(WeightsError, match="image_dim"):
        WanBackbone(make_transformer(image_dim=16, added_kv_proj_dim=24))
    make_vae().save_pretrained(tmp_path / "vae")
    make_transformer(in_channels=CHANNELS).save_pretrained(tmp_path / "transformer")
    (tmp_path / "prompt.safetensors").write_bytes((folder / "prompt.safetensors").read_bytes())
    with pytest.raises(WeightsError, match=r"takes 4 channels.*12"):
        load_wan(tmp_path)
