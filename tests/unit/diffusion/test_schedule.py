import math

import pytest
import torch

from fvgen_recon.diffusion.schedule import FlowSchedule, ViewCrafterSchedule
from fvgen_recon.errors import InputError

SCHEDULES = {
    "viewcrafter-0.3": ViewCrafterSchedule(base_scale=0.3),
    "viewcrafter-0.7": ViewCrafterSchedule(base_scale=0.7),
    "flow-x0": FlowSchedule(prediction="x0"),
    "flow-velocity": FlowSchedule(prediction="velocity"),
}


@pytest.fixture(params=SCHEDULES)
def schedule(request):
    return SCHEDULES[request.param]


def _latents(rng, num_clips=4):
    shape = (num_clips, 4, 3, 2, 5)
    return torch.randn(shape, generator=rng), torch.randn(shape, generator=rng)


def test_true_output_gives_back_x0_and_eps(schedule, rng):
    x0, eps = _latents(rng)
    t = torch.tensor([30, 250, 640, 990])
    x_t = schedule.add_noise(x0, eps, t)
    output = schedule.target(x0, eps, t)
    torch.testing.assert_close(schedule.x0_from_output(output, x_t, t), x0, atol=2e-5, rtol=0)
    torch.testing.assert_close(schedule.eps_from_output(output, x_t, t), eps, atol=2e-5, rtol=0)


def test_add_noise_is_alpha_x0_plus_sigma_eps(schedule, rng):
    x0, eps = _latents(rng, 2)
    t = torch.tensor([100, 900])
    alpha, sigma = schedule.alpha_sigma(t)
    expected = torch.stack([alpha[i] * x0[i] + sigma[i] * eps[i] for i in range(2)])
    torch.testing.assert_close(schedule.add_noise(x0, eps, t), expected)


def test_last_time_is_pure_noise(schedule, rng):
    x0, eps = _latents(rng, 1)
    t = torch.tensor([schedule.num_timesteps - 1])
    torch.testing.assert_close(schedule.add_noise(x0, eps, t), eps, atol=0, rtol=0)
    assert schedule.timesteps(4)[0] == schedule.num_timesteps - 1


def test_ddim_coefficients_keep_the_variance(schedule):
    t, t_prev = torch.tensor([249, 749, 999]), torch.tensor([124, 499, 749])
    _, sigma = schedule.alpha_sigma(t_prev)
    for eta in (0.0, 0.5, 1.0):
        direction, fresh = schedule.ddim_coefficients(t, t_prev, eta)
        torch.testing.assert_close(direction**2 + fresh**2, sigma**2, atol=1e-6, rtol=0)
    assert (schedule.ddim_coefficients(t, t_prev, 0.0)[1] == 0).all()


def test_eta_one_is_the_posterior_of_the_forward_process(schedule):
    # With x_t = r x_s + sqrt(q) eps, Bayes gives the posterior variance q s_s^2 / (q + r^2 s_s^2).
    t, t_prev = torch.tensor([700]), torch.tensor([450])
    (alpha, sigma), (alpha_prev, sigma_prev) = schedule.alpha_sigma(t), schedule.alpha_sigma(t_prev)
    ratio = alpha / alpha_prev  # both times share one rescale, so it cancels
    extra = sigma**2 - ratio**2 * sigma_prev**2
    posterior = extra * sigma_prev**2 / (extra + ratio**2 * sigma_prev**2)
    fresh = schedule.ddim_coefficients(t, t_prev, 1.0)[1]
    torch.testing.assert_close(fresh**2, posterior, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("num_steps", [7, 15, 20, 25, 50])
def test_first_step_is_finite_where_the_original_gives_nan(num_steps):
    schedule = ViewCrafterSchedule(base_scale=0.3)
    t = schedule.timesteps(num_steps)
    direction, fresh = schedule.ddim_coefficients(t[:-1], t[1:], 1.0)
    assert torch.isfinite(direction).all()
    assert torch.isfinite(fresh).all()


def test_known_values_of_viewcrafter():
    schedule = ViewCrafterSchedule(base_scale=0.3)
    t = torch.tensor([0, 249, 499, 749, 999])
    _, sigma = schedule.alpha_sigma(t)
    alpha_bar = torch.tensor([0.99915, 0.6542, 0.24236, 0.0332, 0.0])
    torch.testing.assert_close(1 - sigma**2, alpha_bar, atol=5e-5, rtol=0)
    scale = torch.tensor([1.0, 1 - 0.7 * 249 / 399, 0.3, 0.3, 0.3])
    torch.testing.assert_close(schedule.scale(t), scale)
    assert schedule.timesteps(4).tolist() == [999, 749, 499, 249]
    assert schedule.timesteps(3).tolist() == [999, 666, 332]


def test_half_precision_is_converted_in_single_precision(rng):
    schedule = ViewCrafterSchedule(base_scale=0.3)
    x0, eps = (z.bfloat16() for z in _latents(rng, 1))
    t = torch.tensor([500])
    assert schedule.add_noise(x0, eps, t).dtype == torch.float32
    assert schedule.x0_from_output(eps, x0, t).dtype == torch.float32


def test_gradient_of_x0_reaches_the_output(rng):
    schedule = ViewCrafterSchedule(base_scale=0.7)
    output, x_t = _latents(rng, 1)
    output.requires_grad_()
    t = torch.tensor([600])
    schedule.x0_from_output(output, x_t, t).sum().backward()
    _, sigma = schedule.alpha_sigma(t)
    torch.testing.assert_close(output.grad, torch.full_like(output, -float(sigma) / 0.7))


def test_tables_first_used_in_inference_mode_can_be_trained_with(rng):
    schedule = ViewCrafterSchedule(base_scale=0.123)
    with torch.inference_mode():
        schedule.scale(torch.tensor([3]))
    x0, eps = _latents(rng, 1)
    x0.requires_grad_()
    schedule.add_noise(x0, eps, torch.tensor([3])).square().sum().backward()
    assert x0.grad is not None


@pytest.mark.parametrize("num_steps", [0, -1, 1001])
def test_impossible_step_counts_are_refused(schedule, num_steps):
    with pytest.raises(InputError, match=f"between 1 and 1000 was expected, {num_steps} came"):
        schedule.timesteps(num_steps)


@pytest.mark.parametrize("base_scale", [0.0, 1.5, math.nan])
def test_base_scale_out_of_range_is_refused(base_scale):
    with pytest.raises(InputError, match="base scale"):
        ViewCrafterSchedule(base_scale=base_scale)


def test_flow_shift_moves_the_times_between_the_ends():
    plain = FlowSchedule().timesteps(4)
    assert plain.tolist() == [999, 749, 500, 250]
    shifted = FlowSchedule(shift=3.0).timesteps(4)
    assert shifted.tolist() == [999, 899, 749, 500]
    # A shift of s undoes one of 1/s: the odds of noise are multiplied.
    odds = shifted[1:] / (999.0 - shifted[1:])
    assert torch.allclose(odds, 3 * plain[1:] / (999.0 - plain[1:]), rtol=5e-3)
