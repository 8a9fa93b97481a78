"""Further guesses that the compact model may copy from."""

from dataclasses import replace

import pytest
import torch
from factories import make_cameras, make_cloud, make_scene
from unit.diffusion.compact.miniature import TINY, make_backbone
from unit.distill.compact_bank import make_clips

from fvgen_recon.diffusion.compact.backbone import CompactBackbone
from fvgen_recon.diffusion.compact.checkpoint import load_compact, save_compact, widen
from fvgen_recon.diffusion.compact.codec import CompactCodec, stack_guidance
from fvgen_recon.diffusion.compact.generator import load_generator
from fvgen_recon.distill.cast import make_cast
from fvgen_recon.distill.clip import load_clips, save_clips
from fvgen_recon.distill.pretrain import _augment, plain_sources, prepare_batch
from fvgen_recon.errors import InputError, WeightsError
from fvgen_recon.render.guidance import TEACHER_GUIDANCE, GuidanceConfig, render_guidance
from fvgen_recon.types import Anchor, PointCloud, Trajectory

MANY = replace(TINY, gate=True, num_alternatives=5)


def make_views(num_points: int, seed: int) -> PointCloud:
    cloud = make_cloud(num_points, seed=seed)
    return replace(cloud, view=torch.arange(num_points) % 3)


def make_guidance(config: GuidanceConfig | None = None):
    others = (make_views(900, 1), make_views(900, 2))
    cloud = replace(make_views(900, 0), alternatives=others)
    ends = (Anchor(frame=0, view=2), Anchor(frame=4, view=0))
    trajectory = Trajectory(cameras=make_cameras(5), anchors=ends)
    return render_guidance(make_scene(), cloud, trajectory, config=config), cloud, trajectory


def sources(num_alternatives: int = 5):
    return plain_sources(make_clips(num_alternatives=num_alternatives))[0]


def answer(backbone: CompactBackbone, made) -> torch.Tensor:
    condition = CompactCodec(config=backbone.config).condition_sources(made)
    shape = (len(made.frames), backbone.config.latent_channels, *condition.concat.shape[2:])
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return backbone(x, torch.full((shape[0],), 999.0), condition)[0]


def test_guesses_are_the_other_views_and_the_ends_at_other_depths():
    guidance, cloud, trajectory = make_guidance()
    assert guidance.alternatives is not None
    assert guidance.alternative_masks is not None
    first, second = cloud.alternatives
    parts = [cloud[cloud.view == 1]]
    parts += [other[other.view == view] for other in (first, second) for view in (2, 0)]
    bare = replace(trajectory, anchors=())
    config = GuidanceConfig(max_conflict=None)
    for part, frames, mask in zip(
        parts, guidance.alternatives, guidance.alternative_masks, strict=True
    ):
        alone = render_guidance(make_scene(), part, bare, min_confidence=0.0, config=config)
        assert torch.equal(frames, alone.frames)
        assert torch.equal(mask, alone.mask)
        assert mask.any()


def test_the_teachers_renders_have_none():
    assert make_guidance(TEACHER_GUIDANCE)[0].alternatives is None


def test_points_and_guidance_take_their_guesses_along():
    guidance, cloud, _ = make_guidance()
    assert [len(other) for other in cloud.to("cpu").alternatives] == [900, 900]
    assert cloud[:5].alternatives == ()
    moved = guidance.to("meta")
    assert moved.alternatives is not None
    assert moved.alternatives.is_meta


def test_missing_guesses_count_as_not_hit():
    guidance, _, _ = make_guidance()
    plain = replace(guidance, alternatives=None, alternative_masks=None)
    assert not stack_guidance([plain], 5).alternative_masks.any()
    few = stack_guidance([guidance], 2)
    assert few.alternatives.shape[1] == 2
    padded = stack_guidance([guidance], 7)
    assert torch.equal(padded.alternatives[:, :2], few.alternatives)
    assert not padded.alternative_masks[:, 5:].any()


def test_a_network_without_guesses_reads_what_comes_before_them():
    plain = make_backbone()
    made = sources()
    wide = CompactCodec(config=replace(TINY, num_alternatives=5)).condition_sources(made)
    narrow = CompactCodec(config=TINY).condition_sources(made)
    assert torch.equal(wide.concat[:, : narrow.concat.shape[1]], narrow.concat)
    x = torch.randn(len(wide.concat), plain.config.latent_channels, *wide.concat.shape[2:])
    t = torch.full((len(x),), 500.0)
    with torch.no_grad():
        assert torch.equal(plain(x, t, wide)[0], plain(x, t, narrow)[0])


def test_a_network_with_guesses_refuses_other_numbers_of_them():
    wide = CompactBackbone(MANY)
    for count in (0, 1):
        codec = CompactCodec(config=replace(MANY, num_alternatives=count))
        condition = codec.condition_sources(sources())
        x = torch.randn(len(condition.concat), 48, *condition.concat.shape[2:])
        with pytest.raises(InputError, match="5 further guesses"):
            wide(x[:, : MANY.latent_channels], torch.full((len(x),), 500.0), condition)


def test_a_condition_with_guesses_remembers_where_nothing_was_seen():
    made = sources()
    codec = CompactCodec(config=MANY)
    assert torch.equal(codec.unseen(codec.condition_sources(made)), made.unseen)
    assert (made.unseen.sum() < sources(0).unseen.sum()).item()


