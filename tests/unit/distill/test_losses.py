"""The losses against closed forms: golden numbers, quadrature, Monte Carlo, and mutations."""

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.distributions import Normal

from fvgen_recon.distill.losses import (
    CURVATURE_AT_ONE,
    DIVERGENCES,
    Divergence,
    approximate_gradient_penalty,
    denoising_loss,
    density_ratio_weight,
    gan_disc_loss,
    gan_student_loss,
    inverse_variance,
    matching_gradient,
    pseudo_target_loss,
)

NAMES: dict[str, Divergence] = {
    "rkl": "rkl",
    "soft_rkl": "soft_rkl",
    "one_over_r": "neyman",
    "js": "js",
    "fkl": "fkl",
}
SOFTENED = {  # m, s: D, dD/dm, dD/ds of KL((p+q)/2 || p) with p = N(0, 1), by an outside quadrature
    (1.0, 1.0): (0.13857852, 0.30101357, 0.09949322),
    (0.5, 0.8): (0.03732971, 0.11494856, -0.08171574),
    (-0.7, 0.6): (0.09369819, -0.16339224, -0.22055542),
    (0.0, 0.5): (0.06634021, 0.0, -0.31402435),
    (2.0, 1.0): (0.66316918, 0.77520025, 0.22479975),
}
DIFFUSED = {  # m, s, alpha: the same after noising to alpha x + sqrt(1 - alpha^2) eps
    (1.0, 1.0, 0.8): (0.08582206, 0.18229627, 0.04406519),
    (1.0, 1.0, 0.5): (0.03218870, 0.06618412, 0.00735198),
    (0.5, 0.8, 0.8): (0.02201205, 0.07517291, -0.02654854),
    (0.5, 0.8, 0.5): (0.00805904, 0.03040156, -0.00328417),
}
Weight = Callable[[Tensor, Divergence], Tensor]


def integrand(r: Tensor, divergence: Divergence) -> Tensor:
    """The function f of D_f = E_q[f(r)], written down once more from the definitions."""
    mean = (1 + r) / 2
    return {
        "rkl": -r.log(),
        "soft_rkl": mean * (mean / r).log(),
        "neyman": 0.5 * (1 / r - 1),
        "js": 0.5 * (r * (r / mean).log() - mean.log()),
        "fkl": r * r.log(),
        "jeffreys": (r - 1) * r.log(),
    }[divergence]


def unlimited(logit: Tensor, divergence: Divergence) -> Tensor:
    return density_ratio_weight(logit, divergence, limits=None)


def quadrature(
    divergence: Divergence, m: float, s: float, weight: Weight = unlimited, sign: float = 1.0
) -> tuple[float, float, float]:
    """D by integration, and its gradients through the project's own losses, by integration."""
    z = torch.linspace(-30, 30, 6001, dtype=torch.float64)
    density = Normal(0.0, 1.0).log_prob(z).exp() * (z[1] - z[0])
    mean = torch.tensor(m, dtype=torch.float64, requires_grad=True)
    std = torch.tensor(s, dtype=torch.float64, requires_grad=True)
    x = mean + std * z
    q, p = Normal(mean.detach(), std.detach()), Normal(torch.tensor(0.0).double(), 1.0)
    at = x.detach()
    logit = p.log_prob(at) - q.log_prob(at)
    score_p, score_q = -at, -(at - m) / s**2
    # At alpha = sigma = 1 the prediction of x0 is the noised sample plus the score (Tweedie).
    per_sample = weight(logit, divergence) * CURVATURE_AT_ONE[divergence] * density * len(z)
    per_sample = torch.where(density > 0, per_sample, 0.0)
    gradient = matching_gradient(at, at + score_p, at + score_q, per_sample, normalise=False)
    pseudo_target_loss(x, sign * gradient).backward()
    value = torch.where(density > 0, integrand(logit.exp(), divergence) * density, 0.0).nansum()
    assert mean.grad is not None
    assert std.grad is not None
    return float(value), float(mean.grad), float(std.grad)


