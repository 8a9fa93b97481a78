from dataclasses import replace

import pytest
import torch
from unit.distill.compact_bank import CONFIG, CPU, make_bank, make_clips, squared_distance

from fvgen_recon.diffusion.compact.codec import CompactCodec
from fvgen_recon.diffusion.schedule import FlowSchedule
from fvgen_recon.distill.cast import make_cast
from fvgen_recon.distill.pretrain import (
    PretrainConfig,
    Pretraining,
    TrainBatch,
    level_weight,
    noise_levels,
    plain_sources,
    prepare_batch,
    pretrain,
    pretrain_loss,
    with_own_answers,
)
from fvgen_recon.errors import TrainingError


def _stage(**settings) -> Pretraining:
    config = PretrainConfig(
        name="test", seconds=1e9, batch_size=2, warmup_steps=2, learning_rate=3e-3, **settings
    )
    return Pretraining(
        codec=CompactCodec(config=CONFIG),
        schedule=FlowSchedule(num_timesteps=CONFIG.num_timesteps),
        config=config,
        perceptual=squared_distance,
    )


def _validation(model, stage) -> float:
    batch = prepare_batch(make_clips(seed=9), stage.codec, None)
    with torch.no_grad():
        rng = torch.Generator().manual_seed(5)
        return float(pretrain_loss(model, batch, stage, rng, 0.0))


@pytest.mark.parametrize("diffusion", [False, True])
def test_training_lowers_the_error_on_unseen_clips(tmp_path, diffusion):
    stage = _stage(diffusion=diffusion, max_steps=40, full_noise_share=0.5)
    cast = make_cast(CONFIG, init=None, teacher=None, device=CPU, seed=0)
    before = _validation(cast.model, stage)
    lines = list(pretrain(cast.model, cast.ema, make_bank(tmp_path / "bank"), stage, log_every=20))
    assert [line.step for line in lines] == [20, 40]
    assert _validation(cast.model, stage) < 0.9 * before
    assert _validation(cast.ema, stage) < before


def test_the_perceptual_distance_enters_at_its_weight(tmp_path):
    stage = _stage(perceptual_weight=0.5, perceptual_start=0.5)
    assert stage.perceptual_weight(0.4) == 0.0
    assert stage.perceptual_weight(0.5) == 0.5
    cast = make_cast(CONFIG, init=None, teacher=None, device=CPU, seed=0)
    batch = prepare_batch(make_clips(), stage.codec, None)

    def loss(weight: float) -> float:
        rng = torch.Generator().manual_seed(5)
        return float(pretrain_loss(cast.model, batch, stage, rng, weight))

    extra = loss(1.0) - loss(0.0)
    assert extra > 0
    assert loss(2.0) - loss(0.0) == pytest.approx(2 * extra, rel=1e-3)


def test_the_perceptual_distance_asks_for_no_detail_where_nothing_was_seen():
    stage = _stage(perceptual_weight=1.0)
    cast = make_cast(CONFIG, init=None, teacher=None, device=CPU, seed=0)
    batch = prepare_batch(make_clips(), stage.codec, None)
    assert 0 < float(batch.unseen.float().mean()) < 1

    def extra(batch: TrainBatch) -> float:
        losses = []
        for weight in (0.0, 1.0):
            rng = torch.Generator().manual_seed(5)
            with torch.no_grad():
                losses.append(float(pretrain_loss(cast.model, batch, stage, rng, weight)))
        return losses[1] - losses[0]

    everything = replace(batch, unseen=torch.ones_like(batch.unseen))
    nothing = replace(batch, unseen=torch.zeros_like(batch.unseen))
    assert extra(everything) == pytest.approx(0, abs=1e-6)
    assert 0 < extra(batch) < extra(nothing)


def test_augmentation_treats_photos_and_renders_alike(tmp_path):
    clips = make_clips()
    codec = CompactCodec(config=CONFIG)
    for seed in range(8):
        batch = prepare_batch(clips, codec, torch.Generator().manual_seed(seed))
        shown = codec.decode(batch.condition.concat[:, : codec.latent_channels])
        is_known = (batch.hole == 0).expand_as(batch.target)
        # Latents lie in [-1, 1] and unknown pixels at 0 there, which is 0.5 as a colour.
        assert torch.allclose(shown[is_known], batch.target[is_known], atol=0.01)
        assert bool(is_known[:, [0, -1]].all())


