from dataclasses import replace

import pytest
import torch
from unit.distill.compact_bank import CONFIG, CPU, make_bank, squared_distance

from fvgen_recon.diffusion.compact.codec import CompactCodec
from fvgen_recon.distill.budget import distil
from fvgen_recon.distill.cast import make_cast
from fvgen_recon.errors import TrainingError
from fvgen_recon.recipes.compact import distillation_stages, make_recipe

STAGES = {stage.name: stage for stage in distillation_stages()}
TRAINED = {
    "gan": {"student", "disc"},
    "gan-loose": {"student", "disc"},
    "gan-free": {"student", "disc"},
    "gan-perceptual": {"student", "disc"},
    "dmd": {"student", "critic"},
    "dmd-high": {"student", "critic"},
    "dmd-anchored": {"student", "critic"},
    "dmd-rkl": {"student", "critic"},
    "dmd-inverse": {"student", "critic"},
    "dmd2": {"student", "critic", "disc"},
    "ode": {"student"},
}


def _snapshot(module):
    return {k: v.detach().clone() for k, v in module.state_dict().items()}


def _changed(module, before) -> bool:
    return any(not torch.equal(v, before[k]) for k, v in module.state_dict().items())


def _setup(name, **settings):
    cast = make_cast(CONFIG, init=None, teacher=None, device=CPU, seed=0)
    rng = torch.Generator().manual_seed(1)
    with torch.no_grad():  # Layers that start at zero would hide who learns from whom.
        for network in (cast.model, cast.teacher, cast.disc):
            for parameter in network.parameters():
                parameter.add_(0.02 * torch.randn(parameter.shape, generator=rng))
    config = replace(STAGES[name], batch_size=2, warmup_turns=1, seconds=1e9, **settings)
    codec = CompactCodec(config=CONFIG)
    return cast, codec, config, cast.roles(config, codec, squared_distance, seed=0)


def test_every_stage_is_tested():
    assert set(TRAINED) == set(STAGES)


@pytest.mark.parametrize("name", sorted(TRAINED))
def test_each_stage_trains_just_whom_it_should(tmp_path, name):
    cast, codec, config, roles = _setup(name, max_steps=2)
    networks = {
        "student": roles.student,
        "teacher": roles.teacher,
        "critic": roles.critic,
        "disc": roles.disc,
    }
    before = {k: _snapshot(m) for k, m in networks.items() if m is not None}
    points = list(distil(roles, cast.ema, make_bank(tmp_path / "bank"), codec, config))
    changed = {k for k, state in before.items() if _changed(networks[k], state)}
    assert changed == TRAINED[name]
    assert [point.step for point in points] == [2]
    assert points[0].scalars["student/norm"] > 0


def test_the_anchor_pulls_the_student_to_the_photos(tmp_path):
    cast, codec, config, roles = _setup("gan", max_steps=25, student_rate=3e-3)
    points = list(distil(roles, cast.ema, make_bank(tmp_path / "bank"), codec, config, log_every=5))
    assert points[-1].scalars["student/loss"] < 0.9 * points[0].scalars["student/loss"]


def test_stops_with_a_sentence_where_a_loss_is_not_finite(tmp_path):
    cast, codec, config, roles = _setup("gan", max_steps=1)
    with torch.no_grad():
        next(roles.student.parameters()).fill_(float("nan"))
    with pytest.raises(TrainingError, match="no longer finite at step 1"):
        list(distil(roles, cast.ema, make_bank(tmp_path / "bank"), codec, config))


def test_the_warm_up_of_the_judges_has_lines_of_its_own(tmp_path):
    cast, codec, config, roles = _setup("gan", max_steps=3)
    config = replace(config, warmup_turns=5, judge_turns=1)
    points = list(distil(roles, cast.ema, make_bank(tmp_path / "bank"), codec, config, log_every=2))
    assert [(p.step, p.turns) for p in points] == [(0, 2), (0, 4), (2, 6), (3, 7)]
    assert [set(p.scalars) & {"student/loss"} for p in points[:2]] == [set(), set()]
    assert all("disc/accuracy" in p.scalars for p in points)


@pytest.mark.parametrize(
    ("name", "batches", "fitted"), [("gan", 2, 1), ("gan", 0, 0), ("dmd", 2, 0)]
)
def test_the_adversarial_start_ends_with_a_fitted_temperature(tmp_path, name, batches, fitted):
    cast, codec, config, roles = _setup(name, max_steps=1)
    config = replace(config, calibrate=batches)
    points = list(distil(roles, cast.ema, make_bank(tmp_path / "bank"), codec, config))
    assert (float(cast.disc.temperature) != 1) == bool(fitted)
    assert ("disc/temperature" in points[-1].scalars) == bool(fitted)


def test_the_sharp_recipe_differs_in_its_regression_and_in_how_detail_is_mixed():
    plain, sharp = make_recipe("full"), make_recipe("sharp")
    first = replace(plain.stages[0], perceptual_weight=1.5, perceptual_start=0.0)
    network = replace(plain.network, fine_power=16.0, fine_nearest=True)
    assert sharp == replace(plain, network=network, stages=(first, *plain.stages[1:]))
