"""Weighted losses against the ordinary ones and against closed forms."""

import pytest
import torch
from pytorch_msssim import ssim

from fvgen_nerfstudio.loss import weighted_dssim, weighted_l1


@pytest.fixture
def images(rng: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    first = torch.rand(3, 24, 31, generator=rng)
    return first, (first + 0.2 * torch.rand(3, 24, 31, generator=rng)).clamp(0, 1)


def test_full_weight_is_ordinary_ssim(images):
    first, second = images
    ordinary = ssim(first[None], second[None], data_range=1.0)
    ones = torch.ones(1, 24, 31)
    torch.testing.assert_close(1 - weighted_dssim(first, second, ones), ordinary, atol=2e-5, rtol=0)


def test_losses_scale_with_a_constant_weight(images):
    first, second = images
    ones = torch.ones(1, 24, 31)
    for loss in (weighted_l1, weighted_dssim):
        torch.testing.assert_close(
            loss(first, second, 0.3 * ones), 0.3 * loss(first, second, ones), atol=1e-6, rtol=1e-4
        )


def test_unknown_pixels_change_nothing_and_get_no_gradient(images, rng):
    first, second = images
    weight = torch.ones(1, 24, 31)
    weight[:, :, 15:] = 0
    other = second.clone()
    other[:, :, 15:] = torch.rand(3, 24, 16, generator=rng)
    prediction = first.clone().requires_grad_()
    for loss in (weighted_l1, weighted_dssim):
        value = loss(prediction, second, weight)
        torch.testing.assert_close(value, loss(prediction, other, weight), atol=1e-6, rtol=1e-5)
        (grad,) = torch.autograd.grad(value, prediction)
        assert grad[:, :, 15:].abs().max() == 0
        assert grad[:, :, :15].abs().max() > 0


def test_equal_images_and_no_weight_cost_nothing(images):
    first, second = images
    ones = torch.ones(1, 24, 31)
    assert weighted_dssim(first, first, ones).abs() < 1e-5
    assert weighted_dssim(first, second, 0 * ones) == 0
    assert weighted_l1(first, first + 0.25, ones) == pytest.approx(0.25)


def test_images_smaller_than_the_window():
    first, second = torch.rand(3, 8, 6), torch.rand(3, 8, 6)
    assert 0 < weighted_dssim(first, second, torch.ones(1, 8, 6)) < 2
