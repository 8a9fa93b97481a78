"""The steps against slow twins written out by hand, and who gets gradients from what."""

import dataclasses

import pytest
import torch
from torch import nn
from unit.distill.tiny import tiny_batch, tiny_roles

from fvgen_recon.diffusion.sampler import GuidanceScale
from fvgen_recon.diffusion.schedule import ViewCrafterSchedule
from fvgen_recon.distill.config import (
    AnchorSettings,
    DiffusionSettings,
    DmdSettings,
    GanSettings,
    OdeSettings,
    PenaltySettings,
    RegressionSettings,
)
from fvgen_recon.distill.losses import DIVERGENCES, Divergence
from fvgen_recon.distill.randomness import StepRng, batch_rng
from fvgen_recon.distill.role import Roles
from fvgen_recon.distill.rollout import (
    NoiseRange,
    RolloutSettings,
    sample_student,
    student_input,
    student_sample,
    teacher_path,
)
from fvgen_recon.distill.stages import (
    diffusion_step,
    dmd_step,
    gan_init_step,
    ode_step,
    regression_step,
)
from fvgen_recon.errors import InputError

PLAIN = GuidanceScale(scale=1.0, rescale=0.0)


def seeded(seed: int = 3) -> StepRng:
    return batch_rng(torch.Generator().manual_seed(seed))


def modules(roles: Roles) -> dict[str, nn.Module]:
    return {
        "teacher": roles.need_teacher(),
        "student": roles.student,
        "critic": roles.need_critic(),
        "disc": roles.need_disc(),
    }


def trained(roles: Roles) -> set[str]:
    """Names of the roles whose weights got a gradient other than zero."""
    return {
        name
        for name, module in modules(roles).items()
        if any(p.grad is not None and p.grad.abs().sum() > 0 for p in module.parameters())
    }


STEPS = {
    "gan student": (gan_init_step, GanSettings(), "student", {"student"}),
    "gan judges": (gan_init_step, GanSettings(), "judges", {"disc"}),
    "dmd student": (dmd_step, DmdSettings(), "student", {"student"}),
    "dmd judges": (dmd_step, DmdSettings(), "judges", {"critic"}),
    "joint student": (
        dmd_step,
        DmdSettings(train_disc=True, gan_weight=0.1),
        "student",
        {"student"},
    ),
    "joint judges": (dmd_step, DmdSettings(train_disc=True), "judges", {"critic", "disc"}),
    "dmd2 judges": (
        dmd_step,
        DmdSettings(train_disc=True, disc_on="critic", divergence="rkl"),
        "judges",
        {"critic", "disc"},
    ),
}


@pytest.mark.parametrize("name", STEPS)
def test_only_the_trained_roles_get_gradients(name: str) -> None:
    step, settings, turn, want = STEPS[name]
    roles = tiny_roles()
    losses, _ = step(roles, tiny_batch(), seeded(), settings, turn)
    losses.total().backward()
    assert trained(roles) == want
    assert set(losses.named()) == want


