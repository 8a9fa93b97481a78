"""The stages of training as functions from (roles, batch, rng) to (losses, report).

    gan_init_step    stage 1 of FVGen: the student against a discriminator on the frozen teacher
    dmd_step         stage 2: distribution matching, weighted by the discriminator's density ratio
    ode_step         CausVid's start: regression on the teacher's deterministic path
    diffusion_step   training of a teacher
    regression_step  the answer to pure noise alone: the floor that every generator must beat

A step computes losses and touches no optimizer. `turn` says who is trained in this update: the
judges (critic and discriminator) take several turns for each one of the student (two time scales).
"""

from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from fvgen_recon.diffusion.backbone import NoiseSchedule, mid_features
from fvgen_recon.distill.calibration import binned_accuracy, weight_statistics
from fvgen_recon.distill.config import (
    AnchorSettings,
    DiffusionSettings,
    DmdSettings,
    GanSettings,
    OdeSettings,
    PenaltySettings,
    RegressionSettings,
    Space,
)
from fvgen_recon.distill.data import TrainingBatch, join_conditions
from fvgen_recon.distill.losses import (
    approximate_gradient_penalty,
    denoising_loss,
    density_ratio_weight,
    gan_disc_loss,
    gan_student_loss,
    inverse_variance,
    matching_gradient,
    pseudo_target_loss,
)
from fvgen_recon.distill.randomness import StepRng
from fvgen_recon.distill.role import RoleLosses, Roles, StepReport, Turn
from fvgen_recon.distill.rollout import (
    NoiseRange,
    RolloutSettings,
    guided_x0,
    predict_x0,
    student_sample,
    teacher_path,
)
from fvgen_recon.errors import InputError

StepResult = tuple[RoleLosses, StepReport]


def gan_init_step(
    roles: Roles, batch: TrainingBatch, rng: StepRng, settings: GanSettings, turn: Turn
) -> StepResult:
    """Train the student against real clips, or the discriminator on both (FVGen, stage 1).

    The discriminator reads the frozen teacher's features of noised clips. In the student's turn
    gradients pass through discriminator and teacher but change neither.
    """
    if turn == "student":
        fake = student_sample(roles, batch, rng, settings.rollout)
        logit = _student_logit(roles, batch, rng, fake, settings.noise)
        loss = gan_student_loss(logit) + _anchor_loss(roles, fake, batch, settings.anchor)
        return RoleLosses(student=loss), StepReport(scalars={"logit/fake": logit.detach().mean()})
    with torch.no_grad():
        fake = student_sample(roles, batch, rng, settings.rollout)
    loss, report = _disc_turn(roles, batch, fake, rng, settings.noise, settings.penalty)
    return RoleLosses(disc=loss), report


def dmd_step(
    roles: Roles, batch: TrainingBatch, rng: StepRng, settings: DmdSettings, turn: Turn
) -> StepResult:
    """Move the student along the weighted score difference, or train its critic (FVGen, stage 2).

    The fixed point is the teacher's distribution for every divergence: the weight only decides
    how much each clip counts on the way.
    """
    if turn == "student":
        return _dmd_student(roles, batch, rng, settings)
    with torch.no_grad():
        fake = student_sample(roles, batch, rng, settings.rollout)
    if settings.train_disc and settings.disc_on == "critic":
        return _joint_judges(roles, batch, fake, rng, settings)
    critic_loss = _critic_loss(roles, batch, fake, rng, settings)
    if not settings.train_disc:
        return RoleLosses(critic=critic_loss), StepReport()
    loss, report = _disc_turn(roles, batch, fake, rng, settings.noise, settings.penalty)
    return RoleLosses(critic=critic_loss, disc=loss), report


