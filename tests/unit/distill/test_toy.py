"""The toy's exact parts, and the stages' fixed point where everything is known in closed form."""

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from fvgen_recon.diffusion.backbone import Condition
from fvgen_recon.diffusion.discriminator import ClipDiscriminator
from fvgen_recon.diffusion.sampler import GuidanceScale
from fvgen_recon.diffusion.schedule import FlowSchedule
from fvgen_recon.distill.config import DmdSettings
from fvgen_recon.distill.losses import DIVERGENCES, Divergence
from fvgen_recon.distill.randomness import batch_rng
from fvgen_recon.distill.role import Roles
from fvgen_recon.distill.rollout import NoiseRange, RolloutSettings
from fvgen_recon.distill.stages import dmd_step
from scripts.toy_dmd import (
    Mixture,
    MixtureTeacher,
    Toy,
    ToySettings,
    draw,
    sliced_distance,
    toy_batch,
    toy_mixture,
)

SCHEDULE = FlowSchedule()
MEAN, STD = torch.tensor([0.8, -0.5]), 0.6


def gaussian(mean: Tensor, std: Tensor) -> Mixture:
    return Mixture(mean=mean[None], std=std[None], share=torch.ones(1))


def test_denoiser_of_the_mixture_obeys_tweedie() -> None:
    mixture = toy_mixture()
    t = torch.tensor([50, 300, 700, 950])
    alpha, sigma = SCHEDULE.alpha_sigma(t)
    x = (torch.randn(4, 2, generator=torch.Generator().manual_seed(0)) * 1.2).requires_grad_()
    score = torch.autograd.grad(mixture.log_density(x, alpha, sigma).sum(), x)[0]
    want = (x + sigma[:, None] ** 2 * score) / alpha[:, None]
    torch.testing.assert_close(mixture.x0(x, alpha, sigma), want.detach(), rtol=1e-3, atol=1e-4)


def test_samples_have_the_moments_of_the_mixture(rng: torch.Generator) -> None:
    mixture = toy_mixture()
    points = mixture.sample(40_000, rng).flatten(1)
    want = (mixture.share[:, None] * mixture.mean).sum(dim=0)
    torch.testing.assert_close(points.mean(dim=0), want, atol=0.02, rtol=0)
    one = torch.ones(len(points))
    assert sliced_distance(points, points) == 0
    assert sliced_distance(points, points + 1) == pytest.approx(2**1.5 / math.pi, rel=0.01)
    assert torch.isfinite(mixture.log_density(points, one, 0 * one)).all()


class GaussianStudent(nn.Module):
    """One step from noise z to m + s z: its law is known exactly."""

    def __init__(self) -> None:
        super().__init__()
        self.mean = nn.Parameter(torch.tensor([-0.4, 0.3]))
        self.std = nn.Parameter(torch.tensor(1.1))

    def forward(
        self, x_t: Tensor, t: Tensor, condition: Condition, *, return_mid: bool = False
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        return self.mean[:, None, None, None] + self.std * x_t, ()


class ExactCritic(nn.Module):
    """The exact denoiser of what the student makes at this moment."""

    def __init__(self, student: GaussianStudent) -> None:
        super().__init__()
        self.student = (student,)

    def forward(
        self, x_t: Tensor, t: Tensor, condition: Condition, *, return_mid: bool = False
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        law = gaussian(self.student[0].mean.detach(), self.student[0].std.detach())
        return MixtureTeacher(law, SCHEDULE)(x_t, t, condition)


class ExactTeacher(MixtureTeacher):
    """Shows the noised sample and its noise level as features."""

    def forward(
        self, x_t: Tensor, t: Tensor, condition: Condition, *, return_mid: bool = False
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        x0, _ = super().forward(x_t, t, condition)
        sigma = SCHEDULE.alpha_sigma(t)[1][:, None, None, None, None]
        return x0, (torch.cat([x_t, sigma], dim=1),)


class ExactDiscriminator(ClipDiscriminator):
    """The log-ratio itself."""

    def __init__(self, student: GaussianStudent) -> None:
        super().__init__((3,), width=8)
        self.student = (student,)

    def forward(self, features: tuple[Tensor, ...], *, calibrated: bool = False) -> Tensor:
        x, sigma = features[0].flatten(1)[:, :2], features[0].flatten(1)[:, 2]
        q = gaussian(self.student[0].mean.detach(), self.student[0].std.detach())
        p = gaussian(MEAN, torch.tensor(STD))
        return p.log_density(x, 1 - sigma, sigma) - q.log_density(x, 1 - sigma, sigma)


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_every_divergence_leads_to_the_teacher(divergence: Divergence) -> None:
    student = GaussianStudent()
    roles = Roles(
        schedule=SCHEDULE,
        teacher=ExactTeacher(gaussian(MEAN, torch.tensor(STD)), SCHEDULE),
        student=student,
        critic=ExactCritic(student),
        plain_disc=ExactDiscriminator(student),
    )
    settings = DmdSettings(
        rollout=RolloutSettings(num_steps=1),
        noise=NoiseRange(low=0.2, high=0.7),
        divergence=divergence,
        guidance=GuidanceScale(scale=1.0, rescale=0.0),
        normalise=False,
    )
    rng = torch.Generator().manual_seed(0)
    optimizer = torch.optim.SGD(student.parameters(), lr=2.0)
    batch = toy_batch(gaussian(MEAN, torch.tensor(STD)), 512, rng)
    for step in range(120):
        losses, _ = dmd_step(roles, batch, batch_rng(rng), settings, "student")
        optimizer.zero_grad()
        losses.total().backward()
        nn.utils.clip_grad_norm_(student.parameters(), 0.1 if step < 90 else 0.01)
        optimizer.step()
    torch.testing.assert_close(student.mean.detach(), MEAN, atol=0.03, rtol=0)
    assert abs(float(student.std)) == pytest.approx(STD, abs=0.03)


def test_toy_runs_and_draws_a_small_figure(tmp_path: Path) -> None:
    settings = ToySettings(denoiser_steps=3, gan_steps=2, dmd_steps=2, batch_size=8, judge_turns=1)
    toy = Toy(settings)
    roles = toy.roles(toy.denoiser())
    toy.gan(roles)
    toy.dmd(roles, "soft_rkl")
    points = toy.samples(roles, num=50)
    assert points.shape == (50, 2)
    truth = toy.mixture.sample(50, torch.Generator().manual_seed(0)).flatten(1)
    panels = {"teacher": truth} | {f"{i}": points for i in range(10)}
    draw(panels, tmp_path / "toy.png")
    assert (tmp_path / "toy.png").stat().st_size < 200_000
