"""The losses of the distillation, as free functions that can be read beside the papers.

Notation: p is the teacher's (or the real) distribution and q the student's, both noised to the same
level; r = p / q; s_p and s_q are their scores. A discriminator trained with the logistic loss on as
many real as generated clips has the logit log r. Every loss is computed in float32 or better.

Every f-divergence D_f(p || q) = E_q[f(r)] has the same gradient up to a weight:

    grad_theta D_f = -E[ h(r) (s_p - s_q) . dx/dtheta ],    h(r) = r^2 f''(r),

for samples x of the student ("One-step diffusion models with f-divergence distribution matching",
Xu et al. 2025, theorem 1). For the softened reverse KL of FVGen, KL((p+q)/2 || p), this gives
h(r) = 1 / (2 (1 + r)). The summaries of FVGen print 1 / r instead; that is the weight of half the
Neyman chi-squared divergence, E_q[(1/r - 1)/2], and *not* the gradient of KL((p+q)/2 || p). It is
offered here under its right name, `neyman`.
"""

import math
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

Divergence = Literal["rkl", "soft_rkl", "neyman", "js", "fkl", "jeffreys"]
"""What the student minimises, with the teacher p and the student q:

- `rkl`: KL(q || p), plain distribution matching (DMD).
- `soft_rkl`: KL((p+q)/2 || p), which the non-saturating GAN loss minimises too.
- `neyman`: half the Neyman chi-squared, the integral of (q - p)^2 / (2 p); the printed 1/r.
- `js`: Jensen-Shannon.
- `fkl`: KL(p || q).
- `jeffreys`: KL(p || q) + KL(q || p).
"""

DIVERGENCES: tuple[Divergence, ...] = get_args(Divergence)

CURVATURE_AT_ONE: dict[Divergence, float] = {
    "rkl": 1.0,
    "soft_rkl": 0.25,
    "neyman": 1.0,
    "js": 0.25,
    "fkl": 1.0,
    "jeffreys": 2.0,
}
"""f''(1): the normalised weight times this gives the divergence's own gradient."""

RATIO_LIMITS = (0.1, 20.0)
"""Limits of r for weights that have no bound of their own (as in f-distill's code)."""

SMALLEST_DISTANCE = 1e-3
"""Floor of the normaliser, in units of the latents: where the teacher predicts the very sample, as
it may right after a start from the teacher, the gradient must not explode."""

_BOUNDED = ("rkl", "soft_rkl", "js")


def density_ratio_weight(
    logit: Float[Tensor, "B"],
    divergence: Divergence,
    *,
    limits: tuple[float, float] | None = RATIO_LIMITS,
) -> Float[Tensor, "B"]:
    """Weigh each clip's distribution-matching gradient by h(r) / h(1), from the logit log r.

    Nothing is normalised over the batch: that would make the weight 1 for a batch of one clip and
    turn every divergence into plain `rkl`. The weight is 1 where the discriminator is undecided.

        rkl 1    soft_rkl 2/(1+r)    neyman 1/r    js 2r/(1+r)    fkl r    jeffreys (1+r)/2

    Args:
        logit: The calibrated logit of each generated clip at its noise level.
        divergence: Which weight.
        limits: Smallest and largest r that count for the unbounded weights (neyman, fkl, jeffreys);
            none for no limits. The bounded ones are never limited.

    Returns:
        Positive weights without gradient, float32 or better.
    """
    log_ratio = _wide(logit.detach())
    if limits is not None and divergence not in _BOUNDED:
        log_ratio = log_ratio.clamp(math.log(limits[0]), math.log(limits[1]))
    if divergence == "rkl":
        return torch.ones_like(log_ratio)
    if divergence == "soft_rkl":
        return 2 * torch.sigmoid(-log_ratio)
    if divergence == "neyman":
        return torch.exp(-log_ratio)
    if divergence == "js":
        return 2 * torch.sigmoid(log_ratio)
    if divergence == "fkl":
        return torch.exp(log_ratio)
    return 0.5 * (1 + torch.exp(log_ratio))


