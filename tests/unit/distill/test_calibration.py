"""Calibration of the discriminator against logits whose truth is known."""

import math

import pytest
import torch

from fvgen_recon.distill.calibration import (
    binned_accuracy,
    calibration_error,
    fit_temperature,
    logistic_loss,
    weight_statistics,
)
from fvgen_recon.errors import InputError


def oracle_logits(num: int, rng: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits log p/q = 1/2 - x of real clips from N(0, 1) and generated ones from N(1, 1)."""
    real, fake = torch.randn(num, generator=rng), 1 + torch.randn(num, generator=rng)
    return 0.5 - real, 0.5 - fake


@pytest.mark.parametrize("factor", [0.3, 1.0, 6.0])
def test_temperature_undoes_a_known_factor(factor: float, rng: torch.Generator) -> None:
    real, fake = oracle_logits(20_000, rng)
    temperature = fit_temperature(factor * real, factor * fake)
    assert temperature == pytest.approx(factor, rel=0.05)
    after = calibration_error(factor * real / temperature, factor * fake / temperature)
    assert after < 0.015
    assert factor == 1.0 or calibration_error(factor * real, factor * fake) > 0.05


def test_blind_discriminator_gets_the_largest_temperature() -> None:
    logits = torch.tensor([-3.0, 3.0])
    assert fit_temperature(logits, logits.flip(0)) > 50
    assert logistic_loss(torch.zeros(5), torch.zeros(5)) == pytest.approx(math.log(2))


def test_counts_must_agree() -> None:
    with pytest.raises(InputError, match="as many real as generated"):
        fit_temperature(torch.zeros(2), torch.zeros(3))


def test_weight_statistics_by_hand() -> None:
    got = weight_statistics(torch.tensor([1.0, 3.0]))
    assert (float(got.mean), float(got.low), float(got.high)) == (2.0, 1.0, 3.0)
    assert float(got.mean_square) == 5.0


def test_binned_accuracy_by_hand() -> None:
    real, fake = torch.tensor([2.0, -1.0, 0.0]), torch.tensor([-2.0, -3.0, 5.0])
    t = torch.tensor([0, 999, 550])
    got = binned_accuracy(real, fake, t, 1000) + binned_accuracy(real, fake, t, 1000)
    assert got.count.tolist() == [4, 0, 0, 0, 0, 4, 0, 0, 0, 4]
    assert got.correct.tolist() == [4, 0, 0, 0, 0, 1, 0, 0, 0, 2]
    assert got.share()[9].item() == 0.5
    assert math.isnan(got.share()[1].item())