@pytest.mark.parity
def test_every_golden_number(parity: Path) -> None:
    rows = json.loads((parity / "divergences_golden.json").read_text())
    assert len(rows) == 25
    for row in rows:
        divergence = NAMES[row["div"]]
        got = quadrature(divergence, row["m"], row["s"])
        want = (row["D"], row["dDdm"], row["dDds"])
        assert got == pytest.approx(want, rel=1e-7, abs=1e-7), (divergence, row["m"], row["s"])


@pytest.mark.parametrize(("m", "s"), SOFTENED)
def test_softened_kl_numbers(m: float, s: float) -> None:
    assert quadrature("soft_rkl", m, s) == pytest.approx(SOFTENED[m, s], abs=2e-8)


def test_closed_forms() -> None:
    m, s = 0.5, 0.8
    value, dm, ds = quadrature("rkl", m, s)
    assert value == pytest.approx(0.5 * (m * m + s * s - 1) - math.log(s), rel=1e-9)
    assert (dm, ds) == pytest.approx((m, s - 1 / s), rel=1e-9)
    value, dm, _ = quadrature("neyman", 1.0, 1.0)
    assert value == pytest.approx(0.5 * (math.e - 1), rel=1e-9)
    assert dm == pytest.approx(math.e, rel=1e-9)


def test_jeffreys_is_the_sum_of_both_kl() -> None:
    parts = [quadrature(d, -0.7, 0.6) for d in ("rkl", "fkl")]
    total = [a + b for a, b in zip(*parts, strict=True)]
    assert quadrature("jeffreys", -0.7, 0.6) == pytest.approx(total, rel=1e-9)


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_weight_is_the_curvature_of_the_divergence(divergence: Divergence) -> None:
    r = torch.logspace(-3, 3, 61, dtype=torch.float64).requires_grad_()
    first = torch.autograd.grad(integrand(r, divergence).sum(), r, create_graph=True)[0]
    second = torch.autograd.grad(first.sum(), r)[0]
    want = (r**2 * second / CURVATURE_AT_ONE[divergence]).detach()
    got = density_ratio_weight(r.detach().log(), divergence, limits=None)
    torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-12)
    one = density_ratio_weight(torch.zeros(3), divergence)
    torch.testing.assert_close(one, torch.ones(3))


@pytest.mark.parametrize(("m", "s", "alpha"), DIFFUSED)
def test_diffused_softened_kl(m: float, s: float, alpha: float) -> None:
    """Gradient through x_t = alpha x + sigma eps with x0 predictions, on a grid of both noises."""
    sigma = math.sqrt(1 - alpha**2)
    nodes = torch.linspace(-9, 9, 361, dtype=torch.float64)
    density = Normal(0.0, 1.0).log_prob(nodes).exp() * (nodes[1] - nodes[0])
    z, eps = (grid.flatten() for grid in torch.meshgrid(nodes, nodes, indexing="ij"))
    mass = (density[:, None] * density).flatten()
    mean = torch.tensor(m, dtype=torch.float64, requires_grad=True)
    std = torch.tensor(s, dtype=torch.float64, requires_grad=True)
    x = mean + std * z
    x_t = (alpha * x + sigma * eps).detach()
    variance = (alpha * s) ** 2 + sigma**2
    score_p, score_q = -x_t, -(x_t - alpha * m) / variance
    x0_p, x0_q = ((x_t + sigma**2 * score) / alpha for score in (score_p, score_q))
    logit = Normal(0.0, 1.0).log_prob(x_t) - Normal(alpha * m, variance**0.5).log_prob(x_t)
    h = unlimited(logit, "soft_rkl") * CURVATURE_AT_ONE["soft_rkl"]
    weight = h * alpha**2 / sigma**2 * mass * len(z)
    gradient = matching_gradient(x.detach(), x0_p, x0_q, weight, normalise=False)
    pseudo_target_loss(x, gradient).backward()
    value = (integrand(logit.exp(), "soft_rkl") * mass).sum()
    assert mean.grad is not None
    assert std.grad is not None
    got = (float(value), float(mean.grad), float(std.grad))
    assert got == pytest.approx(DIFFUSED[m, s, alpha], abs=2e-8)


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_monte_carlo_in_float32(divergence: Divergence, rng: torch.Generator) -> None:
    m, s, num = 1.0, 1.0, 200_000
    z = torch.randn(num, generator=rng)
    x = m + s * z
    logit = Normal(0.0, 1.0).log_prob(x) - Normal(m, s).log_prob(x)
    weight = unlimited(logit, divergence) * CURVATURE_AT_ONE[divergence]
    per_sample = matching_gradient(x, x - x, x - (x - m) / s**2, weight, normalise=False)
    exact = quadrature(divergence, m, s)
    for factor, want in ((torch.ones(num), exact[1]), (z, exact[2])):
        samples = per_sample * factor
        error = float(samples.std()) / math.sqrt(num)
        assert abs(float(samples.mean()) - want) < 5 * error + 1e-6