@pytest.mark.parametrize("prediction", ["x0", "velocity"])
@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_dmd_gradient_against_a_twin(divergence: Divergence, prediction: str) -> None:
    """One step, so that the sample is the answer to noise; everything again, slowly, by hand."""
    roles, batch = tiny_roles(prediction=prediction), tiny_batch()
    roles.plain_disc.set_temperature(1.7)
    guidance = GuidanceScale(scale=3.0, rescale=0.5)
    settings = DmdSettings(
        rollout=RolloutSettings(num_steps=1), divergence=divergence, guidance=guidance
    )
    losses, report = dmd_step(roles, batch, seeded(), settings, "student")
    losses.total().backward()
    got = [p.grad.clone() for p in roles.student.parameters()]

    roles.student.zero_grad()
    rng = seeded()
    rng.shared_integer(1)
    noise, t_end = rng.normal(batch.x0), torch.full((2,), 999)
    output, _ = roles.student(noise, t_end, batch.condition)
    fake = output if prediction == "x0" else noise - output
    rng.shared_uniform()
    t, eps = rng.integer(20, 980, fake), rng.normal(fake)
    u = (t / 999)[:, None, None, None, None]
    x_t = ((1 - u) * fake + u * eps).detach()
    with torch.no_grad():
        real, mid = roles.teacher(x_t, t, batch.condition, return_mid=True)
        null, _ = roles.teacher(x_t, t, batch.condition.unconditional())
        guided = null + 3.0 * (real - null)
        ratio = real.flatten(1).std(dim=1) / guided.flatten(1).std(dim=1)
        guided = guided * (0.5 * ratio + 0.5)[:, None, None, None, None]
        false, _ = roles.critic(x_t, t, batch.condition)
        if prediction == "velocity":
            guided, false = x_t - u * guided, x_t - u * false
        r = (roles.disc(mid) / 1.7).exp()
        weight = {
            "rkl": r / r,
            "soft_rkl": 2 / (1 + r),
            "neyman": 1 / r.clamp(0.1, 20),
            "js": 2 * r / (1 + r),
            "fkl": r.clamp(0.1, 20),
            "jeffreys": (1 + r.clamp(0.1, 20)) / 2,
        }[divergence]
        scale = (fake - guided).flatten(1).abs().mean(dim=1)
        push = (weight / scale)[:, None, None, None, None] * (false - guided)
    ((push * fake).sum() / fake.numel()).backward()
    for mine, parameter in zip(got, roles.student.parameters(), strict=True):
        torch.testing.assert_close(mine, parameter.grad, rtol=1e-4, atol=1e-7)
    torch.testing.assert_close(report.scalars["weight/mean"], weight.mean())


def test_dmd_is_at_rest_when_the_critic_agrees_with_the_teacher() -> None:
    roles = tiny_roles()
    roles = dataclasses.replace(roles, critic=roles.teacher)
    settings = DmdSettings(guidance=PLAIN)
    losses, _ = dmd_step(roles, tiny_batch(), seeded(), settings, "student")
    losses.total().backward()
    assert trained(roles) == set()


def test_gan_student_learns_to_raise_the_logit() -> None:
    roles, batch = tiny_roles(), tiny_batch()
    settings = GanSettings(rollout=RolloutSettings(num_steps=1))
    optimizer = torch.optim.Adam(roles.student.parameters(), lr=1e-2)
    values = []
    for _ in range(20):
        losses, report = gan_init_step(roles, batch, seeded(), settings, "student")
        optimizer.zero_grad()
        losses.total().backward()
        optimizer.step()
        values.append(float(report.scalars["logit/fake"]))
    assert values[-1] > values[0] + 0.01


def test_disc_learns_to_tell_real_from_fake() -> None:
    roles = tiny_roles()
    optimizer = torch.optim.Adam(roles.need_disc().parameters(), lr=3e-3)
    batch, settings = tiny_batch(8), GanSettings(noise=NoiseRange(low=0.02, high=0.3))
    batch = dataclasses.replace(batch, x0=0.1 * batch.x0)
    nn.init.constant_(roles.student.last.bias, 2.0)
    for i in range(60):
        losses, report = gan_init_step(roles, batch, seeded(i), settings, "judges")
        optimizer.zero_grad()
        losses.total().backward()
        optimizer.step()
    assert float(losses.total().detach()) < 0.9
    assert report.accuracy is not None
    assert report.accuracy.correct.sum() / report.accuracy.count.sum() > 0.8
    assert report.scalars["logit/real"] > report.scalars["logit/fake"]


def test_penalty_adds_to_the_loss_and_warns() -> None:
    roles = tiny_roles()
    with pytest.warns(UserWarning, match="lean towards 1"):
        penalty = PenaltySettings(r1=10.0, r2=10.0, sigma=0.1)
    with_penalty, _ = gan_init_step(
        roles, tiny_batch(), seeded(), GanSettings(penalty=penalty), "judges"
    )
    without, _ = gan_init_step(roles, tiny_batch(), seeded(), GanSettings(), "judges")
    assert bool(with_penalty.total() > without.total())


def test_critic_denoises_the_students_samples() -> None:
    """The critic's loss is 0 for a critic that knows the student's (constant) answer."""
    roles, batch = tiny_roles(), tiny_batch()
    for module in (roles.student, roles.need_critic()):
        nn.init.zeros_(module.last.weight)
        nn.init.constant_(module.last.bias, 0.25)
    losses, _ = dmd_step(roles, batch, seeded(), DmdSettings(), "judges")
    assert float(losses.total()) < 1e-12
    nn.init.constant_(roles.need_critic().last.bias, 0.75)
    losses, _ = dmd_step(roles, batch, seeded(), DmdSettings(), "judges")
    assert float(losses.total()) == pytest.approx(0.25)


