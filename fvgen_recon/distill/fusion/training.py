"""The training loop of the fusion network, within a wall-clock budget and resumable."""

import copy
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn

from fvgen_recon.distill.checkpoint import resume_training, save_training
from fvgen_recon.distill.fusion.bank import FusionBank, FusionBatch
from fvgen_recon.distill.pretrain import Perceptual, autocast, update_ema
from fvgen_recon.errors import TrainingError
from fvgen_recon.fusion.network import FusionNetwork

_WARM = 100  # Steps.


@dataclass(frozen=True, kw_only=True, slots=True)
class FusionSettings:
    """How a fusion network is trained."""

    seconds: float = 150.0
    """Wall-clock budget, earlier parts included; the rate falls over it."""
    max_steps: int = 10_000_000
    """Updates after which training ends, where the budget has not ended it."""
    batch_size: int = 24
    """Cut-outs an update."""
    crop: int = 256
    """Side of the square cut-outs in pixels; a multiple of 16."""
    learning_rate: float = 1e-3
    """At its peak, of AdamW."""
    weight_decay: float = 0.02
    """Of AdamW."""
    clip_norm: float = 1.0
    """Norm beyond which gradients are scaled down to it."""
    ema: float = 0.998
    """Decay of the moving average of the weights."""
    perceptual_weight: float = 2.0
    """Weight of the perceptual distance beside the squared error, which is 1 for the plain rule."""
    perceptual_views: int = 8
    """Cut-outs of a batch on which it is measured."""
    log_every: int = 50
    """Steps between two lines of the curve."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FusionProgress:
    """One line of the curve: means since the last one."""

    step: int
    seconds: float
    error: float
    """Squared error over that of the plain rule."""
    distance: float
    """Perceptual distance; 0 where there is no network for it."""
    gradient: float
    speed: float
    """Steps a second."""


class FusionTrainer:
    """Network, average and optimizer; yields its curve while it trains.

    Args:
        network: Is trained in place.
        bank: What it is trained on.
        settings: How.
        perceptual: Perceptual distance on the network's device; none trains on squared error alone.
    """

    def __init__(
        self,
        network: FusionNetwork,
        bank: FusionBank,
        settings: FusionSettings,
        perceptual: Perceptual | None,
    ) -> None:
        self.network, self.bank, self.settings = network, bank, settings
        self.average = copy.deepcopy(network).requires_grad_(False)
        self.perceptual = perceptual if settings.perceptual_weight else None
        self.names, weights = zip(*network.named_parameters(), strict=True)
        self.optimizer = torch.optim.AdamW(
            weights,
            lr=settings.learning_rate,
            betas=(0.9, 0.99),
            weight_decay=settings.weight_decay,
            fused=bank.device.type == "cuda",
        )
        self.step, self.seconds = 0, 0.0

    @property
    def _networks(self) -> dict[str, nn.Module]:
        return {"model": self.network, "average": self.average}

    def save(self, path: Path) -> None:
        """Write everything that going on needs."""
        spent = (self.step, self.seconds)
        save_training(path, self._networks, self.optimizer, list(self.names), spent)

    def resume(self, path: Path) -> None:
        """Go on from what `save` wrote.

        Raises:
            WeightsError: It does not fit this network.
        """
        self.step, self.seconds = resume_training(
            path, self._networks, self.optimizer, list(self.names)
        )
        # Draws are not repeated: a new seed, from how far the training is.
        self.bank.rng.manual_seed(1_000_003 + self.step)

    @property
    def share(self) -> float:
        """How much of the budget is spent."""
        settings = self.settings
        return max(self.seconds / max(settings.seconds, 1e-6), self.step / settings.max_steps)

    def _rate(self) -> float:
        warm = min(1.0, (self.step + 1) / _WARM)
        fall = 0.02 + 0.49 * (1 + math.cos(math.pi * min(1.0, self.share)))
        return self.settings.learning_rate * warm * fall

    def _update(self) -> Float[Tensor, "3"]:
        """Take a step; returns squared error, perceptual distance and the gradient's norm."""
        settings = self.settings
        batch = self.bank.draw(settings.batch_size, settings.crop)
        error, distance = fusion_losses(self.network, batch, self.perceptual, settings)
        (error + settings.perceptual_weight * distance).backward()
        norm = nn.utils.clip_grad_norm_(self.network.parameters(), settings.clip_norm)
        self.optimizer.param_groups[0]["lr"] = self._rate()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        decay = min(settings.ema, (1 + self.step) / (10 + self.step))
        update_ema(self.average, self.network, decay)
        return torch.stack([error.detach(), distance.detach(), norm.detach()])

    def run(self) -> Iterator[FusionProgress]:
        """Train until the budget is spent; what is done between two lines does not count.

        Raises:
            TrainingError: The loss is no longer finite.
        """
        while self.share < 1:
            start, before = time.monotonic(), self.seconds
            sums, count = torch.zeros(3, device=self.bank.device), 0
            while self.share < 1 and count < self.settings.log_every:
                sums += self._update()
                count += 1
                self.seconds = before + time.monotonic() - start
            # The only look at the GPU: until then the host runs ahead.
            error, distance, gradient = (sums / count).tolist()
            self.seconds = before + time.monotonic() - start
            if not math.isfinite(error + distance):
                raise TrainingError(
                    f"The fusion's training is no longer finite at step {self.step}."
                )
            yield FusionProgress(
                step=self.step,
                seconds=self.seconds,
                error=error,
                distance=distance,
                gradient=gradient,
                speed=count / max(self.seconds - before, 1e-6),
            )


def fusion_losses(
    network: FusionNetwork,
    batch: FusionBatch,
    perceptual: Perceptual | None,
    settings: FusionSettings,
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """Return the squared error and the perceptual distance of a batch.

    The error of each view is taken over that of the plain rule, so that a dB counts as much in a
    view that is nearly right as in one that is not.
    """
    with autocast(batch.photo.device):
        image = network(batch.view)
    error = ((image - batch.photo).square().mean(dim=(1, 2, 3)) / batch.unit).mean()
    if perceptual is None:
        return error, error.new_zeros(())
    first = slice(settings.perceptual_views)
    with autocast(batch.photo.device):
        distance = perceptual(image[first].clamp(0, 1), batch.photo[first]).mean()
    return error, distance
