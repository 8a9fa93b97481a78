"""Distil a known 2-D mixture into four steps on a CPU, with the project's own losses and stages.

    python scripts/toy_dmd.py --output docs/figures/toy_dmd.png

The teacher is exact: the denoiser of a Gaussian mixture in closed form. Student and critic are
small networks that start as denoisers of the same mixture. The figure shows the teacher, the
student without the adversarial start, with that start alone, and with each divergence after it. A
number says how far each is from the teacher (sliced Wasserstein distance; lower is better, and two
sets of teacher samples are not at 0 either).

Gradients go through all four steps. The last panel but one shows what training one random step
does instead: then only the mixture of what all steps predict is matched to the teacher.
"""

import copy
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import tyro
from torch import Tensor, nn

from fvgen_recon.diffusion.backbone import Condition
from fvgen_recon.diffusion.discriminator import ClipDiscriminator
from fvgen_recon.diffusion.sampler import GuidanceScale
from fvgen_recon.diffusion.schedule import FlowSchedule
from fvgen_recon.distill.config import DiffusionSettings, DmdSettings, GanSettings
from fvgen_recon.distill.data import TrainingBatch
from fvgen_recon.distill.losses import DIVERGENCES, Divergence, density_ratio_weight
from fvgen_recon.distill.randomness import StepRng, batch_rng
from fvgen_recon.distill.role import RoleLosses, Roles, Turn
from fvgen_recon.distill.rollout import RolloutSettings, sample_student
from fvgen_recon.distill.stages import diffusion_step, dmd_step, gan_init_step

NUM_FEATURES = 64


