"""Losses that weigh every pixel: weighted L1 and an SSIM that never looks at unknown pixels."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

WINDOW = 11
SIGMA = 1.5
_C1, _C2 = 0.01**2, 0.03**2


def weighted_l1(
    prediction: Float[Tensor, "3 H W"],
    target: Float[Tensor, "3 H W"],
    weight: Float[Tensor, "1 H W"],
) -> Float[Tensor, ""]:
    """Return the mean over all pixels of `weight * |prediction - target|`.

    It is divided by the number of pixels, not by the sum of weights, so that a frame of which
    little is known counts little.
    """
    return (weight * (prediction - target).abs()).mean()


def weighted_dssim(
    prediction: Float[Tensor, "3 H W"],
    target: Float[Tensor, "3 H W"],
    weight: Float[Tensor, "1 H W"],
) -> Float[Tensor, ""]:
    """Return the mean of `weight * (1 - SSIM)` with window statistics over known pixels only.

    Wang et al., Image Quality Assessment (2004), equation 13, with an 11x11 Gaussian window of
    sigma 1.5 and no padding. Means, variances and the covariance of a window are taken under the
    window times `weight`, so that pixels of weight 0 change nothing. With weight 1 everywhere this
    is the ordinary 1 - SSIM.
    """
    window = _window(prediction)
    mass = _blur(weight, window)
    safe = mass.clamp_min(1e-6)

    def mean(image: Tensor) -> Tensor:
        return _blur(image * weight, window) / safe

    mu_p, mu_t = mean(prediction), mean(target)
    var_p = (mean(prediction * prediction) - mu_p * mu_p).clamp_min(0)
    var_t = (mean(target * target) - mu_t * mu_t).clamp_min(0)
    covariance = mean(prediction * target) - mu_p * mu_t
    luminance = (2 * mu_p * mu_t + _C1) / (mu_p * mu_p + mu_t * mu_t + _C1)
    structure = (2 * covariance + _C2) / (var_p + var_t + _C2)
    return (mass * (1 - luminance * structure)).mean()


def _window(like: Tensor) -> tuple[Tensor, Tensor]:
    """Return the vertical and the horizontal part of the Gaussian window, cut to small images."""
    return _gaussian(like.shape[-2], like), _gaussian(like.shape[-1], like)


def _gaussian(num_pixels: int, like: Tensor) -> Tensor:
    size = min(WINDOW, num_pixels - (num_pixels + 1) % 2)
    offset = torch.arange(size, dtype=like.dtype, device=like.device) - (size - 1) / 2
    kernel = torch.exp(-(offset**2) / (2 * SIGMA**2))
    return kernel / kernel.sum()


def _blur(image: Tensor, window: tuple[Tensor, Tensor]) -> Tensor:
    """Filter each channel with a separable window, without padding."""
    vertical, horizontal = window
    rows = F.conv2d(image[:, None], vertical[None, None, :, None])
    return F.conv2d(rows, horizontal[None, None, None, :])[:, 0]
