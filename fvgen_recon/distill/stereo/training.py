"""The training loop of the stereo network, within a wall-clock budget and resumable."""

import math
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from fvgen_recon.distill.checkpoint import resume_training, save_training
from fvgen_recon.distill.pretrain import update_ema
from fvgen_recon.distill.stereo.bank import StereoBank
from fvgen_recon.distill.stereo.batch import StereoBatch
from fvgen_recon.distill.stereo.gradient import GradientFinder
from fvgen_recon.distill.stereo.loss import FIGURES
from fvgen_recon.distill.stereo.prefetch import draw_ahead
from fvgen_recon.errors import InputError, TrainingError
from fvgen_recon.pointcloud.mvs.network import MvsNetwork


@dataclass(frozen=True, kw_only=True, slots=True)
class StereoSettings:
    """How the stereo network is trained."""

    seconds: float = 240.0
    """Wall-clock budget of the whole training, earlier parts included; the rate falls over it."""
    max_steps: int = 10_000_000
    """Updates after which training ends, where the budget has not ended it."""
    learning_rate: float = 1e-3
    """At its peak, of AdamW."""
    weight_decay: float = 1e-2
    """Of AdamW."""
    clip_norm: float = 1.0
    """Norm beyond which gradients are scaled down to it."""
    ema: float = 0.998
    """Decay of the moving average of the weights."""
    views_a_batch: int = 16
    """About how many views a batch holds, in groups of two to five."""
    view_shares: tuple[float, ...] = (0.2, 0.45, 0.2, 0.15)
    """How often groups have two, three, four and five views."""
    real_share: float = 0.65
    """Chance that a group is real rather than rendered."""
    sizes: tuple[tuple[int, int], ...] = ((192, 256), (256, 192), (160, 256), (256, 144))
    """Heights and widths of batches; sides are multiples of 16."""
    log_every: int = 25
    """Steps between two lines of the curve."""
    start_seconds: float = 0.0
    """Where the rate's way from its peak to its end begins: earlier parts of a training that is
    taken further have had one of their own."""
    recorded: bool = True
    """Replay forward and backward as CUDA graphs where there is a GPU: one a shape of batch, made
    in about a second when it first comes."""
    tuned: bool = False
    """Let cuDNN try its algorithms of convolution for each new shape (some seconds each)."""
    completion_seconds: float = 0.0
    """Of `seconds`, those from `start_seconds` on in which the completion learns alone: several
    times as many steps, since nothing goes back through the volumes."""
    compiled: bool = False
    """Compile the networks of the volumes (some two minutes before the first steps)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StereoProgress:
    """One line of the curve: means since the last one."""

    step: int
    seconds: float
    rate: float
    speed: float
    """Steps a second since the last line."""
    figures: dict[str, float]


class StereoTrainer:
    """Network, average and optimizer; yields its curve while it trains."""

    def __init__(
        self, network: MvsNetwork, average: MvsNetwork, bank: StereoBank, settings: StereoSettings
    ) -> None:
        self.network, self.average = network, average
        self.bank, self.settings = bank, settings
        names = network.trained_weights()
        self.names = list(names)
        self.device = next(network.parameters()).device
        self.optimizer = torch.optim.AdamW(
            list(names.values()),
            lr=settings.learning_rate,
            weight_decay=settings.weight_decay,
            betas=(0.9, 0.99),
            fused=self.device.type == "cuda",
        )
        network.is_mixed = self.device.type == "cuda"
        if settings.compiled:
            network.compile_volumes()
        on_cuda = self.device.type == "cuda"
        recorded = settings.recorded and on_cuda
        self.quiet = threading.Lock()
        if settings.completion_seconds > 0 and network.completion is None:
            raise InputError(
                "A training of the completion alone was asked for and the network has none: set "
                "`network.num-completion`."
            )
        self.gradients = GradientFinder(network, is_recorded=recorded, quiet=self.quiet)
        self.alone: GradientFinder | None = None
        if settings.completion_seconds > 0:
            self.alone = GradientFinder(
                network, is_recorded=recorded, completion_alone=True, quiet=self.quiet
            )
        self.step, self.seconds = 0, 0.0
        self.first_step = 0
        """At which the rate rose from nothing: at the beginning, and when all weights learn."""
        self.was_alone = False

    @property
    def _networks(self) -> dict[str, nn.Module]:
        return {"model": self.network, "average": self.average}

    def save(self, path: Path) -> None:
        """Write everything that going on needs."""
        spent = (self.step, self.seconds)
        save_training(path, self._networks, self.optimizer, self.names, spent)

    def resume(self, path: Path) -> None:
        """Go on from what `save` wrote.

        Raises:
            WeightsError: It does not fit this network.
        """
        self.step, self.seconds = resume_training(path, self._networks, self.optimizer, self.names)
        # Draws are not repeated: a new seed, from how far the training is.
        self.bank.rng.manual_seed(1_000_003 + self.step)
        # Weights that never learned have no state: the rate has to rise for them still.
        self.was_alone = any(not self.optimizer.state.get(w) for w in self.gradients.weights)

    def _rate(self) -> float:
        start = self.settings.start_seconds
        share = (self.seconds - start) / max(self.settings.seconds - start, 1e-6)
        share = min(1.0, max(0.0, share))
        warm = min(1.0, (self.step - self.first_step + 1) / 50)
        return self.settings.learning_rate * warm * (0.02 + 0.49 * (1 + math.cos(math.pi * share)))

    def _draw(self) -> StereoBatch:
        settings, rng = self.settings, self.bank.rng
        shares = torch.tensor(settings.view_shares)
        num_views = 2 + int(torch.multinomial(shares, 1, generator=rng))
        size = settings.sizes[int(torch.randint(len(settings.sizes), (), generator=rng))]
        num_groups = max(1, settings.views_a_batch // num_views)
        return self.bank.draw(num_groups, num_views, size, settings.real_share)

    def _update(self, batch: StereoBatch) -> Tensor:
        """Take a step; returns the figures and the norm of the gradient."""
        settings = self.settings
        gradients = self._finder()
        figures = gradients.find(batch)
        norm = nn.utils.clip_grad_norm_(gradients.weights, settings.clip_norm)
        self.optimizer.param_groups[0]["lr"] = self._rate()
        self.optimizer.step()
        self.step += 1
        update_ema(
            self.average, self.network, min(settings.ema, (1 + self.step) / (10 + self.step))
        )
        return torch.cat([figures, norm.detach()[None]])

    def _finder(self) -> GradientFinder:
        """Return what finds the gradients of this step; the rate rises anew at the change."""
        settings = self.settings
        if self.seconds - settings.start_seconds < settings.completion_seconds:
            assert self.alone is not None
            self.was_alone = True
            return self.alone
        if self.was_alone:
            self.first_step, self.was_alone, self.alone = self.step, False, None
        return self.gradients

    def run(self) -> Iterator[StereoProgress]:
        """Train until the budget is spent.

        Raises:
            TrainingError: The loss is no longer finite.
        """
        quiet = self.quiet
        before = torch.backends.cudnn.benchmark
        torch.backends.cudnn.benchmark = before or self.settings.tuned
        try:
            with closing(draw_ahead(self._draw, self.device, quiet=quiet)) as batches:
                yield from self._train_on(batches)
        finally:
            torch.backends.cudnn.benchmark = before

    def _train_on(self, batches: Iterator[StereoBatch]) -> Iterator[StereoProgress]:
        last, seconds = time.monotonic(), self.seconds
        sums, count = torch.zeros(len(FIGURES) + 1, device=self.device), 0
        while self.seconds < self.settings.seconds and self.step < self.settings.max_steps:
            sums += self._update(next(batches))
            count += 1
            done = self.step >= self.settings.max_steps
            if self.step % self.settings.log_every == 0 or done:
                # The only look at the GPU: until then the host runs ahead.
                figures = dict(zip((*FIGURES, "norm"), (sums / count).tolist(), strict=True))
                if not math.isfinite(figures["total"]):
                    raise TrainingError(
                        f"The stereo training is no longer finite at step {self.step}: {figures}."
                    )
                spent = self.seconds + time.monotonic() - last - seconds
                yield StereoProgress(
                    step=self.step,
                    seconds=self.seconds,
                    rate=self._rate(),
                    speed=count / max(spent, 1e-6),
                    figures=figures,
                )
                sums.zero_()
                count, seconds = 0, seconds + spent
            now = time.monotonic()
            self.seconds, last = self.seconds + now - last, now
