import pytest
import torch

from fvgen_recon.diffusion.backbone import Condition
from fvgen_recon.diffusion.sampler import (
    GuidanceScale,
    denoiser,
    guided_output,
    sample_ddim,
    sample_few_steps,
    seeded_noise,
)
from fvgen_recon.diffusion.schedule import FlowSchedule, ViewCrafterSchedule
from fvgen_recon.errors import InputError

SHAPE = (2, 4, 3, 2, 5)
SCHEDULES = {
    "viewcrafter": ViewCrafterSchedule(base_scale=0.3),
    "flow-x0": FlowSchedule(prediction="x0"),
    "flow-velocity": FlowSchedule(prediction="velocity"),
}


@pytest.fixture(params=SCHEDULES)
def schedule(request):
    return SCHEDULES[request.param]


def _perfect(schedule, x0):
    """A network that knows x0: its output at x_t is the true target."""

    def denoise(x_t, t):
        alpha, sigma = (value[:, None, None, None, None] for value in schedule.alpha_sigma(t))
        return schedule.target(x0, (x_t - alpha * x0) / sigma, t)

    return denoise


class _Backbone(torch.nn.Module):
    """Output depends on the noisy latent, the renders and the context."""

    def forward(self, x_t, t, condition, *, return_mid=False):
        del return_mid
        mean = condition.context.mean(dim=(1, 2))[:, None, None, None, None]
        return x_t * mean + condition.concat + t[:, None, None, None, None] / 1000, ()


def _condition(rng):
    return Condition(
        concat=torch.randn(SHAPE, generator=rng),
        context=torch.randn(2, 3, 4, generator=rng),
        null_context=torch.randn(2, 3, 4, generator=rng),
    )


@pytest.mark.parametrize("num_steps", [1, 2, 4, 8])
@pytest.mark.parametrize("kind", ["sde", "ode"])
def test_few_steps_with_a_perfect_network_return_x0(schedule, kind, num_steps, rng):
    x0, x_T = torch.randn(SHAPE, generator=rng), torch.randn(SHAPE, generator=rng)
    out = sample_few_steps(
        _perfect(schedule, x0),
        x_T,
        schedule,
        times=schedule.timesteps(num_steps),
        kind=kind,
        noise=seeded_noise(rng),
    )
    torch.testing.assert_close(out, x0, atol=3e-5, rtol=0)


def test_ddim_with_a_perfect_network_ends_at_x0_and_the_noise_of_time_zero(schedule, rng):
    x0, x_T = torch.randn(SHAPE, generator=rng), torch.randn(SHAPE, generator=rng)
    out = sample_ddim(_perfect(schedule, x0), x_T, schedule, times=schedule.timesteps(10), eta=0.0)
    alpha, sigma = schedule.alpha_sigma(torch.tensor([0]))
    torch.testing.assert_close(out, alpha * x0 + sigma * x_T, atol=3e-5, rtol=0)


def test_few_step_ode_is_ddim_without_its_last_noise(rng):
    schedule = FlowSchedule(prediction="velocity")
    x_T = torch.randn(SHAPE, generator=rng)
    arguments = (lambda x, t: 0.3 * x.sin(), x_T, schedule)
    times = schedule.timesteps(5)
    few = sample_few_steps(*arguments, times=times, kind="ode")
    torch.testing.assert_close(few, sample_ddim(*arguments, times=times, eta=0.0))


def test_renoising_follows_its_definition(rng):
    schedule = ViewCrafterSchedule(base_scale=0.7)
    x_T, fresh = torch.randn(SHAPE, generator=rng), torch.randn(3, *SHAPE, generator=rng)
    times = schedule.timesteps(3)

    def network(x, t):
        return 0.5 * torch.tanh(x) + t[:, None, None, None, None] / 1000

    x = x_T
    for i, time in enumerate(times.tolist()):
        t = torch.tensor([time] * 2)
        x0 = schedule.x0_from_output(network(x, t), x, t)
        if i < 2:
            x = schedule.add_noise(x0, fresh[i], torch.tensor([int(times[i + 1])] * 2))
    out = sample_few_steps(network, x_T, schedule, times=times, noise=lambda i, like: fresh[i])
    torch.testing.assert_close(out, x0)


def test_same_seed_same_sample_other_seed_other_sample():
    schedule = ViewCrafterSchedule(base_scale=0.3)

    def sample(seed):
        rng = torch.Generator().manual_seed(seed)
        x_T = torch.randn(SHAPE, generator=torch.Generator().manual_seed(7))
        return sample_few_steps(
            lambda x, t: 0.2 * x,
            x_T,
            schedule,
            times=schedule.timesteps(4),
            noise=seeded_noise(rng),
        )

    assert torch.equal(sample(1), sample(1))
    assert not torch.allclose(sample(1), sample(2))


def test_guidance_is_the_formula_and_its_rescale_restores_the_deviation(rng):
    output, null = torch.randn(SHAPE, generator=rng), torch.randn(SHAPE, generator=rng)
    plain = guided_output(output, null, GuidanceScale(scale=7.5, rescale=0.0))
    torch.testing.assert_close(plain, null + 7.5 * (output - null))
    full = guided_output(output, null, GuidanceScale(scale=7.5, rescale=1.0))
    axes = (1, 2, 3, 4)
    torch.testing.assert_close(full.std(dim=axes), output.std(dim=axes))
    half = guided_output(output, null, GuidanceScale(scale=7.5, rescale=0.5))
    torch.testing.assert_close(half, 0.5 * full + 0.5 * plain)


def test_both_ways_of_evaluating_guidance_agree(rng):
    condition = _condition(rng)
    x_t, t = torch.randn(SHAPE, generator=rng), torch.tensor([500, 300])
    guidance = GuidanceScale(scale=3.0, rescale=0.7)
    batched = denoiser(_Backbone(), condition, guidance)(x_t, t)
    in_turn = denoiser(_Backbone(), condition, guidance, batch_guidance=False)(x_t, t)
    torch.testing.assert_close(batched, in_turn)
    plain = denoiser(_Backbone(), condition)(x_t, t)
    assert torch.equal(plain, _Backbone()(x_t, t, condition)[0])


def test_callback_hears_of_each_step(rng):
    schedule = ViewCrafterSchedule(base_scale=0.3)
    heard = []
    x_T = torch.randn(SHAPE, generator=rng)
    out = sample_few_steps(
        lambda x, t: 0.2 * x,
        x_T,
        schedule,
        times=schedule.timesteps(4),
        noise=seeded_noise(rng),
        callback=heard.append,
    )
    assert [(step.index, step.num_steps, step.t) for step in heard] == [
        (0, 4, 999),
        (1, 4, 749),
        (2, 4, 499),
        (3, 4, 249),
    ]
    assert torch.equal(heard[-1].x0, out)


def test_forgotten_noise_is_refused(rng):
    schedule = ViewCrafterSchedule(base_scale=0.3)
    x_T = torch.randn(SHAPE, generator=rng)
    times = schedule.timesteps(4)
    with pytest.raises(InputError, match="seeded_noise"):
        sample_ddim(lambda x, t: x, x_T, schedule, times=times)
    with pytest.raises(InputError, match="seeded_noise"):
        sample_few_steps(lambda x, t: x, x_T, schedule, times=times)