def test_plain_sources_keep_the_photos(tmp_path):
    clips = make_clips()
    sources, target = plain_sources(clips)
    assert torch.equal(sources.frames[:, 0], target[:, 0])
    assert sources.is_anchor[0].tolist() == [True, False, False, True]


def test_a_loss_that_is_not_finite_stops_with_a_sentence(tmp_path):
    stage = _stage(max_steps=2)
    cast = make_cast(CONFIG, init=None, teacher=None, device=CPU, seed=0)
    with torch.no_grad():
        next(cast.model.parameters()).fill_(float("nan"))
    with pytest.raises(TrainingError, match="not finite at step 2"):
        list(pretrain(cast.model, cast.ema, make_bank(tmp_path / "bank"), stage))


def test_the_rate_rises_and_falls():
    stage = _stage()
    rates = [stage.rate(step, share) for step, share in ((0, 0.0), (1, 0.0), (50, 0.5), (99, 1.0))]
    assert rates[0] == pytest.approx(0.5 * rates[1])
    assert rates[1] == pytest.approx(3e-3)
    assert rates[1] > rates[2] > rates[3] > 0


def test_a_condition_remembers_where_nothing_was_seen():
    codec = CompactCodec(config=CONFIG)
    for rng in (None, torch.Generator().manual_seed(1)):
        batch = prepare_batch(make_clips(), codec, rng)
        assert batch.unseen.any()
        assert not batch.unseen.all()
        assert torch.equal(codec.unseen(batch.condition), batch.unseen)


def test_errors_count_as_much_at_every_time():
    config = PretrainConfig(name="test", seconds=1.0, diffusion=True, spread=0.16)
    level = torch.tensor([1.0, 0.5, 0.2, 0.05])
    sigma = level / (1 - level)
    left = 1 / (1 / 0.16**2 + 1 / sigma**2)  # of a guess off by 0.16 and a frame off by sigma
    torch.testing.assert_close(level_weight(config, level) * left, torch.full((4,), 0.16**2))
    assert torch.equal(level_weight(config, level[3:]), level_weight(config, torch.zeros(1)))
    before = level_weight(replace(config, spread=None), level)
    torch.testing.assert_close(before, torch.tensor([1.0, 4.0, 25.0, 25.0]))


def test_a_shift_moves_times_to_higher_noise():
    config = PretrainConfig(name="test", seconds=1.0, diffusion=True, full_noise_share=0.0)

    def draw(config: PretrainConfig) -> torch.Tensor:
        return noise_levels(config, 4000, torch.Generator().manual_seed(0), CPU)

    plain, shifted = draw(config), draw(replace(config, time_shift=3.0))
    ratio = (shifted / (1 - shifted)) / (plain / (1 - plain))
    torch.testing.assert_close(ratio, torch.full_like(ratio, 3.0), rtol=1e-2, atol=0)
    pure = draw(replace(config, time_shift=3.0, full_noise_share=0.25)) == 1
    assert float(pure.float().mean()) == pytest.approx(0.25, abs=0.03)


def test_a_share_of_the_clips_starts_from_the_models_own_answers():
    stage = _stage(diffusion=True, own_share=0.5)
    cast = make_cast(CONFIG, init=None, teacher=None, device=CPU, seed=0)
    with torch.no_grad():  # As made, its answer does not depend on the noise.
        for parameter in cast.model.parameters():
            parameter.add_(0.05)
    batch = prepare_batch(make_clips(), stage.codec, None)
    rng = torch.Generator().manual_seed(1)
    eps = torch.randn(batch.x0.shape, generator=rng)
    clean = with_own_answers(cast.model, batch, stage, eps, rng)
    t = torch.full((4,), float(CONFIG.num_timesteps - 1))
    with torch.no_grad():
        answer = cast.model(eps, t, batch.condition)[0]
    # The first answers the noise that is added, the second another; the others are photos.
    assert torch.allclose(clean[0], answer[0], atol=1e-5)
    assert not torch.allclose(clean[1], answer[1], atol=1e-5)
    assert not torch.equal(clean[1], batch.x0[1])
    assert torch.equal(clean[2:], batch.x0[2:])
    assert not clean.requires_grad


def test_regression_answers_pure_noise_only():
    stage = _stage(own_share=0.5)
    batch = prepare_batch(make_clips(), stage.codec, None)
    rng = torch.Generator()
    assert with_own_answers(torch.nn.Identity(), batch, stage, batch.x0, rng) is batch.x0