def test_oracle_gan_is_twice_the_softened_kl() -> None:
    for m, s in SOFTENED:
        u = (torch.arange(100_000, dtype=torch.float64) + 0.5) / 100_000
        z = Normal(0.0, 1.0).icdf(u)
        mean = torch.tensor(m, dtype=torch.float64, requires_grad=True)
        std = torch.tensor(s, dtype=torch.float64, requires_grad=True)
        x = mean + std * z
        q = Normal(torch.tensor(m).double(), torch.tensor(s).double())
        logit = Normal(torch.tensor(0.0).double(), 1.0).log_prob(x) - q.log_prob(x)
        gan_student_loss(logit).backward()
        assert mean.grad is not None
        assert std.grad is not None
        want = [2 * value for value in SOFTENED[m, s][1:]]
        assert (float(mean.grad), float(std.grad)) == pytest.approx(want, abs=2e-4)


MUTATIONS: dict[str, Weight] = {
    "published 1/r for the softened KL": lambda logit, _: (-logit).exp(),
    "plain matching": lambda logit, _: torch.ones_like(logit),
    "missing factor 2": lambda logit, d: unlimited(logit, d) / 2,
    "logit with the wrong sign": lambda logit, d: unlimited(-logit, d),
    "probability instead of logit": lambda logit, d: unlimited(torch.sigmoid(logit), d),
    "normalised over the batch": lambda logit, d: unlimited(logit, d) / unlimited(logit, d).mean(),
}


@pytest.mark.parametrize("mutation", MUTATIONS)
def test_mutated_weights_fail_the_golden_check(mutation: str) -> None:
    got = quadrature("soft_rkl", 1.0, 1.0, weight=MUTATIONS[mutation])
    assert got[1:] != pytest.approx(SOFTENED[1.0, 1.0][1:], rel=1e-2)


def test_wrong_sign_of_the_gradient_fails_the_golden_check() -> None:
    got = quadrature("soft_rkl", 1.0, 1.0, sign=-1.0)
    assert got[1:] == pytest.approx([-v for v in SOFTENED[1.0, 1.0][1:]], rel=1e-6)


@pytest.mark.parametrize("divergence", [d for d in DIVERGENCES if d != "rkl"])
def test_one_clip_keeps_its_weight(divergence: Divergence) -> None:
    logits = torch.tensor([-2.0, 0.5, 2.5])
    together = density_ratio_weight(logits, divergence)
    alone = torch.cat([density_ratio_weight(one, divergence) for one in logits.split(1)])
    assert torch.equal(together, alone)
    assert (alone - 1).abs().amin() > 0.2


def test_weights_are_detached_float32_and_bounded() -> None:
    logit = torch.tensor([-1000.0, 0.0, 1000.0], dtype=torch.bfloat16, requires_grad=True)
    for divergence in DIVERGENCES:
        weight = density_ratio_weight(logit, divergence)
        assert weight.dtype == torch.float32
        assert not weight.requires_grad
        assert torch.isfinite(weight).all()
    assert density_ratio_weight(logit, "soft_rkl").tolist() == [2.0, 1.0, 0.0]
    assert density_ratio_weight(logit, "neyman").tolist() == pytest.approx([10.0, 1.0, 0.05])
    assert density_ratio_weight(logit, "fkl").tolist() == pytest.approx([0.1, 1.0, 20.0])


