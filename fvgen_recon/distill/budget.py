"""Distillation within a wall-clock budget: the stages' own losses in a thin loop.

The shared trainer counts steps and resumes exactly; this loop spends seconds, on clips that are
still being made while it runs.
"""

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from fvgen_recon.diffusion.compact.codec import CompactCodec
from fvgen_recon.distill.calibration import fit_temperature
from fvgen_recon.distill.clip import ClipBank
from fvgen_recon.distill.config import DmdSettings, GanSettings, OdeSettings
from fvgen_recon.distill.data import TrainingBatch
from fvgen_recon.distill.pretrain import autocast, prepare_batch, update_ema
from fvgen_recon.distill.randomness import StepRng
from fvgen_recon.distill.role import Roles, StepReport, Turn
from fvgen_recon.distill.stages import disc_logits, dmd_step, gan_init_step, ode_step
from fvgen_recon.errors import TrainingError


@dataclass(frozen=True, kw_only=True, slots=True)
class DistilConfig:
    """One stage of distillation."""

    name: str
    seconds: float
    """Wall-clock budget; learning rates fall to a tenth over it."""
    settings: GanSettings | DmdSettings | OdeSettings
    max_steps: int = 1_000_000
    """Most updates of the student; where they end the stage, learning rates fall over them."""
    batch_size: int = 12
    student_rate: float = 5e-5
    judge_rate: float = 2e-4
    """Learning rate of the discriminator and of the critic."""
    judge_turns: int = 2
    """Updates of the judges before each of the student's."""
    warmup_turns: int = 100
    """Updates of the judges alone before the first of the student."""
    calibrate: int = 8
    """Batches on which the discriminator's temperature is fitted at the end of an adversarial
    start, for the weights of the matching that follows; 0 leaves it as it is."""
    clip_norm: float = 1.0
    ema: float = 0.998


@dataclass(frozen=True, kw_only=True, slots=True)
class DistilProgress:
    """One line of a distillation curve: means since the last one."""

    stage: str
    step: int
    """Updates of the student so far; 0 while only the judges train."""
    turns: int
    """Updates of the judges so far."""
    seconds: float
    scalars: dict[str, float] = field(default_factory=dict)


class _Means:
    """Running means that stay on the device until they are read."""

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}
        self.counts: dict[str, int] = {}

    def add(self, name: str, value: Tensor) -> None:
        """Count a value in."""
        value = value.detach().float().mean()
        self.sums[name] = self.sums.get(name, torch.zeros_like(value)) + value
        self.counts[name] = self.counts.get(name, 0) + 1

    def collect(self, report: StepReport) -> None:
        """Count a step's report in."""
        for name, value in report.scalars.items():
            self.add(name, value)
        if report.accuracy is not None:
            total = report.accuracy.count.sum().clamp_min(1)
            self.add("disc/accuracy", report.accuracy.correct.sum() / total)

    def read(self) -> dict[str, float]:
        """Return the means and start anew."""
        means = {name: float(total) / self.counts[name] for name, total in self.sums.items()}
        self.sums, self.counts = {}, {}
        return means


def _judges(roles: Roles, settings: GanSettings | DmdSettings | OdeSettings) -> list[nn.Parameter]:
    """Weights of those who judge the student in this stage; a frozen discriminator is none."""
    if isinstance(settings, OdeSettings):
        return []
    trains_disc = isinstance(settings, GanSettings) or settings.train_disc
    modules = [m for m in (roles.disc if trains_disc else None, roles.critic) if m is not None]
    return [p for m in modules for p in m.parameters() if p.requires_grad]