def test_viewcrafter_critic_target_holds_the_rescale() -> None:
    roles, batch = tiny_roles(), tiny_batch()
    schedule = ViewCrafterSchedule(base_scale=0.3)
    roles = dataclasses.replace(roles, schedule=schedule)
    for module in (roles.student, roles.need_critic()):
        nn.init.zeros_(module.last.weight)
        nn.init.zeros_(module.last.bias)
    settings = DmdSettings(rollout=RolloutSettings(num_steps=1))
    losses, _ = dmd_step(roles, batch, seeded(), settings, "judges")
    rng = seeded()
    rng.shared_integer(1)
    noise = rng.normal(batch.x0)
    alpha_bar = torch.tensor(1 - schedule.betas()).cumprod(0).float()
    fake = alpha_bar[999].sqrt() * noise / 0.3
    t, eps = rng.integer(20, 980, fake), rng.normal(fake)
    a = alpha_bar[t][:, None, None, None, None]
    s = torch.tensor(schedule.scale_table()).float()[t][:, None, None, None, None]
    v = a.sqrt() * eps - (1 - a).sqrt() * s * fake
    assert float(losses.total()) == pytest.approx(float(v.square().mean()), rel=1e-4)


def test_rollout_follows_the_sampler_by_hand() -> None:
    roles, batch = tiny_roles(), tiny_batch()
    got = sample_student(roles, batch, seeded(), RolloutSettings(num_steps=3))
    rng = seeded()
    x = rng.normal(batch.x0)
    x0 = x
    for i, time in enumerate([999, 666, 333]):
        if i:
            u = time / 999
            x = (1 - u) * x0 + u * rng.normal(x0)
        x0 = roles.student(x, torch.full((2,), time), batch.condition)[0]
    torch.testing.assert_close(got, x0)


def test_ode_rollout_keeps_its_noise_when_the_student_knows_the_answer() -> None:
    """With a student that always answers c, the ode path runs straight from noise to c."""
    roles, batch = tiny_roles(), tiny_batch()
    nn.init.zeros_(roles.student.last.weight)
    nn.init.constant_(roles.student.last.bias, 0.25)
    settings = RolloutSettings(num_steps=4, kind="ode")
    first = seeded().normal(batch.x0)
    x_t, t = student_input(roles, batch, seeded(), settings, 2)
    u = float(t[0]) / 999
    torch.testing.assert_close(x_t, u * first + (1 - u) * 0.25)


def test_noised_real_inputs_are_noised_real_clips() -> None:
    batch = tiny_batch()
    settings = RolloutSettings(inputs="noised_real")
    x_t, t = student_input(tiny_roles(), batch, seeded(), settings, 3)
    u = float(t[0]) / 999
    torch.testing.assert_close(x_t, (1 - u) * batch.x0 + u * seeded().normal(batch.x0))


def test_prefix_has_no_gradient_but_the_trained_step_has() -> None:
    roles, batch = tiny_roles(), tiny_batch()
    x_t, _ = student_input(roles, batch, seeded(), RolloutSettings(), 3)
    assert not x_t.requires_grad


def test_gradient_through_all_steps_is_that_of_the_final_sample() -> None:
    roles, batch = tiny_roles(), tiny_batch()
    settings = RolloutSettings(num_steps=3, gradient="all_steps")
    student_sample(roles, batch, seeded(), settings).square().sum().backward()
    got = roles.student.blocks[0].weight.grad.clone()
    final = sample_student(roles, batch, seeded(), RolloutSettings(num_steps=3))
    torch.testing.assert_close(student_sample(roles, batch, seeded(), settings).detach(), final)
    direction = torch.zeros_like(roles.student.blocks[0].weight)
    direction[0, 0, 1, 1, 1] = 1e-3
    values = []
    for sign in (1, -1):
        with torch.no_grad():
            roles.student.blocks[0].weight.add_(sign * direction)
            x0 = sample_student(roles, batch, seeded(), RolloutSettings(num_steps=3))
            values.append(float(x0.double().square().sum()))
            roles.student.blocks[0].weight.sub_(sign * direction)
    slope = (values[0] - values[1]) / 2e-3
    assert slope == pytest.approx(float(got[0, 0, 1, 1, 1]), rel=0.02)
    with pytest.raises(InputError, match="starts from noise"):
        RolloutSettings(gradient="all_steps", inputs="noised_real")


