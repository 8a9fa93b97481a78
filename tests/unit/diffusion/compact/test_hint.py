"""Confidence and depth of the renders, as the compact model sees them."""

from dataclasses import replace

import pytest
import torch
from factories import make_cameras, make_scene
from unit.diffusion.compact.miniature import TINY
from unit.diffusion.compact.test_alternative import answer, make_guidance, make_views, sources
from unit.distill.compact_bank import make_clips

from fvgen_recon.diffusion.compact.backbone import CompactBackbone
from fvgen_recon.diffusion.compact.checkpoint import add_change, save_compact, widen
from fvgen_recon.diffusion.compact.codec import CompactCodec, stack_guidance
from fvgen_recon.diffusion.compact.generator import load_generator
from fvgen_recon.distill.cast import make_cast
from fvgen_recon.distill.clip import join_clips, load_clips, save_clips
from fvgen_recon.distill.pretrain import _augment, _reverse_hints, plain_sources, prepare_batch
from fvgen_recon.errors import InputError, WeightsError
from fvgen_recon.render.guidance import TEACHER_GUIDANCE, render_guidance
from fvgen_recon.types import Anchor, PointCloud, Trajectory

MANY = replace(TINY, gate=True, num_alternatives=5, hints=True)
PLAIN = replace(MANY, hints=False)


def wall(depth: float, confidence: float) -> PointCloud:
    """A dense wall before a camera at the origin, from view 0."""
    place = torch.linspace(-1.2, 1.2, 120)
    x, y = torch.meshgrid(place, place, indexing="xy")
    xyz = torch.stack([x * depth, y * depth, torch.full_like(x, depth)], dim=-1).view(-1, 3)
    count = len(xyz)
    return PointCloud(
        xyz=xyz,
        rgb=torch.full((count, 3), 0.5),
        confidence=torch.full((count,), confidence),
        view=torch.zeros(count, dtype=torch.long),
    )


def guide(cloud: PointCloud, height: int = 32, width: int = 48):
    cameras = make_cameras(2, height, width)
    cameras = replace(cameras, c2w=torch.eye(4).expand(2, 4, 4))
    scene = replace(make_scene(1, height, width), cameras=cameras[:1])
    ends = (Anchor(frame=0, view=0), Anchor(frame=1, view=0))
    return render_guidance(scene, cloud, Trajectory(cameras=cameras, anchors=ends))


def test_hints_tell_confidence_and_depth_over_the_mean():
    far = replace(wall(4.0, 0.3), view=torch.ones(120**2, dtype=torch.long))
    cloud = replace(wall(2.0, 0.9), alternatives=(wall(4.0, 0.25), wall(40.0, 1.0)))
    hints = guide(cloud).hints
    assert hints is not None
    assert hints.shape == (3 + 5, 2, 2, 8, 12)
    expected = [(0.9, 0.0)] * 3 + [(0.0, 0.0)] + [(0.25, 0.4621)] * 2 + [(1.0, 1.0)] * 2
    torch.testing.assert_close(
        hints.mean(dim=(1, 3, 4)), torch.tensor(expected), atol=1e-3, rtol=0.0
    )
    others = guide(
        PointCloud(
            **{
                name: torch.cat([getattr(cloud, name), getattr(far, name)])
                for name in ("xyz", "rgb", "confidence", "view")
            }
        )
    ).hints
    assert others is not None
    torch.testing.assert_close(others[3, :, 0], torch.full((2, 8, 12), 0.3))


def test_cells_cut_by_the_border_are_means_of_what_is_there():
    hints = guide(wall(2.0, 0.7), height=30, width=46).hints
    assert hints is not None
    assert hints.shape[-2:] == (8, 12)
    torch.testing.assert_close(hints[1, :, 0], torch.full((2, 8, 12), 0.7))


def test_what_is_not_trusted_has_no_hint_among_the_trusted():
    hints = guide(wall(2.0, 0.2)).hints
    assert hints is not None
    assert not hints[0].any()
    torch.testing.assert_close(hints[1, :, 0], torch.full((2, 8, 12), 0.2))


def test_the_teachers_renders_have_no_hints():
    assert make_guidance(TEACHER_GUIDANCE)[0].hints is None


def test_the_condition_ends_with_hints_where_something_was_hit():
    guidance = make_guidance()[0]
    assert guidance.hints is not None
    stacked = stack_guidance([guidance], 5)
    codec = CompactCodec(config=replace(MANY, patch=4))
    hints = codec.condition_sources(stacked).concat[:, -MANY.hint_channels :]
    plain = CompactCodec(config=replace(PLAIN, patch=4)).condition_sources(stacked).concat
    assert torch.equal(codec.condition_sources(stacked).concat[:, : plain.shape[1]], plain)
    told = guidance.hints.transpose(0, 1).flatten(1, 2).transpose(0, 1)
    torch.testing.assert_close(hints[0], told)
    gone = replace(stacked, layer_masks=torch.zeros_like(stacked.layer_masks))
    hints = codec.condition_sources(gone).concat[:, -MANY.hint_channels :]
    assert not hints[:, 2:6].any()
    assert hints[:, 6:].any()


