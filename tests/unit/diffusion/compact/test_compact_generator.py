import hashlib
import json
from dataclasses import replace

import pytest
import torch
from factories import make_guidance
from safetensors.torch import load_file, save
from unit.diffusion.compact.miniature import TINY, make_backbone

from fvgen_recon.diffusion.compact import generator as module
from fvgen_recon.diffusion.compact.backbone import CompactBackbone
from fvgen_recon.diffusion.compact.checkpoint import load_compact, save_compact
from fvgen_recon.diffusion.compact.codec import stack_guidance
from fvgen_recon.diffusion.compact.generator import load_generator, smooth_unseen
from fvgen_recon.diffusion.generator import VideoGenerator
from fvgen_recon.diffusion.sampler import denoiser, sample_few_steps, seeded_noise
from fvgen_recon.errors import InputError, WeightsError


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("student")
    save_compact(path, make_backbone(), role="student", num_steps=4, part_bytes=4096)
    return path


@pytest.mark.parametrize(("num_frames", "height", "width"), [(16, 24, 40), (5, 37, 22), (2, 9, 50)])
def test_any_size_length_and_orientation(folder, num_frames, height, width):
    generator = load_generator(folder, fast=False)
    guidance = make_guidance(num_frames, height, width)
    frames = generator.generate(guidance, seed=0)
    assert isinstance(generator, VideoGenerator)
    assert frames.shape == guidance.frames.shape
    assert float(frames.amin()) >= 0
    assert float(frames.amax()) <= 1
    torch.testing.assert_close(frames[[0, -1]], guidance.frames[[0, -1]])


def test_only_what_no_render_hit_is_smoothed(rng):
    sources = stack_guidance([make_guidance(4, 40, 48)])
    unseen = torch.zeros_like(sources.mask)
    unseen[:, 1:3, :, 8:30, 10:36] = True
    sources = replace(sources, mask=~unseen, layer_masks=sources.layer_masks & ~unseen[:, None])
    frames = torch.rand(1, 4, 3, 40, 48, generator=rng)
    frames = torch.where(unseen, 0.4 + 0.1 * frames, 5 + frames)
    smooth = smooth_unseen(frames, sources)
    torch.testing.assert_close(
        torch.where(unseen, frames, smooth), frames, atol=0, rtol=0
    )  # nothing else changes
    inside = smooth.masked_select(unseen)
    assert float(inside.amin()) >= 0.4  # and nothing from outside comes in
    assert float(inside.amax()) <= 0.5
    assert float(inside.std()) < 0.2 * float(frames.masked_select(unseen).std())


@pytest.mark.parametrize("role", ["regression", "student"])
def test_a_network_is_smooth_where_nothing_was_seen(tmp_path, role):
    save_compact(tmp_path / "r", make_backbone(), role=role, num_steps=1)
    save_compact(tmp_path / "s", make_backbone(), role="teacher", num_steps=1)
    guidance = make_guidance(4, 32, 48)
    guidance.mask[1:3, :, :, :30] = False
    guidance.layer_masks[:, 1:3, :, :, :30] = False
    made = [load_generator(tmp_path / n, fast=False).generate(guidance, seed=0) for n in "rs"]
    rough = [frame.diff(dim=-1)[..., :28].abs().mean() for frame in (m[1:3] for m in made)]
    assert float(rough[0]) < 0.5 * float(rough[1])
    seen = guidance.mask | guidance.layer_masks.any(dim=0)
    torch.testing.assert_close(made[0] * seen, made[1] * seen)


@pytest.mark.parametrize("num_steps", [1, 2, 4])
def test_seed_decides(folder, num_steps):
    generator = load_generator(folder, num_steps=num_steps, fast=False)
    guidance = make_guidance(4, 16, 24)
    first, again, other = (generator.generate(guidance, seed=s) for s in (3, 3, 4))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_the_condition_is_read_once_a_clip_and_noise_is_that_of_the_sampler(folder, monkeypatch):
    generator = load_generator(folder, fast=False)
    generator = replace(generator, keeps_deep=False, is_smooth=False)
    guidance = make_guidance(4, 16, 24)
    reads = []
    prepare = CompactBackbone.prepare
    monkeypatch.setattr(
        CompactBackbone, "prepare", lambda self, c: reads.append(c) or prepare(self, c)
    )
    frames = generator.generate(guidance, seed=5)
    assert len(reads) == 1
    model, rng = generator.model, torch.Generator().manual_seed(5)
    condition = model.codec.condition([guidance])
    x_T = torch.randn((1, TINY.latent_channels, *condition.concat.shape[2:]), generator=rng)
    z = sample_few_steps(
        denoiser(model.backbone, condition),
        x_T,
        model.schedule,
        times=model.schedule.timesteps(4),
        noise=seeded_noise(rng),
    )
    inner = slice(1, 3)  # The ends are photos.
    wanted = model.codec.decode(z)[0, inner]
    torch.testing.assert_close(frames[inner], wanted, atol=1e-6, rtol=0)