def test_widened_weights_answer_as_before_where_there_are_no_guesses():
    plain = widen(make_backbone(), gate=True, num_alternatives=0)
    wide = widen(plain, gate=True, num_alternatives=5)
    assert wide.config.num_alternatives == 5
    blind = replace(sources(), alternative_masks=torch.zeros_like(sources().alternative_masks))
    torch.testing.assert_close(answer(wide, blind), answer(plain, blind), atol=2e-3, rtol=1e-3)
    assert (answer(wide, sources()) - answer(plain, sources())).abs().max() > 0.02


def test_every_weight_of_a_widened_network_is_trained():
    backbone = widen(make_backbone(), gate=True, num_alternatives=5)
    with torch.no_grad():
        for parameter in backbone.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    batch = prepare_batch(make_clips(num_alternatives=5), CompactCodec(config=MANY), None)
    t = torch.full((len(batch.x0),), 300.0)
    backbone(batch.x0, t, batch.condition)[0].square().mean().backward()
    unused = [n for n, p in backbone.named_parameters() if p.grad is None or not p.grad.any()]
    assert unused == []


def test_a_gate_cannot_be_put_before_guesses():
    backbone = CompactBackbone(replace(TINY, num_alternatives=1))
    with pytest.raises(WeightsError, match="has 1"):
        widen(backbone, gate=True, num_alternatives=5)


def test_a_student_with_guesses_learns_from_a_teacher_without(tmp_path):
    save_compact(tmp_path / "new", CompactBackbone(MANY), role="regression", num_steps=1)
    old = CompactBackbone(replace(MANY, num_alternatives=0))
    save_compact(tmp_path / "old", old, role="teacher", num_steps=50)
    args = {"device": torch.device("cpu"), "seed": 0}
    cast = make_cast(MANY, init=tmp_path / "new", teacher=tmp_path / "old", **args)
    assert (cast.model.config.num_alternatives, cast.teacher.config.num_alternatives) == (5, 0)
    batch = prepare_batch(make_clips(num_alternatives=5), CompactCodec(config=MANY), None)
    t = torch.full((len(batch.x0),), 300.0)
    assert len(cast.teacher.features(batch.x0, t, batch.condition)) == 3
    with pytest.raises(WeightsError, match="one shape"):
        make_cast(MANY, init=tmp_path / "old", teacher=tmp_path / "new", **args)
    grown = make_cast(MANY, init=tmp_path / "old", teacher=None, is_grown=True, **args)
    assert grown.model.config == MANY


def test_augmentation_turns_guesses_round_with_the_clip():
    clips = make_clips(num_alternatives=5)
    # Every guess has a brightness of its own, every frame of it a deviation of its own.
    shape = clips.alternatives.shape
    value = 100 * torch.arange(5)[:, None] + torch.arange(4)
    planes = (value % 250).to(torch.uint8)[None, :, :, None, None, None].expand(shape).contiguous()
    clips = replace(clips, alternatives=planes, alternative_masks=clips.alternative_masks | True)
    seen = set()
    for seed in range(12):
        made, _ = _augment(clips, torch.Generator().manual_seed(seed))
        order = made.alternatives[0].flatten(2).mean(-1)
        plain = planes[0].float().flatten(2).mean(-1) / 255
        turned = plain[[0, 2, 1, 4, 3]].flip(1)
        # Exposure and gamma change all values but keep their order.
        flat = order.flatten().argsort().tolist()
        assert flat in (plain.flatten().argsort().tolist(), turned.flatten().argsort().tolist())
        seen.add(flat == plain.flatten().argsort().tolist())
    assert seen == {True, False}


def test_some_clips_lose_their_guesses():
    clips = make_clips(64, num_alternatives=5)
    made, _ = _augment(clips, torch.Generator().manual_seed(0))
    kept = made.alternative_masks.flatten(2).any(-1)
    assert torch.equal(kept[:, 1:], kept[:, 1:2].expand(-1, 4))
    for share in (kept[:, 0], kept[:, 1]):
        assert 0.6 < float(share.float().mean()) < 0.95


def test_clips_from_before_have_no_guesses(tmp_path):
    clips = make_clips(num_alternatives=5)
    save_clips(tmp_path / "new.safetensors", clips)
    assert torch.equal(load_clips(tmp_path / "new.safetensors").alternatives, clips.alternatives)
    from safetensors.torch import load_file, save_file

    tensors = load_file(tmp_path / "new.safetensors")
    del tensors["alternatives"], tensors["alternative_masks"]
    save_file(tensors, tmp_path / "old.safetensors")
    assert load_clips(tmp_path / "old.safetensors").alternatives.shape[:2] == (4, 0)


def test_a_generator_with_guesses_takes_any_guidance(tmp_path):
    save_compact(tmp_path, CompactBackbone(MANY), role="regression", num_steps=1)
    generator = load_generator(tmp_path, fast=False)
    guidance, _, _ = make_guidance()
    plain = replace(guidance, alternatives=None, alternative_masks=None)
    with_guesses, without = (generator.generate(g, seed=0) for g in (guidance, plain))
    assert with_guesses.shape == guidance.frames.shape
    assert not torch.equal(with_guesses, without)
    assert load_compact(tmp_path)[1].config == MANY
    # 32x48 is a multiple of the size; 30x46 is padded.
    small = {
        name: getattr(guidance, name)[..., :30, :46]
        for name in (
            "frames",
            "mask",
            "depth",
            "layers",
            "layer_masks",
            "reference",
            "alternatives",
            "alternative_masks",
        )
    }
    assert generator.generate(replace(guidance, **small), seed=0).shape[-2:] == (30, 46)


def test_no_offset_at_all_is_a_setting():
    backbone = CompactBackbone(replace(MANY, max_offset_px=0.0))
    assert bool(answer(backbone, sources()).isfinite().all())