def matching_gradient(
    x0_student: Float[Tensor, "B *S"],
    x0_teacher: Float[Tensor, "B *S"],
    x0_critic: Float[Tensor, "B *S"],
    weight: Float[Tensor, "B"],
    *,
    normalise: bool = True,
) -> Float[Tensor, "B *S"]:
    """Return the gradient of the divergence with respect to the student's sample.

    Both predictions are made from the same noised sample x_t = alpha x0 + sigma eps, so that
    s_p - s_q = alpha (x0_teacher - x0_critic) / sigma^2, and the gradient is minus that times the
    weight (DMD, Yin et al. 2024, equation 7). With `normalise` the factor alpha^2 / sigma^2 is
    replaced by one over the mean distance of each sample to the teacher's prediction (its
    equation 8). The normaliser is taken for each clip on its own, never over a batch.

    Args:
        x0_student: The student's sample.
        x0_teacher: The teacher's prediction from the noised sample, guidance included.
        x0_critic: The critic's prediction from the same noised sample.
        weight: The weight of each clip, from `density_ratio_weight`.
        normalise: Divide by the mean distance; without it, for the divergence's own gradient, the
            caller's weight must hold alpha^2 / sigma^2.

    Returns:
        The gradient, without gradient itself; zero where a prediction was not finite.
    """
    with torch.no_grad():
        student, teacher, critic = _wide(x0_student), _wide(x0_teacher), _wide(x0_critic)
        scale = _column(_wide(weight), student)
        if normalise:
            axes = tuple(range(1, student.ndim))
            distance = (student - teacher).abs().mean(dim=axes, keepdim=True)
            scale = scale / distance.clamp_min(SMALLEST_DISTANCE)
        return torch.nan_to_num(scale * (critic - teacher), nan=0.0, posinf=0.0, neginf=0.0)


def pseudo_target_loss(
    x0_student: Float[Tensor, "B *S"], gradient: Float[Tensor, "B *S"]
) -> Float[Tensor, ""]:
    """Return a loss whose gradient with respect to the sample is `gradient` / number of elements.

    It is half the mean squared distance to the detached pseudo-target x0 - gradient. Its *value* is
    half the mean squared gradient and says nothing about the divergence.
    """
    sample = _wide(x0_student)
    return 0.5 * F.mse_loss(sample, (sample - gradient).detach())


def gan_disc_loss(
    logit_real: Float[Tensor, "B"], logit_fake: Float[Tensor, "B"]
) -> Float[Tensor, ""]:
    """Return the logistic loss of the discriminator (Goodfellow et al. 2014, equation 1).

    Only this loss, on as many real as generated clips, makes the logit an estimate of log r: hinge
    and relativistic losses do not, and the loss printed in DMD2 (equation 4), log D(real) -
    log D(fake), has no optimum at all (DMD2's own code uses the logistic loss).
    """
    return F.softplus(-_wide(logit_real)).mean() + F.softplus(_wide(logit_fake)).mean()


def gan_student_loss(logit_fake: Float[Tensor, "B"]) -> Float[Tensor, ""]:
    """Return the non-saturating loss of the student, E[-log D].

    With the best discriminator its gradient is twice that of KL((p+q)/2 || p) (Shannon et al.
    2020): the GAN stage and the `soft_rkl` stage minimise the same divergence.
    """
    return F.softplus(-_wide(logit_fake)).mean()


def approximate_gradient_penalty(
    logit: Float[Tensor, "B"], logit_perturbed: Float[Tensor, "B"], sigma: float
) -> Float[Tensor, ""]:
    """Return an estimate of E|grad logit|^2 by finite differences (R1 on real, R2 on fake clips).

    Follows "Diffusion Adversarial Post-Training" (Lin et al. 2025, equation 3), divided by sigma^2
    so that it does not depend on the size of the perturbation. It flattens the logit: the logit of
    a discriminator trained with it is not log r, and ratio weights from it are biased towards 1.

    Args:
        logit: Logits of clips at their noise level.
        logit_perturbed: Logits of the same clips plus sigma times unit noise, same noise level.
        sigma: Size of the perturbation.
    """
    return ((_wide(logit_perturbed) - _wide(logit)) / sigma).square().mean()


def denoising_loss(
    output: Float[Tensor, "B *S"],
    target: Float[Tensor, "B *S"],
    weight: Float[Tensor, "B"] | None = None,
) -> Float[Tensor, ""]:
    """Return the weighted mean squared error in the schedule's own target space.

    The target comes from `NoiseSchedule.target`, which knows about v and ViewCrafter's rescale of
    x0. Its minimiser is the conditional mean, hence the score of whatever samples it was trained on
    (Vincent 2011): the critic's of the student's samples, the teacher's of real clips.
    """
    error = (_wide(output) - _wide(target)).square()
    if weight is not None:
        error = error * _column(_wide(weight), error)
    return error.mean()


def inverse_variance(sigma: Float[Tensor, "B"], floor: float = 0.1) -> Float[Tensor, "B"]:
    """Return 1 / max(sigma, floor)^2.

    As the weight of an error in x0 it gives the error in velocity, both for a rectified flow
    (v = (x_t - x0) / sigma) and, up to the rescale, for a variance-preserving schedule. The floor
    keeps the nearly clean end from dominating.
    """
    return _wide(sigma).clamp_min(floor).pow(-2)


def _wide(x: Tensor) -> Tensor:
    """In float32, or float64 if it was that."""
    return x if x.dtype == torch.float64 else x.float()


def _column(values: Tensor, like: Tensor) -> Tensor:
    """Shape [B] for multiplying with [B ...]."""
    return values.reshape(-1, *(1,) * (like.ndim - 1))