class _Loop:
    """One stage while it runs."""

    def __init__(
        self, roles: Roles, bank: ClipBank, codec: CompactCodec, config: DistilConfig, seed: int
    ) -> None:
        self.roles, self.bank, self.codec, self.config = roles, bank, codec, config
        self.weights = {
            "student": list(roles.student.parameters()),
            "judges": _judges(roles, config.settings),
        }
        self.device = self.weights["student"][0].device
        self.optimizers = {turn: self._optimizer(w) for turn, w in self.weights.items() if w}
        self.local = torch.Generator(self.device).manual_seed(seed + 1)
        self.rng = StepRng(torch.Generator().manual_seed(seed), [self.local])
        self.means = _Means()
        self.start, self.step, self.turns = time.monotonic(), 0, 0

    def _optimizer(self, weights: list[nn.Parameter]) -> torch.optim.Optimizer:
        return torch.optim.AdamW(
            weights, betas=(0.0, 0.99), weight_decay=0.0, fused=self.device.type == "cuda"
        )

    @property
    def seconds(self) -> float:
        """Seconds so far."""
        return time.monotonic() - self.start

    @property
    def share(self) -> float:
        """Share of the budget that is spent."""
        return max(self.seconds / self.config.seconds, self.step / self.config.max_steps)

    @property
    def num_judge_turns(self) -> int:
        """Updates of the judges before the next one of the student."""
        if not self.weights["judges"]:
            return 0
        return self.config.warmup_turns if self.step == 0 else self.config.judge_turns

    def batch(self) -> TrainingBatch:
        """Draw clips, prepared."""
        ready = prepare_batch(self.bank.draw(self.config.batch_size), self.codec, self.local)
        unseen = self.codec.unseen(ready.condition)
        latent = self.codec.encode(unseen.float().expand(-1, -1, 3, -1, -1)) > 0
        return TrainingBatch(x0=ready.x0, condition=ready.condition, unseen=latent)

    def set_rates(self, share: float) -> None:
        """Let the learning rates fall."""
        decay = 0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * share))
        rates = {"student": self.config.student_rate, "judges": self.config.judge_rate}
        for turn, optimizer in self.optimizers.items():
            optimizer.param_groups[0]["lr"] = rates[turn] * decay

    def update(self, turn: Turn) -> None:
        """One update of one side."""
        loss, report = self._losses(turn)
        weights, optimizer = self.weights[turn], self.optimizers[turn]
        # Accumulated by autograd, gradients take their parameter's memory layout, as fused Adam
        # needs.
        loss.backward(inputs=weights)
        norm = nn.utils.clip_grad_norm_(weights, self.config.clip_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        who = "student" if turn == "student" else "judge"
        self.means.add(f"{who}/loss", loss)
        self.means.add(f"{who}/norm", norm)
        self.means.collect(report)
        if turn == "student":
            self.step += 1
        else:
            self.turns += 1

    def _losses(self, turn: Turn) -> tuple[Tensor, StepReport]:
        batch, settings = self.batch(), self.config.settings
        with autocast(self.device):
            if isinstance(settings, GanSettings):
                losses, report = gan_init_step(self.roles, batch, self.rng, settings, turn)
            elif isinstance(settings, DmdSettings):
                losses, report = dmd_step(self.roles, batch, self.rng, settings, turn)
            else:
                losses, report = ode_step(self.roles, batch, self.rng, settings)
        return losses.total(), report

    def read(self) -> DistilProgress:
        """Return a line of the curve.

        Raises:
            TrainingError: Something is no longer finite.
        """
        scalars = self.means.read()
        if not all(math.isfinite(v) for v in scalars.values()):
            raise TrainingError(
                f"Stage {self.config.name} is no longer finite at step {self.step}: {scalars}."
            )
        return DistilProgress(
            stage=self.config.name,
            step=self.step,
            turns=self.turns,
            seconds=self.seconds,
            scalars=scalars,
        )

    @torch.no_grad()
    def calibrate(self) -> None:
        """Fit the discriminator's temperature on fresh draws, so that its logit says log r."""
        settings, disc = self.config.settings, self.roles.plain_disc
        if not isinstance(settings, GanSettings) or disc is None or self.config.calibrate == 0:
            return
        pairs = []
        for _ in range(self.config.calibrate):
            with autocast(self.device):
                pairs.append(
                    disc_logits(
                        self.roles, self.batch(), self.rng, settings.rollout, settings.noise
                    )
                )
        real, fake = (torch.cat(part) for part in zip(*pairs, strict=True))
        disc.set_temperature(fit_temperature(real, fake))
        self.means.add("disc/temperature", disc.temperature)


def distil(
    roles: Roles,
    ema: nn.Module,
    bank: ClipBank,
    codec: CompactCodec,
    config: DistilConfig,
    *,
    seed: int = 0,
    log_every: int = 50,
) -> Iterator[DistilProgress]:
    """Train the student and its judges until the budget is spent; yields the curve as it goes.

    Lines come every `log_every` updates of the student and, before its first one, of the judges.

    Raises:
        TrainingError: A loss stopped being finite.
    """
    loop, share = _Loop(roles, bank, codec, config, seed), 0.0
    while share < 1:
        if loop.step % 25 == 0:
            bank.refresh()
        loop.set_rates(share)
        for _ in range(loop.num_judge_turns):
            loop.update("judges")
            if loop.step == 0 and loop.turns % log_every == 0:
                yield loop.read()
        loop.update("student")
        update_ema(ema, roles.student, min(config.ema, (1 + loop.step) / (10 + loop.step)))
        share = loop.share
        if loop.step % log_every == 0 or share >= 1:
            if share >= 1:
                loop.calibrate()
            yield loop.read()
