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
from fvgen_recon.distill.clip import ClipBank
from fvgen_recon.distill.config import DmdSettings, GanSettings, OdeSettings
from fvgen_recon.distill.data import TrainingBatch
from fvgen_recon.distill.pretrain import autocast, prepare_batch, update_ema
from fvgen_recon.distill.randomness import StepRng
from fvgen_recon.distill.role import Roles, StepReport, Turn
from fvgen_recon.distill.stages import dmd_step, gan_init_step, ode_step
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
    clip_norm: float = 1.0
    ema: float = 0.998


@dataclass(frozen=True, kw_only=True, slots=True)
class DistilProgress:
    """One line of a distillation curve: means since the last one."""

    stage: str
    step: int
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


def _turn(
    roles: Roles, batch: TrainingBatch, rng: StepRng, config: DistilConfig, turn: Turn
) -> tuple[Tensor, StepReport]:
    with autocast(batch.x0.device):
        if isinstance(config.settings, GanSettings):
            losses, report = gan_init_step(roles, batch, rng, config.settings, turn)
        elif isinstance(config.settings, DmdSettings):
            losses, report = dmd_step(roles, batch, rng, config.settings, turn)
        else:
            losses, report = ode_step(roles, batch, rng, config.settings)
    return losses.total(), report


def _step(
    loss: Tensor, parameters: list[nn.Parameter], optimizer: torch.optim.Optimizer, clip: float
) -> Tensor:
    # Accumulated by autograd, gradients take their parameter's memory layout, as fused Adam needs.
    loss.backward(inputs=parameters)
    norm = nn.utils.clip_grad_norm_(parameters, clip)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return norm


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

    Raises:
        TrainingError: A loss stopped being finite.
    """
    student = list(roles.student.parameters())
    judges = _judges(roles, config.settings)
    device = student[0].device
    fused = device.type == "cuda"
    adam = {"betas": (0.0, 0.99), "weight_decay": 0.0, "fused": fused}
    student_opt = torch.optim.AdamW(student, lr=config.student_rate, **adam)
    judge_opt = torch.optim.AdamW(judges, lr=config.judge_rate, **adam) if judges else None
    shared = torch.Generator().manual_seed(seed)
    local = torch.Generator(device).manual_seed(seed + 1)
    rng, means = StepRng(shared, [local]), _Means()
    start, step, share = time.monotonic(), 0, 0.0

    def batch() -> TrainingBatch:
        ready = prepare_batch(bank.draw(config.batch_size), codec, local)
        return TrainingBatch(x0=ready.x0, condition=ready.condition)

    while share < 1:
        if step % 25 == 0:
            bank.refresh()
        decay = 0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * share))
        student_opt.param_groups[0]["lr"] = config.student_rate * decay
        if judge_opt is not None:
            judge_opt.param_groups[0]["lr"] = config.judge_rate * decay
            for _ in range(config.warmup_turns if step == 0 else config.judge_turns):
                loss, report = _turn(roles, batch(), rng, config, "judges")
                means.add("judge/loss", loss)
                means.add("judge/norm", _step(loss, judges, judge_opt, config.clip_norm))
                _collect(means, report)
        loss, report = _turn(roles, batch(), rng, config, "student")
        means.add("student/loss", loss)
        means.add("student/norm", _step(loss, student, student_opt, config.clip_norm))
        _collect(means, report)
        step += 1
        update_ema(ema, roles.student, min(config.ema, (1 + step) / (10 + step)))
        share = max((time.monotonic() - start) / config.seconds, step / config.max_steps)
        if step % log_every == 0 or share >= 1:
            scalars = means.read()
            if not all(math.isfinite(v) for v in scalars.values()):
                raise TrainingError(
                    f"Stage {config.name} is no longer finite at step {step}: {scalars}."
                )
            yield DistilProgress(
                stage=config.name, step=step, seconds=time.monotonic() - start, scalars=scalars
            )


def _collect(means: _Means, report: StepReport) -> None:
    for name, value in report.scalars.items():
        means.add(name, value)
    if report.accuracy is not None:
        total = report.accuracy.count.sum().clamp_min(1)
        means.add("disc/accuracy", report.accuracy.correct.sum() / total)
