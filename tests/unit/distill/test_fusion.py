"""Training of the fusion: what is drawn, and a problem that the mean cannot solve."""

from pathlib import Path

import pytest
import torch

from fvgen_recon.distill.fusion.bank import FusionBank
from fvgen_recon.distill.fusion.training import FusionSettings, FusionTrainer
from fvgen_recon.errors import WeightsError
from fvgen_recon.evaluation.fusion import gain_table, mean_gain, measure_examples
from fvgen_recon.fusion.config import FusionConfig
from fvgen_recon.fusion.example import Example
from fvgen_recon.fusion.network import FusionNetwork
from fvgen_recon.fusion.sample import make_sample
from fvgen_recon.fusion.view import FusionView, ViewFacts

CPU = torch.device("cpu")
SMALL = FusionConfig(widths=(8, 12, 16), num_blocks=(1, 1, 1))


def _example(scene: str, seed: int, height: int = 40, width: int = 48) -> Example:
    """Return a view that members agree on in its one half, where alone the splat is right."""
    rng = torch.Generator().manual_seed(seed)
    photo = torch.rand(3, height // 8, width // 8, generator=rng)
    photo = photo.repeat_interleave(8, 1).repeat_interleave(8, 2)
    noise = 0.25 * torch.randn(2, 3, height, width, generator=rng)
    is_left = torch.zeros(1, height, width)
    is_left[..., : width // 2] = 1
    if seed % 2:
        is_left = 1 - is_left
    facts = ViewFacts(share=0.5, num_inputs=3, num_members=3, angle=0.2, distance=0.5, scale=1.0)
    view = FusionView(
        splat=(photo + noise[0] * (1 - is_left)).clamp(0, 1)[None],
        frame=(photo + noise[1] * is_left).clamp(0, 1)[None],
        spread=0.2 * (1 - is_left)[None],
        opacity=torch.ones(1, 1, height, width),
        trusted=torch.ones(1, 1, height, width),
        layered=torch.ones(1, 1, height, width),
        facts=facts.row(),
    )
    return Example(scene=scene, name=str(seed), sample=make_sample(view, photo))


def _settings(**changes) -> FusionSettings:
    return FusionSettings(
        seconds=1e9, batch_size=4, crop=32, learning_rate=4e-3, ema=0.9, log_every=20, **changes
    )


def _trainer(**changes) -> FusionTrainer:
    torch.manual_seed(0)
    bank = FusionBank([_example("room", seed) for seed in range(6)], CPU, seed=0)
    return FusionTrainer(FusionNetwork(SMALL), bank, _settings(**changes), None)


def test_batches_are_cut_alike_from_all_images():
    # Other sizes, and a scene that is smaller than the cut-outs are wanted.
    bank = FusionBank([_example("a", 0), _example("b", 1, 24, 64), _example("b", 2)], CPU, seed=0)
    for _ in range(20):
        batch = bank.draw(3, 48)
        view, size = batch.view, batch.photo.shape[-1]
        assert batch.photo.shape == (3, 3, size, size)
        assert size % 16 == 0
        assert size <= 48
        for splat, photo, spread in zip(view.splat, batch.photo, view.spread, strict=True):
            # Where members agree the splat is the photo, whatever was turned, cut or painted, but
            # for the photo's own brightness; elsewhere it is not.
            sure = (spread[0] < 1e-3) & (splat.amin(0) > 0.05)
            if int(sure.sum()) < 20:
                continue
            ratio = (photo / splat.clamp_min(1e-3))[:, sure].median(dim=1).values
            error = (splat * ratio[:, None, None] - photo).abs()
            assert float(error[:, sure].max()) < 0.05
            if int((spread[0] > 0.1).sum()) > 20:
                assert float(error[:, spread[0] > 0.1].max()) > 0.1
        assert bool((batch.unit > 0).all())


def test_a_network_learns_what_the_mean_cannot_know():
    trainer = _trainer(max_steps=120)
    lines = list(trainer.run())
    assert lines[-1].step == 120
    assert lines[-1].error < 0.5 * lines[0].error
    # A view of another scene, in which the other half is right.
    figures = measure_examples(trainer.average, [_example("hall", s) for s in (10, 11)], CPU)
    assert mean_gain(figures) > 3
    splat, frame, mean, learned = figures[0].psnr
    assert learned > max(splat, frame, mean)
    table = gain_table(figures)
    assert "| hall | 2 |" in table
    assert "| 3 members, 3 inputs | 2 |" in table


def test_the_perceptual_distance_counts():
    trainer = _trainer(max_steps=1, perceptual_weight=1.0, perceptual_views=2)
    seen = []

    def distance(image: torch.Tensor, photo: torch.Tensor) -> torch.Tensor:
        seen.append(image.shape[0])
        return (image - photo).abs().mean(dim=(1, 2, 3))

    trainer.perceptual = distance
    (line,) = trainer.run()
    assert seen == [2]
    assert line.distance > 0


def test_a_training_goes_on_where_it_stopped(tmp_path: Path):
    first = _trainer(max_steps=5)
    list(first.run())
    first.save(tmp_path / "state.safetensors")
    second = _trainer(max_steps=8)
    second.resume(tmp_path / "state.safetensors")
    assert (second.step, second.seconds) == (5, first.seconds)
    for ours, theirs in zip(
        (second.network, second.average), (first.network, first.average), strict=True
    ):
        torch.testing.assert_close(ours.state_dict(), theirs.state_dict())
    list(second.run())
    assert second.step == 8
    (tmp_path / "bad.safetensors").write_bytes(b"nothing")
    with pytest.raises(WeightsError, match="no state of a training"):
        second.resume(tmp_path / "bad.safetensors")
