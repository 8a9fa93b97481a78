"""What the student is trained on: its own samples, and the teacher's predictions of them."""

from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from fvgen_recon.diffusion.backbone import Condition, NoiseSchedule
from fvgen_recon.diffusion.sampler import FewStepKind, GuidanceScale, guided_output
from fvgen_recon.distill.data import TrainingBatch
from fvgen_recon.distill.randomness import StepRng
from fvgen_recon.distill.role import Roles
from fvgen_recon.errors import InputError


@dataclass(frozen=True, kw_only=True, slots=True)
class RolloutSettings:
    """How the few-step student is run while training; inference must do the same."""

    num_steps: int = 4
    """Steps of the student."""
    kind: FewStepKind = "sde"
    """Between steps: fresh noise on the predicted x0 (sde), or the predicted noise again (ode)."""
    inputs: Literal["simulated", "noised_real"] = "simulated"
    """What the trained step sees: the student's own earlier steps, or a noised real clip."""
    gradient: Literal["one_step", "all_steps"] = "one_step"
    """Train one random step, whose x0 is the sample; or run all steps and train through them.

    With one step, critic and discriminator see the mixture of what all steps predict, and only that
    mixture is matched: early steps that are too smooth are made up for by the last one. Through all
    steps it is the final sample that is matched, at the memory of several forwards."""

    def __post_init__(self) -> None:
        """Refuse a contradiction."""
        if self.gradient == "all_steps" and self.inputs == "noised_real":
            raise InputError("Training through all steps starts from noise, not from real clips.")


@dataclass(frozen=True, kw_only=True, slots=True)
class NoiseRange:
    """Noise times at which scores and the discriminator are compared, as shares of all times."""

    low: float = 0.02
    high: float = 0.98

    def __post_init__(self) -> None:
        """Check the order."""
        if not 0 <= self.low < self.high <= 1:
            raise InputError(
                f"Noise times need 0 <= low < high <= 1: {self.low:g} and {self.high:g} came."
            )

    def draw(
        self, rng: StepRng, schedule: NoiseSchedule, like: Float[Tensor, "B *S"]
    ) -> Int[Tensor, "B"]:
        """Draw one time a clip, uniformly."""
        low, high = (round(x * (schedule.num_timesteps - 1)) for x in (self.low, self.high))
        return rng.integer(low, high + 1, like)


def predict_x0(
    backbone: nn.Module,
    schedule: NoiseSchedule,
    x_t: Float[Tensor, "B C T h w"],
    t: Int[Tensor, "B"],
    condition: Condition,
) -> Float[Tensor, "B C T h w"]:
    """Return the plain x0 that a backbone predicts, in float32 or better."""
    output, _ = backbone(x_t, t, condition)
    return schedule.x0_from_output(_wide(output), x_t, t)


def guided_x0(
    roles: Roles,
    x_t: Float[Tensor, "B C T h w"],
    t: Int[Tensor, "B"],
    condition: Condition,
    guidance: GuidanceScale,
) -> tuple[Float[Tensor, "B C T h w"], tuple[Tensor, ...]]:
    """Return the teacher's x0 with its guidance, and its mid features without.

    Scores and features come from one and the same forward of the conditional branch, so that the
    ratio weight belongs to exactly the noised sample that is scored.
    """
    teacher = roles.need_teacher()
    output, features = teacher(x_t, t, condition, return_mid=True)
    output = _wide(output)
    if guidance.scale != 1:
        null_output, _ = teacher(x_t, t, condition.unconditional())
        output = guided_output(output, _wide(null_output), guidance)
    return roles.schedule.x0_from_output(output, x_t, t), features


def student_sample(
    roles: Roles, batch: TrainingBatch, rng: StepRng, settings: RolloutSettings
) -> Float[Tensor, "B C T h w"]:
    """Return the student's x0 at one random step, with gradient through that step only.

    (Or its final x0 with gradient through all steps, if the settings say so.) The step's index is
    drawn from the shared generator: all processes run the same number of network evaluations, so
    none waits for another. With simulated inputs the earlier steps are the student's own, without
    gradient (backward simulation, DMD2, section 4.5); students trained on noised real clips alone
    meet inputs at inference that they have never seen.
    """
    if settings.gradient == "all_steps":
        x_t, t = _steps(roles, batch, rng, settings, settings.num_steps - 1)
        return predict_x0(roles.student, roles.schedule, x_t, t, batch.condition)
    index = rng.shared_integer(settings.num_steps)
    x_t, t = student_input(roles, batch, rng, settings, index)
    return predict_x0(roles.student, roles.schedule, x_t, t, batch.condition)