@pytest.mark.parametrize("patch", [2, 8])
def test_hints_follow_the_size_of_the_latents(patch):
    codec = CompactCodec(config=replace(MANY, patch=patch))
    made = sources()
    hints = codec._hints(made)
    assert hints.shape[1:] == (MANY.hint_channels, 4, 32 // patch, 48 // patch)


def test_a_condition_with_hints_remembers_where_nothing_was_seen():
    codec, made = CompactCodec(config=MANY), sources()
    assert torch.equal(codec.unseen(codec.condition_sources(made)), made.unseen)


def test_hints_change_nothing_at_first_and_are_learned_from():
    plain = widen(CompactBackbone(PLAIN), gate=True, num_alternatives=5)
    wide = widen(plain, gate=True, num_alternatives=5, hints=True)
    assert wide.config == MANY
    torch.testing.assert_close(answer(wide, sources()), answer(plain, sources()))
    with torch.no_grad():
        for parameter in wide.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    batch = prepare_batch(make_clips(num_alternatives=5), CompactCodec(config=MANY), None)
    t = torch.full((len(batch.x0),), 300.0)
    wide(batch.x0, t, batch.condition)[0].square().mean().backward()
    assert wide.stem.weight.grad is not None
    moved = wide.stem.weight.grad[:, -MANY.hint_channels :].abs().sum(dim=(0, 2, 3))
    assert bool((moved > 0).all())
    silent = replace(sources(), hints=torch.zeros_like(sources().hints))
    assert not torch.equal(answer(wide, sources()), answer(wide, silent))


@pytest.mark.parametrize(
    ("num_alternatives", "hints", "sentence"), [(0, True, "0 and hints"), (1, False, "1 and no")]
)
def test_alternatives_cannot_be_put_before_hints_or_between_others(
    num_alternatives, hints, sentence
):
    config = replace(MANY, num_alternatives=num_alternatives, hints=hints)
    with pytest.raises(WeightsError, match=sentence):
        widen(CompactBackbone(config), gate=True, num_alternatives=5)
    assert widen(CompactBackbone(config), gate=True, num_alternatives=0).config == config


def test_networks_without_hints_read_what_they_know():
    condition = CompactCodec(config=MANY).condition_sources(sources())
    x = torch.randn(len(condition.concat), MANY.latent_channels, *condition.concat.shape[2:])
    t = torch.full((len(x),), 500.0)
    plain = CompactCodec(config=PLAIN).condition_sources(sources())
    for config in (PLAIN, replace(PLAIN, num_alternatives=0)):
        backbone = CompactBackbone(config)
        assert torch.equal(backbone(x, t, condition)[0], backbone(x, t, plain)[0])
    with pytest.raises(InputError, match="their hints"):
        CompactBackbone(MANY)(x, t, plain)
    with pytest.raises(InputError, match="no hints"):
        CompactBackbone(replace(PLAIN, num_alternatives=1))(x, t, condition)


def test_time_turned_round_changes_the_places_of_hints():
    clips = make_clips(1, num_alternatives=5)
    turned = _reverse_hints(clips.hints.float())
    order = [0, 2, 1, 3, 5, 4, 7, 6]
    assert torch.equal(turned, clips.hints.float()[:, order].flip(2))
    assert torch.equal(_reverse_hints(turned), clips.hints.float())
    assert _reverse_hints(turned[:, :0]).shape == turned[:, :0].shape


def test_hints_are_flipped_with_the_pixels_and_sometimes_lost():
    clips = make_clips(24, num_alternatives=5)
    lost, seen = 0, set()
    for seed in range(12):
        made, _ = _augment(clips, torch.Generator().manual_seed(seed))
        kept = made.hints.flatten(1).any(dim=1)
        lost += int((~kept).sum())
        # Masks of layers are only ever flipped and turned round, so they tell what happened.
        ways = [
            (axes, turned)
            for axes in ((), (-1,), (-2,), (-1, -2))
            for turned in (False, True)
            if torch.equal(made.layer_masks, _moved(clips.layer_masks, axes, turned))
        ]
        assert len(ways) == 1
        axes, turned = ways[0]
        plain = clips.hints.float()
        expected = torch.flip(_reverse_hints(plain) if turned else plain, axes)
        assert torch.equal(made.hints[kept], expected[kept])
        seen.add(ways[0])
    assert 0 < lost < 24 * 12 // 4
    assert {turned for _, turned in seen} == {True, False}
    assert len({axes for axes, _ in seen}) > 2


def _moved(layers: torch.Tensor, axes: tuple[int, ...], turned: bool) -> torch.Tensor:
    """Layers `B 2 T 1 H W`, flipped, and turned round in time with their ends."""
    return torch.flip(layers.flip(1, 2) if turned else layers, axes)


def test_clips_keep_hints_and_those_from_before_stand_beside_them(tmp_path):
    from safetensors.torch import load_file, save_file

    clips = make_clips(num_alternatives=5)
    save_clips(tmp_path / "new.safetensors", clips)
    assert torch.equal(load_clips(tmp_path / "new.safetensors").hints, clips.hints)
    tensors = load_file(tmp_path / "new.safetensors")
    del tensors["hints"]
    save_file(tensors, tmp_path / "old.safetensors")
    old = load_clips(tmp_path / "old.safetensors")
    assert join_clips([old, clips]).hints.shape == (8, 8, 4, 2, 8, 12)
    condition = CompactCodec(config=MANY).condition_sources(plain_sources(old)[0])
    assert not condition.concat[:, -MANY.hint_channels :].any()


def test_a_student_with_hints_learns_from_a_teacher_without(tmp_path):
    save_compact(tmp_path / "new", CompactBackbone(MANY), role="regression", num_steps=1)
    save_compact(tmp_path / "old", CompactBackbone(PLAIN), role="teacher", num_steps=50)
    args = {"device": torch.device("cpu"), "seed": 0}
    cast = make_cast(MANY, init=tmp_path / "new", teacher=tmp_path / "old", **args)
    assert (cast.model.config.hints, cast.teacher.config.hints) == (True, False)
    firm = CompactBackbone(replace(MANY, fine_power=3.0))
    save_compact(tmp_path / "firm", firm, role="regression", num_steps=1)
    cast = make_cast(MANY, init=tmp_path / "firm", teacher=tmp_path / "old", **args)
    assert (cast.model.config.fine_power, cast.teacher.config.fine_power) == (3.0, 1.0)
    other = CompactBackbone(replace(PLAIN, detail=4))
    save_compact(tmp_path / "other", other, role="teacher", num_steps=50)
    with pytest.raises(WeightsError, match="one shape"):
        make_cast(MANY, init=tmp_path / "firm", teacher=tmp_path / "other", **args)
    wanted = replace(MANY, fine_power=3.0)
    grown = make_cast(wanted, init=tmp_path / "old", teacher=None, is_grown=True, **args)
    assert grown.model.config == wanted


def test_a_generator_with_hints_takes_any_size_and_guidance(tmp_path):
    backbone = CompactBackbone(MANY)
    torch.nn.init.normal_(backbone.stem.weight, std=0.3)
    torch.nn.init.normal_(backbone.head.conv.weight, std=0.3)
    save_compact(tmp_path, backbone, role="regression", num_steps=1)
    generator = load_generator(tmp_path, fast=False)
    guidance, cloud, trajectory = make_guidance()
    told, silent = (
        generator.generate(replace(guidance, hints=h), seed=0) for h in (guidance.hints, None)
    )
    assert not torch.equal(told, silent)
    scene = make_scene(3, 30, 46)
    cameras = trajectory.cameras.resize(30, 46)
    odd = render_guidance(scene, cloud, replace(trajectory, cameras=cameras))
    assert generator.generate(odd, seed=0).shape[-2:] == (30, 46)


def test_guidance_takes_its_hints_along():
    moved = make_guidance()[0].to("meta")
    assert moved.hints is not None
    assert moved.hints.is_meta
    assert len(make_views(9, 0)) == 9


def test_what_another_training_changed_is_added(tmp_path):
    torch.manual_seed(0)
    start = CompactBackbone(replace(PLAIN, fine_power=2.0))
    end = CompactBackbone(start.config)
    weights = {k: v + 0.1 * torch.randn_like(v) for k, v in start.state_dict().items() if v.numel()}
    end.load_state_dict(start.state_dict() | weights)
    network = CompactBackbone(MANY)
    moved = add_change(network, start, end)
    assert moved.config == MANY
    same = widen(end, gate=True, num_alternatives=5, hints=True, blend=MANY)
    again = add_change(
        widen(start, gate=True, num_alternatives=5, hints=True, blend=MANY), start, end
    )
    for name, value in again.state_dict().items():
        torch.testing.assert_close(value, same.state_dict()[name])
    assert not torch.equal(moved.stem.weight, network.stem.weight)
    new = slice(PLAIN.latent_channels + PLAIN.condition_channels, None)
    assert torch.equal(moved.stem.weight[:, new], network.stem.weight[:, new])
    with pytest.raises(WeightsError, match="one shape"):
        add_change(network, start, CompactBackbone(replace(PLAIN, detail=4)))