@pytest.mark.parametrize(("role", "num_passes"), [("student", 1), ("teacher", 4)])
def test_a_student_goes_through_its_deepest_levels_once_a_clip(
    tmp_path, monkeypatch, role, num_passes
):
    save_compact(tmp_path / role, make_backbone(), role=role, num_steps=4)
    generator = load_generator(tmp_path / role, fast=False)
    guidance, passes, deeps = make_guidance(4, 16, 24), [], []
    bottom, take_step = CompactBackbone._bottom, CompactBackbone.take_step

    def count(self, x, emb, phase):
        passes.append(1)
        return bottom(self, x, emb, phase)

    def listen(self, *inputs):
        output = take_step(self, *inputs)
        deeps.append(output[1])
        return output

    monkeypatch.setattr(CompactBackbone, "_bottom", count)
    monkeypatch.setattr(CompactBackbone, "take_step", listen)
    frames = generator.generate(guidance, seed=5)
    assert (len(passes), len(deeps)) == (num_passes, 4)
    assert all((deep is deeps[0]) == (num_passes == 1) for deep in deeps[1:])
    generator.generate(make_guidance(4, 16, 24, seed=7), seed=5)
    assert len(passes) == 2 * num_passes  # A clip goes on from its own.
    assert torch.equal(generator.generate(guidance, seed=5), frames)
    passes.clear()
    replace(generator, num_steps=8).generate(guidance, seed=5)
    assert len(passes) == 8


def test_a_recorder_only_where_asked_for(folder):
    assert load_generator(folder, record=False).recorder is None
    generator = load_generator(folder)
    assert generator.recorder is not None
    assert replace(generator, num_steps=1).recorder is generator.recorder


def test_large_clips_are_not_recorded(folder, monkeypatch):
    generator = load_generator(folder, fast=False)
    assert generator.recorder is not None
    asked = []
    for_clip = generator.recorder.for_clip
    monkeypatch.setattr(
        generator.recorder, "for_clip", lambda *shared: asked.append(1) or for_clip(*shared)
    )
    monkeypatch.setattr(module, "_RECORDED_PX", 4 * 32 * 48)
    for height, width in ((32, 48), (25, 40), (48, 48)):
        generator.generate(make_guidance(4, height, width), seed=0)
    assert len(asked) == 4  # Of a student's clip the first step and those that go on from it.


def test_bfloat16_is_close(folder):
    guidance = make_guidance(4, 16, 24)
    exact = load_generator(folder, fast=False).generate(guidance, seed=0)
    rough = load_generator(folder, fast=True).generate(guidance, seed=0)
    assert float((exact - rough).abs().mean()) < 0.02


def test_guidance_without_layers(folder):
    guidance = make_guidance(4, 16, 24)
    bare = replace(guidance, layers=guidance.layers[:0], layer_masks=guidance.layer_masks[:0])
    assert load_generator(folder, fast=False).generate(bare, seed=0).shape == (4, 3, 16, 24)


def test_user_mistakes(folder, tmp_path):
    with pytest.raises(InputError, match="3 was asked for"):
        load_generator(folder, num_steps=3)
    with pytest.raises(InputError, match="two frames"):
        load_generator(folder).generate(make_guidance(1, 16, 24), seed=0)
    with pytest.raises(WeightsError, match=r"config\.json"):
        load_generator(tmp_path)


def test_weights_survive_the_disk(folder):
    model, card = load_compact(folder)
    assert card.config == TINY
    assert len(card.parts) > 1
    for key, value in make_backbone().state_dict().items():
        stored = model.backbone.state_dict()[key]
        torch.testing.assert_close(stored, value.bfloat16().float(), atol=0, rtol=0)


def test_damage_is_noticed(folder, tmp_path):
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    part = tmp_path / "weights-1.safetensors"
    data = part.read_bytes()
    part.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(WeightsError, match="damaged"):
        load_compact(tmp_path)
    part.unlink()
    with pytest.raises(WeightsError, match="missing"):
        load_compact(tmp_path)
    config = tmp_path / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "schema": 7}))
    with pytest.raises(WeightsError, match="schema 7"):
        load_compact(tmp_path)


def test_eight_bits_halve_the_file_and_round_to_the_nearest(tmp_path):
    backbone = make_backbone()
    sizes = {}
    for storage in ("bfloat16", "int8"):
        path = tmp_path / storage
        save_compact(path, backbone, role="student", num_steps=4, storage=storage)
        sizes[storage] = (path / "weights-0.safetensors").stat().st_size
    assert sizes["int8"] < 0.75 * sizes["bfloat16"]
    loaded = load_compact(tmp_path / "int8")[0].backbone.state_dict()
    for key, value in backbone.state_dict().items():
        if value.ndim > 1:
            row = value.flatten(1).abs().amax(1) / 127
            error = (loaded[key] - value).flatten(1).abs().amax(1)
            # Half a step, and what rounding the step itself to float16 costs at its far end.
            assert bool((error <= 0.5 * row + 127 * row * 2**-11 + 1e-6).all()), key


def test_eight_bits_without_their_scales_are_refused(tmp_path):
    card = save_compact(tmp_path, make_backbone(), role="student", num_steps=4, storage="int8")
    file = tmp_path / card.parts[0]
    tensors = load_file(file)
    del tensors["stem.weight.scale"]
    file.write_bytes(save(tensors))
    content = json.loads((tmp_path / "config.json").read_text())
    content["sha256"] = hashlib.sha256(file.read_bytes()).hexdigest()
    (tmp_path / "config.json").write_text(json.dumps(content))
    with pytest.raises(WeightsError, match=r"lack the tensor 'stem\.weight\.scale'"):
        load_compact(tmp_path)
