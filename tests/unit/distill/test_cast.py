from dataclasses import replace

import pytest
import torch
from unit.distill.compact_bank import CONFIG, CPU, make_clips, squared_distance

from fvgen_recon.diffusion.backbone import Condition
from fvgen_recon.diffusion.compact.codec import CompactCodec
from fvgen_recon.distill.cast import make_cast
from fvgen_recon.distill.pretrain import prepare_batch
from fvgen_recon.errors import WeightsError
from fvgen_recon.recipes.compact import distillation_stages

STAGES = {stage.name: stage for stage in distillation_stages()}


def _scramble(module: torch.nn.Module, seed: int = 3) -> None:
    rng = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=rng).bfloat16())


@pytest.fixture
def cast():
    made = make_cast(CONFIG, init=None, teacher=None, device=CPU, seed=0)
    _scramble(made.ema)
    _scramble(made.disc)
    return made


def test_what_is_kept_comes_back(cast, tmp_path):
    cast.save(tmp_path / "gan", role="gan", num_steps=4, sampler="sde")
    again = make_cast(CONFIG, init=tmp_path / "gan", teacher=None, device=CPU, seed=1)
    for part in ("model", "ema", "teacher"):
        for key, value in getattr(again, part).state_dict().items():
            assert torch.equal(value, cast.ema.state_dict()[key]), (part, key)
    for key, value in again.disc.state_dict().items():
        assert torch.equal(value, cast.disc.state_dict()[key]), key


def test_a_teacher_of_its_own(cast, tmp_path):
    cast.save(tmp_path / "student", role="gan", num_steps=4, sampler="sde")
    _scramble(cast.ema, seed=4)
    cast.save(tmp_path / "teacher", role="teacher", num_steps=50, sampler="ode")
    again = make_cast(
        CONFIG, init=tmp_path / "student", teacher=tmp_path / "teacher", device=CPU, seed=0
    )
    key = "stem.weight"
    assert torch.equal(again.teacher.state_dict()[key], cast.ema.state_dict()[key])
    assert not torch.equal(again.model.state_dict()[key], cast.ema.state_dict()[key])
    assert not any(p.requires_grad for p in again.teacher.parameters())


def test_refuses_a_teacher_of_another_shape(cast, tmp_path):
    cast.save(tmp_path / "student", role="gan", num_steps=4, sampler="sde")
    other = make_cast(
        type(CONFIG)(
            widths=(16, 16, 32), num_blocks=(1, 1, 1), num_attention=1, head_dim=16, embedding=32
        ),
        init=None,
        teacher=None,
        device=CPU,
        seed=0,
    )
    other.save(tmp_path / "teacher", role="teacher", num_steps=50, sampler="ode")
    with pytest.raises(WeightsError, match="must have one shape"):
        make_cast(
            CONFIG, init=tmp_path / "student", teacher=tmp_path / "teacher", device=CPU, seed=0
        )


def test_the_critic_starts_as_the_teacher_and_may_leave_it(cast):
    roles = cast.roles(STAGES["dmd"], CompactCodec(config=CONFIG), squared_distance, seed=0)
    critic = roles.need_critic()
    for key, value in critic.state_dict().items():
        assert torch.equal(value, cast.teacher.state_dict()[key])
    with torch.no_grad():
        next(critic.parameters()).add_(1)
    assert not torch.equal(next(critic.parameters()), next(cast.teacher.parameters()))
    gan = cast.roles(STAGES["gan"], CompactCodec(config=CONFIG), squared_distance, seed=0)
    assert gan.critic is None


def test_the_distance_of_latents_is_that_of_their_frames(cast):
    codec = CompactCodec(config=CONFIG)
    distance = cast.roles(STAGES["gan"], codec, squared_distance, seed=0).perceptual
    real = codec.encode(torch.full((1, 2, 3, 16, 16), 0.25))
    fake = codec.encode(torch.full((1, 2, 3, 16, 16), 0.75))
    everywhere = Condition(
        concat=torch.ones(1, CONFIG.condition_channels, 2, 4, 4),
        context=torch.zeros(1, 0, 1),
        null_context=torch.zeros(1, 0, 1),
    )
    assert torch.isclose(distance(fake, real, everywhere), torch.tensor(0.25))
    assert float(distance(real, real, everywhere)) == 0.0


def test_the_perceptual_distance_leaves_out_what_was_not_seen(cast):
    codec = CompactCodec(config=CONFIG)
    batch = prepare_batch(make_clips(), codec, None)
    roles = cast.roles(STAGES["gan"], codec, squared_distance, seed=0)
    blind = torch.where(batch.unseen, torch.rand(batch.target.shape), batch.target)
    assert float(roles.perceptual(codec.encode(blind), batch.x0, batch.condition)) < 1e-9
    wrong = codec.encode(1 - batch.target)
    assert float(roles.perceptual(wrong, batch.x0, batch.condition)) > 1e-3


def test_a_gate_is_added_only_where_it_is_asked_for(cast, tmp_path):
    cast.save(tmp_path / "teacher", role="teacher", num_steps=50, sampler="ode")
    folder = tmp_path / "teacher"
    wanted = replace(CONFIG, gate=True)
    plain, gated = (
        make_cast(wanted, init=folder, teacher=None, device=CPU, seed=0, is_grown=g)
        for g in (False, True)
    )
    for part in ("model", "ema", "teacher"):
        assert not getattr(plain, part).config.gate
        assert getattr(gated, part).config.gate
    key = "head.finish.last.weight"
    kept = cast.ema.state_dict()[key]
    assert torch.equal(gated.model.state_dict()[key][: len(kept)], kept)
    assert not gated.model.state_dict()[key][len(kept) :].any()
