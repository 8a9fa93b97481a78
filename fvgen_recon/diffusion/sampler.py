"""Samplers: functions of a callable that turn noise into a clean latent.

Three kinds of step from time t to an earlier one, all for any `SamplingSchedule`:

- DDIM with eta, which the 50-step teacher uses;
- re-noising ("sde"): predict x0, add fresh noise at the next time, as few-step students train;
- few-step DDIM ("ode"): predict x0 and eps, move along the straight line between them.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from fvgen_recon.diffusion.backbone import Condition, VideoBackbone
from fvgen_recon.diffusion.schedule import SamplingSchedule
from fvgen_recon.errors import InputError

Denoiser = Callable[[Tensor, Tensor], Tensor]
"""Maps x_t [B C T h w] and t [B] to the network's output [B C T h w], guidance included."""

Noise = Callable[[int, Tensor], Tensor]
"""Maps the index of a step and a latent to fresh noise of that latent's shape."""

FewStepKind = Literal["sde", "ode"]


@dataclass(frozen=True, kw_only=True, slots=True)
class GuidanceScale:
    """Classifier-free guidance."""

    scale: float = 7.5
    """Weight of the conditional output; 1 means no guidance."""
    rescale: float = 0.7
    """How far the output's standard deviation is pulled back to the conditional one's (0 to 1)."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        if not (self.scale >= 0 and 0 <= self.rescale <= 1):
            raise InputError(
                "A guidance scale of at least 0 and a guidance rescale in [0, 1] were expected, "
                f"{self.scale:g} and {self.rescale:g} came."
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class SampleStep:
    """What a sampler tells its callback after each step."""

    index: int
    """Number of the step, from 0."""
    num_steps: int
    """How many there are."""
    t: int
    """The time that was denoised."""
    x0: Float[Tensor, "B C T h w"]
    """The clean latent predicted at that time."""
    x: Float[Tensor, "B C T h w"]
    """The latent after the step."""


StepCallback = Callable[[SampleStep], None]


def seeded_noise(rng: torch.Generator) -> Noise:
    """Return a source of standard normal noise, drawn on the generator's device in float32."""

    def draw(index: int, like: Tensor) -> Tensor:
        del index
        noise = torch.randn(like.shape, generator=rng, device=rng.device, dtype=torch.float32)
        return noise.to(like.device, like.dtype)

    return draw


def guided_output(
    output: Float[Tensor, "B *S"], null_output: Float[Tensor, "B *S"], guidance: GuidanceScale
) -> Float[Tensor, "B *S"]:
    """Combine the conditional and the unconditional output.

    Implements classifier-free guidance (Ho & Salimans 2022) followed by the rescale of equations 15
    and 16 of Lin et al. 2023, both on the network's output; standard deviations are taken over
    everything but the batch, frames included.
    """
    guided = null_output + guidance.scale * (output - null_output)
    return rescale_guided(guided, output, guidance.rescale) if guidance.rescale > 0 else guided


def rescale_guided(
    guided: Float[Tensor, "B *S"], output: Float[Tensor, "B *S"], rescale: float
) -> Float[Tensor, "B *S"]:
    """Pull the standard deviation of a guided output towards that of the conditional one."""
    axes = tuple(range(1, output.ndim))
    factor = output.std(dim=axes, keepdim=True) / guided.std(dim=axes, keepdim=True)
    return rescale * (guided * factor) + (1 - rescale) * guided


def denoiser(
    backbone: VideoBackbone,
    condition: Condition,
    guidance: GuidanceScale | None = None,
    *,
    batch_guidance: bool = True,
) -> Denoiser:
    """Bind a backbone to a condition.

    Args:
        backbone: The network.
        condition: What it is conditioned on.
        guidance: Guidance, or none for one plain evaluation.
        batch_guidance: Evaluate both branches as one batch (faster) or one after the other (less
            memory).

    Returns:
        A function of x_t and t.
    """
    if guidance is None or guidance.scale == 1:
        return lambda x_t, t: backbone(x_t, t, condition)[0]
    null = condition.unconditional()
    both = Condition(
        concat=torch.cat([condition.concat, null.concat]),
        context=torch.cat([condition.context, null.context]),
        null_context=torch.cat([condition.null_context, null.null_context]),
    )

    def batched(x_t: Tensor, t: Tensor) -> Tensor:
        doubled, _ = backbone(torch.cat([x_t, x_t]), torch.cat([t, t]), both)
        output, null_output = doubled.float().chunk(2)
        return guided_output(output, null_output, guidance)

    def in_turn(x_t: Tensor, t: Tensor) -> Tensor:
        output, null_output = backbone(x_t, t, condition)[0], backbone(x_t, t, null)[0]
        return guided_output(output.float(), null_output.float(), guidance)

    return batched if batch_guidance else in_turn