def test_data_forcing_pulls_towards_the_real_clip() -> None:
    """A teacher that returns its input at t near 0 makes the pseudo-target the real clip."""
    roles, batch = tiny_roles(), tiny_batch()
    noise = NoiseRange(low=0.0, high=0.001)

    class Identity(nn.Module):
        def forward(self, x_t, t, condition, *, return_mid=False):
            return x_t, (x_t,)

    roles = dataclasses.replace(roles, teacher=Identity(), critic=Identity())
    rollout = RolloutSettings(num_steps=1)
    distance = {}
    for share in (0.0, 1.0):
        settings = DmdSettings(
            rollout=rollout, noise=noise, data_forcing=share, guidance=PLAIN, divergence="rkl"
        )
        roles.student.zero_grad()
        losses, report = dmd_step(roles, batch, seeded(), settings, "student")
        losses.total().backward()
        distance[share] = float(report.scalars["dmd/gradient"])
    assert distance[0.0] < 1e-6
    # (critic - teacher) / mean |fake - teacher| has mean absolute value 1 when critic = fake.
    assert distance[1.0] == pytest.approx(1.0, rel=0.02)


def test_regression_and_diffusion_losses_by_hand() -> None:
    roles, batch = tiny_roles(), tiny_batch()
    losses, _ = regression_step(roles, batch, seeded(), RegressionSettings())
    x_t = seeded().normal(batch.x0)
    x0, _ = roles.student(x_t, torch.full((2,), 999), batch.condition)
    assert float(losses.total()) == pytest.approx(float((x0 - batch.x0).abs().mean()), rel=1e-6)

    settings = DiffusionSettings(space="velocity", null_share=0.0, pure_noise_share=1.0)
    losses, _ = diffusion_step(roles, batch, seeded(), settings)
    rng = seeded()
    rng.integer(0, 1000, batch.x0)
    rng.uniform(batch.x0)
    x0, _ = roles.student(rng.normal(batch.x0), torch.full((2,), 999), batch.condition)
    assert float(losses.total()) == pytest.approx(float((x0 - batch.x0).square().mean()), rel=1e-6)


def test_dropped_context_reaches_the_network() -> None:
    roles, batch = tiny_roles(), tiny_batch()
    null = dataclasses.replace(batch, condition=batch.condition.unconditional())
    all_dropped = DiffusionSettings(null_share=1.0)
    none_dropped = DiffusionSettings(null_share=0.0)
    a, _ = diffusion_step(roles, batch, seeded(), all_dropped)
    b, _ = diffusion_step(roles, null, seeded(), none_dropped)
    c, _ = diffusion_step(roles, batch, seeded(), none_dropped)
    assert float(a.total()) == float(b.total()) != float(c.total())


def test_teacher_path_and_ode_regression() -> None:
    roles, batch = tiny_roles(), tiny_batch()
    path = teacher_path(roles, batch, seeded(), PLAIN, num_steps=8, num_states=4)
    assert path.shape[1] == 5
    torch.testing.assert_close(path[:, 0], seeded().normal(batch.x0))
    stored = dataclasses.replace(batch, ode_states=path)
    settings = OdeSettings(guidance=PLAIN, teacher_steps=8)
    online, _ = ode_step(roles, batch, seeded(), settings)
    rng = seeded()
    rng.normal(batch.x0)
    from_store, _ = ode_step(roles, stored, rng, dataclasses.replace(settings, stored=True))
    assert float(online.total()) == pytest.approx(float(from_store.total()), rel=1e-6)
    with pytest.raises(InputError, match="Stored teacher paths of 5 states"):
        ode_step(roles, batch, seeded(), dataclasses.replace(settings, stored=True))
    with pytest.raises(InputError, match="multiple of the student's"):
        teacher_path(roles, batch, seeded(), PLAIN, num_steps=7, num_states=4)


