import pytest
import torch

from fvgen_recon.evaluation.metric import frechet_distance
from fvgen_recon.evaluation.moment import (
    add_moments,
    frechet_between,
    kernel_between,
    load_moments,
    measure_moments,
    save_moments,
)


def test_moments_of_parts_add_up(rng):
    rows = torch.randn(300, 5, generator=rng) * 2 + 1
    whole = measure_moments(rows)
    parts = add_moments([measure_moments(rows[:120]), measure_moments(rows[120:])])
    torch.testing.assert_close(parts.mean, rows.double().mean(dim=0))
    torch.testing.assert_close(parts.covariance, torch.cov(rows.double().T))
    torch.testing.assert_close(parts.covariance, whole.covariance)


def test_frechet_of_moments_is_that_of_the_features(rng):
    a, b = torch.randn(400, 4, generator=rng), 1 + 2 * torch.randn(500, 4, generator=rng)
    wanted = frechet_distance(a, b, shrink=0.05)
    assert frechet_between(measure_moments(a), measure_moments(b)) == pytest.approx(wanted)


def test_kernel_distance_is_unbiased_and_sees_a_shift(rng):
    def draw(shift):
        return measure_moments(torch.randn(500, 8, generator=rng) + shift)

    same = [kernel_between(draw(0.0), draw(0.0)) for _ in range(8)]
    assert abs(sum(same) / 8) < 0.02
    assert kernel_between(draw(0.0), draw(1.0)) > 1.0


def test_moments_survive_a_file(tmp_path, rng):
    moments = {"renders": measure_moments(torch.rand(40, 3, generator=rng))}
    save_moments(tmp_path / "m.safetensors", moments)
    again = load_moments(tmp_path / "m.safetensors")["renders"]
    assert again.count == 40
    torch.testing.assert_close(again.covariance, moments["renders"].covariance)
    torch.testing.assert_close(again.sample, moments["renders"].sample, atol=1e-3, rtol=1e-3)