def ode_step(roles: Roles, batch: TrainingBatch, rng: StepRng, settings: OdeSettings) -> StepResult:
    """Train every step of the student to jump to the end of the teacher's path (CausVid, eq. 9).

    Raises:
        InputError: Stored paths are asked for and the batch has none of the right length.
    """
    num_steps = settings.rollout.num_steps
    states = batch.ode_states
    if not settings.stored:
        states = teacher_path(
            roles,
            batch,
            rng,
            settings.guidance,
            num_steps=settings.teacher_steps,
            num_states=num_steps,
        )
    if states is None or states.shape[1] != num_steps + 1:
        raise InputError(
            f"Stored teacher paths of {num_steps + 1} states were expected in the data: prepare "
            "them, or set stored to false."
        )
    index = rng.shared_integer(num_steps)
    time = int(roles.schedule.timesteps(num_steps)[index])
    t = torch.full((len(batch),), time, device=batch.x0.device)
    x0 = predict_x0(roles.student, roles.schedule, states[:, index], t, batch.condition)
    return RoleLosses(student=denoising_loss(x0, states[:, -1])), StepReport()


def diffusion_step(
    roles: Roles, batch: TrainingBatch, rng: StepRng, settings: DiffusionSettings
) -> StepResult:
    """Train the student role as a diffusion model of the real clips (a teacher to be)."""
    schedule, x0 = roles.schedule, batch.x0
    t = settings.noise.draw(rng, schedule, x0)
    pure = rng.uniform(x0) < settings.pure_noise_share
    t = torch.where(pure, schedule.num_timesteps - 1, t)
    eps = rng.normal(x0)
    dropped = rng.uniform(x0) < settings.null_share
    condition = batch.condition
    if settings.null_share > 0:
        context = torch.where(dropped[:, None, None], condition.null_context, condition.context)
        condition = type(condition)(
            concat=condition.concat, context=context, null_context=condition.null_context
        )
    x_t = schedule.add_noise(x0, eps, t)
    output, _ = roles.student(x_t, t, condition)
    loss = _denoising(schedule, output, x_t, x0, eps, t, space=settings.space)
    return RoleLosses(student=loss), StepReport()


def regression_step(
    roles: Roles, batch: TrainingBatch, rng: StepRng, settings: RegressionSettings
) -> StepResult:
    """Train the student's answer to pure noise: one step, no sampling, the honest floor."""
    x0 = batch.x0
    t = torch.full((len(batch),), roles.schedule.num_timesteps - 1, device=x0.device)
    x_t = roles.schedule.add_noise(x0, rng.normal(x0), t)
    prediction = predict_x0(roles.student, roles.schedule, x_t, t, batch.condition)
    loss = _anchor_loss(roles, prediction, batch, settings.anchor)
    return RoleLosses(student=loss), StepReport()


def _dmd_student(
    roles: Roles, batch: TrainingBatch, rng: StepRng, settings: DmdSettings
) -> StepResult:
    schedule = roles.schedule
    fake = student_sample(roles, batch, rng, settings.rollout)
    forcing = rng.shared_uniform() < settings.data_forcing
    with torch.no_grad():
        t, eps = settings.noise.draw(rng, schedule, fake), rng.normal(fake)
        x_t = schedule.add_noise(fake, eps, t)
        output, critic_features = roles.need_critic()(x_t, t, batch.condition, return_mid=True)
        x0_critic = schedule.x0_from_output(output.float(), x_t, t)
        seen = schedule.add_noise(batch.x0, eps, t) if forcing else x_t
        x0_teacher, teacher_features = guided_x0(roles, seen, t, batch.condition, settings.guidance)
        features = teacher_features if settings.disc_on == "teacher" else critic_features
        weight = _ratio_weight(roles, features, settings, forcing)
        weight = x0_teacher.new_ones(len(batch)) if weight is None else weight
        gradient = matching_gradient(
            fake, x0_teacher, x0_critic, weight, normalise=settings.normalise
        )
        if batch.unseen is not None:
            gradient = gradient.masked_fill(batch.unseen, 0)
    loss = pseudo_target_loss(fake, gradient)
    spread = weight_statistics(weight)
    scalars = {
        "dmd/gradient": gradient.abs().mean(),
        "dmd/teacher_to_critic": (x0_teacher - x0_critic).abs().mean(),
        "weight/mean": spread.mean,
        "weight/min": spread.low,
        "weight/max": spread.high,
        "weight/mean_square": spread.mean_square,
    }
    if settings.gan_weight > 0:
        logit = _student_logit(roles, batch, rng, fake, settings.noise, settings.disc_on)
        loss = loss + settings.gan_weight * gan_student_loss(logit)
        scalars["logit/fake"] = logit.detach().mean()
    loss = loss + _anchor_loss(roles, fake, batch, settings.anchor)
    return RoleLosses(student=loss), StepReport(scalars=scalars)