@torch.no_grad()
def sample_ddim(
    denoise: Denoiser,
    x_T: Float[Tensor, "B C T h w"],
    schedule: SamplingSchedule,
    *,
    times: Tensor,
    eta: float = 1.0,
    noise: Noise | None = None,
    callback: StepCallback | None = None,
) -> Float[Tensor, "B C T h w"]:
    """Sample with DDIM (Song et al. 2021, eq. 12).

    The last step goes to time 0, which in ViewCrafter's schedule still holds 3 % of noise; the
    original decodes that latent as it is, and so does this.

    Args:
        denoise: The network, bound to its condition and guidance.
        x_T: Pure noise.
        schedule: What the times mean.
        times: Descending times, as from `schedule.timesteps`.
        eta: 0 is deterministic, 1 adds the noise of the ancestral sampler.
        noise: Fresh noise for each step; needed where eta > 0.
        callback: Told about each step.

    Returns:
        The latent after the last step.

    Raises:
        InputError: Noise is needed and was not given.
    """
    if eta > 0 and noise is None:
        raise InputError(f"DDIM with eta {eta:g} draws noise: pass seeded_noise(generator).")
    x, steps = x_T, times.tolist()
    for i, (time, before) in enumerate(zip(steps, [*steps[1:], 0], strict=True)):
        t, t_prev = _at(time, x), _at(before, x)
        output = denoise(x, t)
        x0 = schedule.x0_from_output(output, x, t)
        eps = schedule.eps_from_output(output, x, t)
        direction, fresh = schedule.ddim_coefficients(t, t_prev, eta)
        alpha, _ = schedule.alpha_sigma(t_prev)
        x = _column(alpha) * x0 + _column(direction) * eps
        if eta > 0 and noise is not None:
            x = x + _column(fresh) * noise(i, x)
        if callback is not None:
            callback(SampleStep(index=i, num_steps=len(steps), t=int(time), x0=x0, x=x))
    return x


@torch.no_grad()
def sample_few_steps(
    denoise: Denoiser,
    x_T: Float[Tensor, "B C T h w"],
    schedule: SamplingSchedule,
    *,
    times: Tensor,
    kind: FewStepKind = "sde",
    noise: Noise | None = None,
    callback: StepCallback | None = None,
) -> Float[Tensor, "B C T h w"]:
    """Sample in a few steps; the result is the x0 predicted at the last time.

    Args:
        denoise: The network, bound to its condition.
        x_T: Pure noise.
        schedule: What the times mean.
        times: Descending times, as from `schedule.timesteps`.
        kind: "sde" adds fresh noise to x0 at the next time, "ode" re-uses the predicted noise.
        noise: Fresh noise for each step; needed for "sde" with more than one step.
        callback: Told about each step.

    Returns:
        The clean latent.

    Raises:
        InputError: Noise is needed and was not given.
    """
    steps = times.tolist()
    if kind == "sde" and noise is None and len(steps) > 1:
        raise InputError("The sde sampler draws noise: pass seeded_noise(generator).")
    x = x0 = x_T
    for i, time in enumerate(steps):
        t = _at(time, x)
        output = denoise(x, t)
        x0 = schedule.x0_from_output(output, x, t)
        if i + 1 == len(steps):
            x = x0
        elif kind == "sde" and noise is not None:
            x = schedule.add_noise(x0, noise(i, x0), _at(steps[i + 1], x))
        else:
            eps = schedule.eps_from_output(output, x, t)
            x = schedule.add_noise(x0, eps, _at(steps[i + 1], x))
        if callback is not None:
            callback(SampleStep(index=i, num_steps=len(steps), t=int(time), x0=x0, x=x))
    return x0


def _at(time: int | float, like: Tensor) -> Tensor:
    """The same time for every clip of a batch; whole times stay integers."""
    return torch.full((like.shape[0],), time, device=like.device)


def _column(values: Tensor) -> Tensor:
    """Shape [B] for multiplying with [B C T h w]."""
    return values[:, None, None, None, None]