def test_normaliser_is_per_clip_and_keeps_the_direction(rng: torch.Generator) -> None:
    student, teacher, critic = torch.randn(3, 4, 2, 3, 5, 5, generator=rng)
    weight = torch.tensor([1.0, 0.5, 2.0, 1.0])
    together = matching_gradient(student, teacher, critic, weight)
    for i in range(4):
        alone = matching_gradient(*(x[i : i + 1] for x in (student, teacher, critic, weight)))
        torch.testing.assert_close(together[i : i + 1], alone)
        by_hand = weight[i] * (critic[i] - teacher[i]) / (student[i] - teacher[i]).abs().mean()
        torch.testing.assert_close(alone[0], by_hand)


def test_gradient_moves_the_sample_from_critic_to_teacher() -> None:
    x = torch.zeros(1, 2, requires_grad=True)
    teacher, critic = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])
    gradient = matching_gradient(x.detach(), teacher, critic, torch.ones(1), normalise=False)
    pseudo_target_loss(x, gradient).backward()
    assert x.grad is not None
    step = -x.grad
    assert step[0, 0] > 0 > step[0, 1]
    torch.testing.assert_close(x.grad, torch.tensor([[-0.5, 0.5]]))


def test_predictions_that_are_not_finite_do_not_reach_the_student() -> None:
    x = torch.ones(2, 3)
    teacher = torch.tensor([[1.0, 2.0, torch.nan], [1.0, 1.0, 1.0]])
    gradient = matching_gradient(x, teacher, x + 1, torch.ones(2))
    assert torch.isfinite(gradient).all()


def test_gan_losses_at_known_logits() -> None:
    zero = torch.zeros(4)
    assert float(gan_disc_loss(zero, zero)) == pytest.approx(2 * math.log(2))
    assert float(gan_student_loss(zero)) == pytest.approx(math.log(2))
    assert float(gan_disc_loss(zero + 9, zero - 9)) < 3e-4
    assert float(gan_student_loss(zero - 9)) > 8.9


def test_logistic_loss_learns_the_log_ratio(rng: torch.Generator) -> None:
    """Logit a x^2 + b x + c for p = N(0,1) against q = N(1, .8^2), coefficients known exactly."""
    real, fake = torch.randn(60_000, generator=rng), 1 + 0.8 * torch.randn(60_000, generator=rng)
    coefficients = torch.zeros(3, requires_grad=True)
    optimizer = torch.optim.LBFGS([coefficients], max_iter=60, line_search_fn="strong_wolfe")

    def logit(x: Tensor) -> Tensor:
        return coefficients[0] * x**2 + coefficients[1] * x + coefficients[2]

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = gan_disc_loss(logit(real), logit(fake))
        loss.backward()
        return loss

    optimizer.step(closure)
    want = (0.5 / 0.64 - 0.5, -1 / 0.64, 0.5 / 0.64 + math.log(0.8))
    assert coefficients.tolist() == pytest.approx(want, abs=0.05)


def test_gradient_penalty_estimates_the_squared_slope(rng: torch.Generator) -> None:
    slope = torch.tensor([3.0, -4.0])
    x = torch.randn(100_000, 2, generator=rng)
    moved = x + 0.01 * torch.randn(100_000, 2, generator=rng)
    penalty = approximate_gradient_penalty(x @ slope, moved @ slope, 0.01)
    assert float(penalty) == pytest.approx(25.0, rel=0.03)


def test_denoising_loss_and_velocity_weight(rng: torch.Generator) -> None:
    output, target, eps = torch.randn(3, 4, 2, 3, generator=rng)
    assert float(denoising_loss(output, target)) == pytest.approx(
        float(((output - target) ** 2).mean())
    )
    sigma = torch.tensor([0.2, 0.5, 0.9, 1.0])
    column = sigma[:, None, None]
    x_t = (1 - column) * target + column * eps
    velocity = ((x_t - output) / column - (x_t - target) / column).square().mean()
    loss = denoising_loss(output, target, inverse_variance(sigma))
    assert float(loss) == pytest.approx(float(velocity), rel=1e-5)
    assert float(inverse_variance(torch.tensor([0.0]))) == pytest.approx(100.0)