def _ratio_weight(
    roles: Roles, features: tuple[Tensor, ...], settings: DmdSettings, forcing: bool
) -> Float[Tensor, "B"] | None:
    """Weights from the features that the scores came with; none where all clips count alike.

    A forced update follows no f-divergence, and its features are those of a real clip.
    """
    if settings.divergence == "rkl" or forcing:
        return None
    logit = roles.frozen_logit(features, calibrated=True)
    return density_ratio_weight(logit, settings.divergence)


def _critic_loss(
    roles: Roles, batch: TrainingBatch, fake: Tensor, rng: StepRng, settings: DmdSettings
) -> Float[Tensor, ""]:
    schedule = roles.schedule
    t, eps = settings.noise.draw(rng, schedule, fake), rng.normal(fake)
    x_t = schedule.add_noise(fake, eps, t)
    output, _ = roles.need_critic()(x_t, t, batch.condition)
    return _denoising(schedule, output, x_t, fake, eps, t, space=settings.critic_space)


def _denoising(
    schedule: NoiseSchedule,
    output: Tensor,
    x_t: Tensor,
    x0: Tensor,
    eps: Tensor,
    t: Int[Tensor, "B"],
    *,
    space: Space,
) -> Float[Tensor, ""]:
    if space == "target":
        return denoising_loss(output, schedule.target(x0, eps, t))
    weight = inverse_variance(schedule.alpha_sigma(t)[1])
    return denoising_loss(schedule.x0_from_output(output.float(), x_t, t), x0, weight)


def _disc_turn(
    roles: Roles,
    batch: TrainingBatch,
    fake: Tensor,
    rng: StepRng,
    noise: NoiseRange,
    penalty: PenaltySettings,
) -> tuple[Float[Tensor, ""], StepReport]:
    """Real and generated clips at the same noise levels, one forward for both."""
    t, x_t = _noised_pair(roles, batch, fake, rng, noise)
    num = len(batch)
    twice = join_conditions([batch.condition, batch.condition])
    levels = torch.cat([t, t])
    perturbed = x_t
    if penalty.r1 > 0 or penalty.r2 > 0:
        moved = torch.cat([rng.normal(fake), rng.normal(fake)])
        perturbed = torch.cat([x_t, x_t + penalty.sigma * moved])
        levels, twice = torch.cat([levels, levels]), join_conditions([twice, twice])
    with torch.no_grad():
        features = mid_features(roles.need_teacher(), perturbed, levels, twice)
    logit = roles.need_disc()(features)
    real, false = logit[:num], logit[num : 2 * num]
    loss = gan_disc_loss(real, false)
    if perturbed is not x_t:
        near_real, near_false = logit[2 * num : 3 * num], logit[3 * num :]
        loss = loss + penalty.r1 * approximate_gradient_penalty(real, near_real, penalty.sigma)
        loss = loss + penalty.r2 * approximate_gradient_penalty(false, near_false, penalty.sigma)
    return loss, _disc_report(roles, real, false, t)


