import math

import pytest
import torch

from fvgen_recon.evaluation.metric import flicker, frechet_distance, psnr, sharpness, ssim


def test_psnr_of_a_known_error(rng):
    truth = 0.4 * torch.rand(2, 3, 16, 16, generator=rng)
    assert psnr(truth + 0.1, truth).tolist() == pytest.approx([20.0, 20.0], abs=1e-4)
    assert psnr(truth, truth).tolist() == pytest.approx([100.0, 100.0])
    weight = torch.zeros(2, 1, 16, 16)
    weight[0, :, :4] = 1
    image = truth.clone()
    image[:, :, :4] += 0.01
    image[:, :, 4:] += 0.5
    value = psnr(image, truth, weight)
    assert float(value[0]) == pytest.approx(40.0, abs=1e-3)
    assert math.isnan(float(value[1]))


def test_ssim_against_loops(rng):
    a, b = torch.rand(2, 1, 3, 13, 12, generator=rng)
    line = torch.exp(-((torch.arange(11) - 5.0) ** 2) / 4.5)
    window = torch.outer(line, line) / line.sum() ** 2
    values = []
    for c in range(3):
        for y in range(3):
            for x in range(2):
                p, q = a[0, c, y : y + 11, x : x + 11], b[0, c, y : y + 11, x : x + 11]
                mp, mq = (window * p).sum(), (window * q).sum()
                vp, vq = (window * (p - mp) ** 2).sum(), (window * (q - mq) ** 2).sum()
                cov = (window * (p - mp) * (q - mq)).sum()
                top = (2 * mp * mq + 1e-4) * (2 * cov + 9e-4)
                values.append(float(top / ((mp**2 + mq**2 + 1e-4) * (vp + vq + 9e-4))))
    assert float(ssim(a, b)) == pytest.approx(sum(values) / len(values), abs=1e-4)
    assert float(ssim(a, a)) == pytest.approx(1.0, abs=1e-5)


def test_sharpness_tells_blur_from_grain(rng):
    truth = torch.rand(1, 3, 24, 24, generator=rng)
    blurred = torch.nn.functional.avg_pool2d(truth, 3, 1, 1)
    assert float(sharpness(truth, truth)) == pytest.approx(1.0)
    assert float(sharpness(blurred, truth)) < 0.5
    assert float(sharpness(2 * truth, truth)) == pytest.approx(4.0, rel=1e-5)


def test_a_constant_error_does_not_flicker(rng):
    truth = torch.rand(5, 3, 8, 8, generator=rng)
    assert float(flicker(truth + 0.1, truth)) == pytest.approx(0.0, abs=1e-6)
    sign = torch.tensor([1.0, -1, 1, -1, 1])[:, None, None, None]
    assert float(flicker(truth + 0.1 * sign, truth)) == pytest.approx(0.2, abs=1e-5)


def test_frechet_distance_of_known_gaussians(rng):
    first = torch.randn(20_000, 3, generator=rng)
    # Shift by 2 along one axis and triple the spread of another: 4 + (3 - 1)^2.
    second = first * torch.tensor([1.0, 3.0, 1.0]) + torch.tensor([2.0, 0.0, 0.0])
    assert frechet_distance(first, first) == pytest.approx(0.0, abs=1e-6)
    assert frechet_distance(first, second) == pytest.approx(8.0, rel=0.03)
    assert frechet_distance(second, first) == pytest.approx(frechet_distance(first, second))