def test_anchor_pulls_to_the_real_clip() -> None:
    roles, batch = tiny_roles(), tiny_batch()
    plain, _ = gan_init_step(roles, batch, seeded(), GanSettings(), "student")
    anchored = GanSettings(anchor=AnchorSettings(l1=2.0))
    more, _ = gan_init_step(roles, batch, seeded(), anchored, "student")
    assert float(more.total()) > float(plain.total())
    perceptual = GanSettings(anchor=AnchorSettings(perceptual=1.0))
    with pytest.raises(InputError, match="no perceptual distance"):
        gan_init_step(roles, batch, seeded(), perceptual, "student")
    with_distance = dataclasses.replace(roles, perceptual=lambda a, b, _: (a - b).square().sum())
    best, _ = gan_init_step(with_distance, batch, seeded(), perceptual, "student")
    assert float(best.total()) > float(plain.total())


@pytest.mark.parametrize("stage", ["gan", "dmd"])
def test_nobody_judges_what_was_not_seen(stage: str) -> None:
    roles, plain = tiny_roles(), tiny_batch()
    unseen = torch.zeros_like(plain.x0, dtype=torch.bool)
    unseen[..., 3:] = True
    reached = {}
    for name, batch in (("all", plain), ("seen", dataclasses.replace(plain, unseen=unseen))):
        sample = 0.3 * torch.randn(plain.x0.shape, generator=torch.Generator().manual_seed(1))
        student = _Constant(sample.requires_grad_())
        acting = dataclasses.replace(roles, student=student)
        if stage == "gan":
            losses, _ = gan_init_step(acting, batch, seeded(), GanSettings(), "student")
        else:
            losses, _ = dmd_step(acting, batch, seeded(), DmdSettings(guidance=PLAIN), "student")
        losses.total().backward()
        reached[name] = sample.grad
    assert reached["seen"][unseen].abs().max() == 0 < reached["seen"][~unseen].abs().max()
    assert reached["all"][unseen].abs().max() > 0


def test_the_judges_see_real_clips_where_nothing_was_seen() -> None:
    roles, batch = tiny_roles(), tiny_batch()
    blind = dataclasses.replace(batch, unseen=torch.ones_like(batch.x0, dtype=torch.bool))
    _, report = gan_init_step(roles, blind, seeded(), GanSettings(), "judges")
    assert float(report.scalars["logit/real"]) == float(report.scalars["logit/fake"])
    _, report = gan_init_step(roles, batch, seeded(), GanSettings(), "judges")
    assert float(report.scalars["logit/real"]) != float(report.scalars["logit/fake"])


def test_joint_judges_see_real_clips_where_nothing_was_seen_and_denoise_the_sample() -> None:
    roles, batch = tiny_roles(), tiny_batch()
    blind = dataclasses.replace(batch, unseen=torch.ones_like(batch.x0, dtype=torch.bool))
    joint = DmdSettings(divergence="rkl", train_disc=True, disc_on="critic", gan_weight=0.1)
    plain, before = dmd_step(roles, batch, seeded(), joint, "judges")
    masked, after = dmd_step(roles, blind, seeded(), joint, "judges")
    assert float(before.scalars["logit/real"]) != float(before.scalars["logit/fake"])
    torch.testing.assert_close(after.scalars["logit/real"], after.scalars["logit/fake"])
    torch.testing.assert_close(after.scalars["logit/real"], before.scalars["logit/real"])
    torch.testing.assert_close(masked.critic, plain.critic)


class _Constant(nn.Module):
    """Always gives the same clip."""

    def __init__(self, clip: torch.Tensor) -> None:
        super().__init__()
        self.clip = clip

    def forward(self, x_t, t, condition, *, return_mid=False):
        return self.clip + 0 * x_t, ()


def test_missing_roles_and_contradictions_are_told() -> None:
    roles = dataclasses.replace(tiny_roles(), critic=None)
    with pytest.raises(InputError, match="needs a critic"):
        dmd_step(roles, tiny_batch(), seeded(), DmdSettings(), "judges")
    with pytest.raises(InputError, match="must keep training"):
        DmdSettings(disc_on="critic")
    with pytest.warns(UserWarning, match="flatten"), pytest.raises(InputError, match="penalties"):
        DmdSettings(disc_on="critic", train_disc=True, penalty=PenaltySettings(r1=1.0))
    with pytest.raises(InputError, match="low < high"):
        NoiseRange(low=0.5, high=0.5)