@dataclass(frozen=True, kw_only=True, slots=True)
class Mixture:
    """Isotropic Gaussians in the plane."""

    mean: Tensor
    std: Tensor
    share: Tensor

    def sample(self, num: int, rng: torch.Generator) -> Tensor:
        """Draw points, shaped like clips [num 2 1 1 1]."""
        which = torch.multinomial(self.share, num, replacement=True, generator=rng)
        x = self.mean[which] + self.std[which, None] * torch.randn(num, 2, generator=rng)
        return x[:, :, None, None, None]

    def log_density(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """Log density of alpha x0 + sigma eps at points [B 2], with alpha and sigma [B]."""
        return self._log_parts(x, alpha, sigma).logsumexp(dim=1)

    def x0(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """The best denoiser: mean of x0 given x_t, in closed form."""
        chance = self._log_parts(x, alpha, sigma).softmax(dim=1)[..., None]
        variance = (alpha[:, None] * self.std) ** 2 + sigma[:, None] ** 2
        gain = alpha[:, None] * self.std**2 / variance
        residual = x[:, None] - alpha[:, None, None] * self.mean
        return (chance * (self.mean + gain[..., None] * residual)).sum(dim=1)

    def _log_parts(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        variance = (alpha[:, None] * self.std) ** 2 + sigma[:, None] ** 2
        squares = (x[:, None] - alpha[:, None, None] * self.mean).square().sum(dim=2)
        return self.share.log() - 0.5 * squares / variance - (2 * math.pi * variance).log()


def toy_mixture() -> Mixture:
    """Five uneven modes, four around one."""
    return Mixture(
        mean=torch.tensor([[1.3, 0.3], [-0.2, 1.4], [-1.4, 0.0], [0.2, -1.3], [0.0, 0.0]]),
        std=torch.tensor([0.16, 0.24, 0.16, 0.24, 0.16]),
        share=torch.tensor([0.25, 0.2, 0.1, 0.25, 0.2]),
    )


class MixtureTeacher(nn.Module):
    """The exact denoiser; its mid features are fixed random waves of the point and the time."""

    waves: Tensor

    def __init__(self, mixture: Mixture, schedule: FlowSchedule) -> None:
        super().__init__()
        self.mixture, self.schedule = mixture, schedule
        rng = torch.Generator().manual_seed(1)
        self.register_buffer("waves", torch.randn(3, NUM_FEATURES // 2, generator=rng) * 2.0)

    def forward(
        self, x_t: Tensor, t: Tensor, condition: Condition, *, return_mid: bool = False
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Return x0, which is what a FlowSchedule's network predicts."""
        x = x_t.flatten(1)
        alpha, sigma = self.schedule.alpha_sigma(t)
        x0 = self.mixture.x0(x, alpha, sigma)[:, :, None, None, None]
        if not return_mid:
            return x0, ()
        angle = torch.cat([x, sigma[:, None]], dim=1) @ self.waves
        feature = torch.cat([angle.sin(), angle.cos()], dim=1)
        return x0, (feature[:, :, None, None, None],)


class PointBackbone(nn.Module):
    """A small network for one point: x0 from x_t and t, in the shape that backbones have."""

    def __init__(self, width: int = 128) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(2 + 16, width),
            nn.SiLU(),
            nn.Linear(width, width),
            nn.SiLU(),
            nn.Linear(width, width),
            nn.SiLU(),
            nn.Linear(width, 2),
        )

    def forward(
        self, x_t: Tensor, t: Tensor, condition: Condition, *, return_mid: bool = False
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Return x0 and no features."""
        phase = (t.float() / 999)[:, None] * math.pi * torch.arange(1, 9)
        h = torch.cat([x_t.flatten(1), phase.sin(), phase.cos()], dim=1)
        return self.net(h)[:, :, None, None, None], ()


def toy_batch(mixture: Mixture, num: int, rng: torch.Generator) -> TrainingBatch:
    """Real points without any condition."""
    empty = torch.zeros(num, 0, 1)
    concat = torch.zeros(num, 0, 1, 1, 1)
    condition = Condition(concat=concat, context=empty, null_context=empty)
    return TrainingBatch(x0=mixture.sample(num, rng), condition=condition)


@dataclass(frozen=True, kw_only=True, slots=True)
class ToySettings:
    """How long and how large."""

    output: Path = Path("docs/figures/toy_dmd.png")
    """Where the figure goes."""
    seed: int = 0
    """Of the first weights, the draws and the noise."""
    batch_size: int = 256
    """Points an update."""
    denoiser_steps: int = 1200
    """Updates of the denoiser that student and critic start from."""
    gan_steps: int = 300
    """Student updates of stage 1."""
    dmd_steps: int = 300
    """Student updates of stage 2."""
    judge_turns: int = 3
    """Updates of the judges for each one of the student."""
    student_rate: float = 1e-3
    """Learning rate of the student."""
    judge_rate: float = 2e-3
    """Learning rate of critic and discriminator."""


ROLLOUT = RolloutSettings(num_steps=4, gradient="all_steps")
ONE_STEP = RolloutSettings(num_steps=4)
PLAIN = GuidanceScale(scale=1.0, rescale=0.0)


class Optimiser:
    """Adam with a moving average; with a number of steps, the rate falls to zero over them."""

    def __init__(self, module: nn.Module, rate: float, num_steps: int | None = None) -> None:
        self.weights = list(module.parameters())
        self.adam = torch.optim.Adam(self.weights, lr=rate, betas=(0.0, 0.99))
        self.rate, self.num_steps, self.done = rate, num_steps, 0
        self.average = [w.detach().clone() for w in self.weights]

    def update(self, losses: RoleLosses) -> None:
        """Take one step down."""
        if self.num_steps is not None:
            share = self.done / self.num_steps
            self.adam.param_groups[0]["lr"] = self.rate * 0.5 * (1 + math.cos(math.pi * share))
        gradients = torch.autograd.grad(losses.total(), self.weights)
        for weight, gradient in zip(self.weights, gradients, strict=True):
            weight.grad = gradient
        self.adam.step()
        self.done += 1
        torch._foreach_lerp_(self.average, [w.detach() for w in self.weights], 0.05)

    @torch.no_grad()
    def finish(self) -> None:
        """Keep the average."""
        for weight, average in zip(self.weights, self.average, strict=True):
            weight.copy_(average)


class Toy:
    """The mixture, the roles and the loops of the toy."""

    def __init__(self, settings: ToySettings) -> None:
        self.settings = settings
        self.mixture, self.schedule = toy_mixture(), FlowSchedule()
        self.rng = torch.Generator().manual_seed(settings.seed)
        self.teacher = MixtureTeacher(self.mixture, self.schedule)

    def denoiser(self) -> nn.Module:
        """Train the network that student and critic start from."""
        torch.manual_seed(self.settings.seed)
        roles = Roles(schedule=self.schedule, student=PointBackbone())
        how = DiffusionSettings(space="velocity", null_share=0.0)
        student = Optimiser(roles.student, 3e-3, self.settings.denoiser_steps)
        for _ in range(self.settings.denoiser_steps):
            losses, _ = diffusion_step(roles, *self._draw(), how)
            student.update(losses)
        student.finish()
        return roles.student

    def roles(self, start: nn.Module) -> Roles:
        """Student and critic as copies of the denoiser, a fresh discriminator."""
        torch.manual_seed(self.settings.seed)
        disc = ClipDiscriminator((NUM_FEATURES,), width=128, kernel_size=1)
        return Roles(
            schedule=self.schedule,
            teacher=self.teacher,
            student=copy.deepcopy(start),
            critic=copy.deepcopy(start),
            disc=disc,
            plain_disc=disc,
        )

    def gan(self, roles: Roles) -> None:
        """Stage 1."""
        how = GanSettings(rollout=ROLLOUT)
        student = Optimiser(roles.student, self.settings.student_rate, self.settings.gan_steps)
        disc = Optimiser(roles.need_disc(), self.settings.judge_rate)
        for turn in self._turns(self.settings.gan_steps):
            losses, _ = gan_init_step(roles, *self._draw(), how, turn)
            (student if turn == "student" else disc).update(losses)
        student.finish()

    def dmd(self, roles: Roles, divergence: Divergence, rollout: RolloutSettings = ROLLOUT) -> None:
        """Stage 2, the discriminator frozen as in the paper."""
        num_steps = self.settings.dmd_steps
        how = DmdSettings(
            rollout=rollout,
            divergence=divergence,
            guidance=PLAIN,
            critic_space="velocity",
            normalise=False,
        )
        student = Optimiser(roles.student, self.settings.student_rate, num_steps)
        critic = Optimiser(roles.need_critic(), self.settings.judge_rate)
        for turn in self._turns(num_steps):
            losses, _ = dmd_step(roles, *self._draw(), how, turn)
            (student if turn == "student" else critic).update(losses)
        student.finish()

    def samples(self, roles: Roles, num: int = 4000) -> Tensor:
        """Points from all four steps of the student."""
        rng = torch.Generator().manual_seed(7)
        batch = toy_batch(self.mixture, num, rng)
        return sample_student(roles, batch, batch_rng(rng), ROLLOUT).flatten(1)

    def _draw(self) -> tuple[TrainingBatch, StepRng]:
        batch = toy_batch(self.mixture, self.settings.batch_size, self.rng)
        return batch, batch_rng(self.rng)

    def _turns(self, num_steps: int) -> list[Turn]:
        cycle: list[Turn] = ["judges" for _ in range(self.settings.judge_turns)]
        return [*cycle, "student"] * num_steps


def sliced_distance(a: Tensor, b: Tensor, num_directions: int = 64) -> float:
    """Mean 1-D Wasserstein distance of two point sets of one size over fixed directions."""
    angle = torch.linspace(0, math.pi, num_directions + 1)[:-1]
    directions = torch.stack([angle.cos(), angle.sin()])
    gap = (a @ directions).sort(dim=0).values - (b @ directions).sort(dim=0).values
    return float(gap.abs().mean())


def run(settings: ToySettings) -> dict[str, Tensor]:
    """Train everything; returns point sets by panel title, the teacher's first."""
    toy = Toy(settings)
    start = toy.denoiser()
    panels = {"teacher": toy.mixture.sample(4000, torch.Generator().manual_seed(5)).flatten(1)}
    print("denoiser trained", flush=True)
    # Without stage 1 there is no discriminator to weigh with: plain matching, as in the ablation.
    bare = toy.roles(start)
    panels["start (4 steps)"] = toy.samples(bare)
    toy.dmd(bare, "rkl")
    panels["no GAN start, rkl"] = toy.samples(bare)
    first = toy.roles(start)
    toy.gan(first)
    panels["GAN only"] = toy.samples(first)
    print("stage 1 done", flush=True)
    for divergence in DIVERGENCES:
        roles = copy.deepcopy(first)
        toy.dmd(roles, divergence)
        panels[f"GAN + {divergence}"] = toy.samples(roles)
        print(f"stage 2 with {divergence} done", flush=True)
    roles = copy.deepcopy(first)
    toy.dmd(roles, "soft_rkl", ONE_STEP)
    panels["soft_rkl, one-step gradient"] = toy.samples(roles)
    return panels


def draw(panels: dict[str, Tensor], path: Path) -> None:
    """Draw the point sets side by side with their distances to the teacher."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    truth = panels["teacher"]
    fresh = toy_mixture().sample(len(truth), torch.Generator().manual_seed(6)).flatten(1)
    figure, axes = plt.subplots(2, 6, figsize=(14.4, 5.6))
    for axis, (title, points) in zip(axes.flat[:-1], panels.items(), strict=True):
        distance = sliced_distance(fresh if title == "teacher" else points, truth)
        axis.scatter(*points.T.tolist(), s=0.6, linewidths=0, alpha=0.5, color="#205080")
        axis.set_title(f"{title}\nW = {distance:.3f}", fontsize=9)
        axis.set(xlim=(-2.4, 2.4), ylim=(-2.4, 2.4), xticks=[], yticks=[], aspect="equal")
    _draw_weights(axes.flat[-1])
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=90)
    plt.close(figure)


def _draw_weights(axis: Any) -> None:
    """Draw the weight of each divergence over the discriminator's logit."""
    logit = torch.linspace(-4, 4, 200)
    for divergence in DIVERGENCES:
        weight = density_ratio_weight(logit, divergence)
        axis.plot(logit.tolist(), weight.tolist(), label=divergence, linewidth=1.2)
    axis.set_title("weight over logit log r", fontsize=9)
    axis.set(yscale="log", ylim=(0.03, 30))
    axis.tick_params(labelsize=7)
    axis.legend(fontsize=6, frameon=False)


def main(settings: ToySettings) -> None:
    """Train, draw and print the distances."""
    began = time.monotonic()
    panels = run(settings)
    draw(panels, settings.output)
    for title, points in panels.items():
        print(f"{title:20s} W = {sliced_distance(points, panels['teacher']):.4f}")
    print(f"{settings.output} after {time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    main(tyro.cli(ToySettings, description=__doc__))