@torch.no_grad()
def student_input(
    roles: Roles, batch: TrainingBatch, rng: StepRng, settings: RolloutSettings, index: int
) -> tuple[Float[Tensor, "B C T h w"], Int[Tensor, "B"]]:
    """Return what step `index` of the student sees: a noisy latent and its time."""
    if settings.inputs == "noised_real":
        schedule = roles.schedule
        t = _at(int(schedule.timesteps(settings.num_steps)[index]), batch.x0)
        return schedule.add_noise(batch.x0, rng.normal(batch.x0), t), t
    return _steps(roles, batch, rng, settings, index)


def _steps(
    roles: Roles, batch: TrainingBatch, rng: StepRng, settings: RolloutSettings, index: int
) -> tuple[Float[Tensor, "B C T h w"], Int[Tensor, "B"]]:
    """Run the first steps of the student from noise."""
    schedule = roles.schedule
    times = schedule.timesteps(settings.num_steps).tolist()
    x_t = rng.normal(batch.x0)
    for now, after in pairwise(times[: index + 1]):
        t = _at(now, x_t)
        output = _wide(roles.student(x_t, t, batch.condition)[0])
        x0 = schedule.x0_from_output(output, x_t, t)
        sde = settings.kind == "sde"
        eps = rng.normal(x_t) if sde else schedule.eps_from_output(output, x_t, t)
        x_t = schedule.add_noise(x0, eps, _at(after, x_t))
    return x_t, _at(times[index], x_t)


@torch.no_grad()
def sample_student(
    roles: Roles, batch: TrainingBatch, rng: StepRng, settings: RolloutSettings
) -> Float[Tensor, "B C T h w"]:
    """Run all steps of the student, as at inference."""
    if settings.inputs == "noised_real":
        raise InputError("A whole sample starts from noise: set inputs to 'simulated'.")
    x_t, t = student_input(roles, batch, rng, settings, settings.num_steps - 1)
    return predict_x0(roles.student, roles.schedule, x_t, t, batch.condition)


@torch.no_grad()
def teacher_path(
    roles: Roles,
    batch: TrainingBatch,
    rng: StepRng,
    guidance: GuidanceScale,
    *,
    num_steps: int,
    num_states: int,
) -> Float[Tensor, "B S C T h w"]:
    """Run the teacher deterministically and keep the states at the student's times and the end.

    These are the ODE pairs of CausVid (Yin et al. 2025, section 4.2).

    Args:
        roles: The teacher and its schedule.
        batch: Conditions; of the clips only the shape counts.
        rng: Draws the noise that it starts from.
        guidance: The teacher's guidance.
        num_steps: Steps of the teacher; a multiple of `num_states`.
        num_states: Steps of the student.

    Returns:
        `num_states` noisy states and the clean end, hence S = num_states + 1.

    Raises:
        InputError: The numbers of steps do not fit.
    """
    if num_steps % num_states:
        raise InputError(
            f"The teacher's steps must be a multiple of the student's: {num_steps} and "
            f"{num_states} came."
        )
    schedule = roles.schedule
    times = schedule.timesteps(num_steps).tolist()
    x, x0, states = rng.normal(batch.x0), batch.x0, []
    for i, now in enumerate(times):
        if i % (num_steps // num_states) == 0:
            states.append(x)
        t = _at(now, x)
        x0, _ = guided_x0(roles, x, t, batch.condition, guidance)
        if i + 1 < num_steps:
            x = schedule.add_noise(x0, _implied_noise(schedule, x, x0, t), _at(times[i + 1], x))
    return torch.stack([*states, x0], dim=1)


def _implied_noise(schedule: NoiseSchedule, x_t: Tensor, x0: Tensor, t: Tensor) -> Tensor:
    alpha, sigma = (_column(v) for v in schedule.alpha_sigma(t))
    return (x_t - alpha * x0) / sigma


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def _column(values: Tensor) -> Tensor:
    return values[:, None, None, None, None]


def _at(time: int, like: Tensor) -> Tensor:
    return torch.full((like.shape[0],), int(time), device=like.device)