def _joint_judges(
    roles: Roles, batch: TrainingBatch, fake: Tensor, rng: StepRng, settings: DmdSettings
) -> StepResult:
    """Critic and discriminator as one network, as in DMD2: one forward serves both losses.

    Where something was not seen, the discriminator looks at other clips than the critic does.
    """
    schedule = roles.schedule
    t, eps = settings.noise.draw(rng, schedule, fake), rng.normal(fake)
    clips = [batch.x0, fake] if batch.unseen is None else [batch.x0, batch.judged(fake), fake]
    noised = [schedule.add_noise(x, eps, t) for x in clips]
    output, features = roles.need_critic()(
        torch.cat(noised),
        t.repeat(len(clips)),
        join_conditions([batch.condition] * len(clips)),
        return_mid=True,
    )
    num, x_t = len(batch), noised[-1]
    last = output[-num:]
    critic_loss = _denoising(schedule, last, x_t, fake, eps, t, space=settings.critic_space)
    real, false = roles.need_disc()([feature[: 2 * num] for feature in features]).chunk(2)
    disc_loss = gan_disc_loss(real, false)
    report = _disc_report(roles, real, false, t)
    return RoleLosses(critic=critic_loss, disc=disc_loss), report


def _noised_pair(
    roles: Roles, batch: TrainingBatch, fake: Tensor, rng: StepRng, noise: NoiseRange
) -> tuple[Int[Tensor, "B"], Tensor]:
    t, eps = noise.draw(rng, roles.schedule, fake), rng.normal(fake)
    pair = [roles.schedule.add_noise(x, eps, t) for x in (batch.x0, batch.judged(fake))]
    return t, torch.cat(pair)


def _disc_report(roles: Roles, real: Tensor, fake: Tensor, t: Int[Tensor, "B"]) -> StepReport:
    return StepReport(
        scalars={"logit/real": real.detach().mean(), "logit/fake": fake.detach().mean()},
        accuracy=binned_accuracy(real, fake, t, roles.schedule.num_timesteps),
    )


def disc_logits(
    roles: Roles,
    batch: TrainingBatch,
    rng: StepRng,
    rollout: RolloutSettings,
    noise: NoiseRange,
) -> tuple[Float[Tensor, "B"], Float[Tensor, "B"]]:
    """Return raw logits of real and of generated clips on the teacher's features."""
    with torch.no_grad():
        fake = student_sample(roles, batch, rng, rollout)
        t, x_t = _noised_pair(roles, batch, fake, rng, noise)
        twice = join_conditions([batch.condition, batch.condition])
        features = mid_features(roles.need_teacher(), x_t, torch.cat([t, t]), twice)
        real, false = roles.frozen_logit(features).chunk(2)
    return real, false


def _student_logit(
    roles: Roles,
    batch: TrainingBatch,
    rng: StepRng,
    fake: Tensor,
    noise: NoiseRange,
    disc_on: Literal["teacher", "critic"] = "teacher",
) -> Float[Tensor, "B"]:
    """Logits of the noised sample, with gradient to the sample only."""
    t, eps = noise.draw(rng, roles.schedule, fake), rng.normal(fake)
    x_t = roles.schedule.add_noise(batch.judged(fake), eps, t)
    network = roles.need_teacher() if disc_on == "teacher" else roles.need_critic()
    return roles.frozen_logit(mid_features(network, x_t, t, batch.condition))


def _anchor_loss(
    roles: Roles, x0: Tensor, batch: TrainingBatch, anchor: AnchorSettings
) -> Float[Tensor, ""]:
    loss = x0.new_zeros(())
    if anchor.l1 > 0:
        loss = loss + anchor.l1 * (x0 - batch.x0).abs().mean()
    if anchor.perceptual > 0:
        if roles.perceptual is None:
            raise InputError("A perceptual weight is set but no perceptual distance was given.")
        loss = loss + anchor.perceptual * roles.perceptual(x0, batch.x0, batch.condition)
    return loss
