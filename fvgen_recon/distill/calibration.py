"""Is the discriminator's logit a log-ratio? Temperature, and what to watch while training."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Shaped
from torch import Tensor

from fvgen_recon.errors import InputError

NUM_TIME_BINS = 10
"""Bins of equal width over the noise times in which the discriminator is judged."""


@dataclass(frozen=True, kw_only=True, slots=True)
class WeightStatistics:
    """How the ratio weights of a batch spread; stays on the device."""

    mean: Float[Tensor, ""]
    low: Float[Tensor, ""]
    high: Float[Tensor, ""]
    mean_square: Float[Tensor, ""]
    """mean^2 / mean_square is the effective share of the samples, in (0, 1]."""


def weight_statistics(weight: Float[Tensor, "B"]) -> WeightStatistics:
    """Summarise the ratio weights of a batch."""
    return WeightStatistics(
        mean=weight.mean(),
        low=weight.amin(),
        high=weight.amax(),
        mean_square=weight.square().mean(),
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class BinnedAccuracy:
    """How often the discriminator was right, by noise time; adds up over steps."""

    correct: Float[Tensor, "bins"]
    """Right decisions in each bin of t; real and generated clips count alike."""
    count: Float[Tensor, "bins"]
    """All decisions in each bin of t."""

    def __add__(self, other: "BinnedAccuracy") -> "BinnedAccuracy":
        """Add the counts."""
        return BinnedAccuracy(correct=self.correct + other.correct, count=self.count + other.count)

    def share(self) -> Float[Tensor, "bins"]:
        """Accuracy in each bin; NaN where nothing was decided."""
        return self.correct / self.count


def binned_accuracy(
    logit_real: Float[Tensor, "B"],
    logit_fake: Float[Tensor, "B"],
    t: Shaped[Tensor, "B"],
    num_timesteps: int,
) -> BinnedAccuracy:
    """Count right decisions by noise time. Undecided logits (exactly 0) count half."""
    right = torch.cat([logit_real.detach(), -logit_fake.detach()]).float().sign().add(1).div(2)
    bins = (t.float() * (NUM_TIME_BINS / num_timesteps)).long().clamp(0, NUM_TIME_BINS - 1)
    bins = torch.cat([bins, bins])
    zeros = right.new_zeros(NUM_TIME_BINS)
    return BinnedAccuracy(
        correct=zeros.index_add(0, bins, right),
        count=zeros.index_add(0, bins, torch.ones_like(right)),
    )


def fit_temperature(
    logit_real: Float[Tensor, "N"], logit_fake: Float[Tensor, "M"], *, largest: float = 100.0
) -> float:
    """Find the temperature that makes logit / temperature the best log-ratio.

    Minimises the logistic loss of held-out clips over one positive number (Guo et al. 2017, section
    4.2), by bisection on its derivative, which is monotonic in 1 / temperature. A discriminator
    that is too sure of itself gets a temperature above 1.

    Args:
        logit_real: Logits of real clips that the discriminator was not trained on.
        logit_fake: Logits of generated clips, as many.
        largest: The temperature of a discriminator that is no better than chance, and the inverse
            of the smallest one.

    Returns:
        The temperature, in [1 / largest, largest].

    Raises:
        InputError: The counts differ or there are none.
    """
    if logit_real.numel() != logit_fake.numel() or logit_real.numel() == 0:
        raise InputError(
            "Calibration needs as many real as generated clips, and at least one: "
            f"{logit_real.numel()} and {logit_fake.numel()} came."
        )
    margin = torch.cat([logit_real, -logit_fake]).detach().double()
    low, high = 1.0 / largest, largest
    for _ in range(60):
        middle = (low * high) ** 0.5
        slope = float(-(margin * torch.sigmoid(-middle * margin)).mean())
        low, high = (middle, high) if slope < 0 else (low, middle)
    return 1.0 / (low * high) ** 0.5


def calibration_error(
    logit_real: Float[Tensor, "N"], logit_fake: Float[Tensor, "N"], num_bins: int = 10
) -> float:
    """Return the expected calibration error: mean |confidence - accuracy| over bins (Guo et al.).

    0 is a logit that says log r exactly; 0.5 one that is always sure and no better than chance.
    """
    chance = torch.sigmoid(torch.cat([logit_real, logit_fake]).detach().double())
    is_real = torch.cat([torch.ones_like(logit_real), torch.zeros_like(logit_fake)]).double()
    bins = (chance * num_bins).long().clamp(0, num_bins - 1)
    gap = chance.new_zeros(num_bins).index_add(0, bins, chance - is_real)
    return float(gap.abs().sum() / chance.numel())


def logistic_loss(logit_real: Float[Tensor, "N"], logit_fake: Float[Tensor, "N"]) -> float:
    """Return the mean logistic loss of held-out clips; log 2 is chance."""
    real, fake = logit_real.detach().double(), logit_fake.detach().double()
    return float(torch.cat([F.softplus(-real), F.softplus(fake)]).mean())
