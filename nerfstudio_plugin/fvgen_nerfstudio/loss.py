"""Losses that weigh every pixel: weighted L1 and an SSIM that never looks at unknown pixels."""

from functools import cache

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
    seen = torch.cat([prediction, target, prediction**2, target**2, prediction * target])
    means = _blur(torch.cat([seen * weight, weight]))
    mass = means[15:]
    return (mass * (1 - _similarity(means[:15] / mass.clamp_min(1e-6)))).mean()


def dssim(prediction: Float[Tensor, "3 H W"], target: Float[Tensor, "3 H W"]) -> Float[Tensor, ""]:
    """Return the mean of 1 - SSIM, every pixel known: `weighted_dssim` with weight 1, faster."""
    seen = torch.cat([prediction, target, prediction**2, target**2, prediction * target])
    return 1 - _similarity(_blur(seen)).mean()


def photo_loss(
    prediction: Float[Tensor, "3 H W"], target: Float[Tensor, "3 H W"], share: float
) -> Float[Tensor, ""]:
    """Return splatfacto's loss of a photo, `share` of it by SSIM and the rest by L1."""
    return (1 - share) * (prediction - target).abs().mean() + share * dssim(prediction, target)


def frame_loss(
    prediction: Float[Tensor, "3 H W"],
    target: Float[Tensor, "3 H W"],
    weight: Float[Tensor, "1 H W"],
    share: float,
) -> Float[Tensor, ""]:
    """Return the same loss, each pixel by its weight."""
    l1 = weighted_l1(prediction, target, weight)
    return (1 - share) * l1 + share * weighted_dssim(prediction, target, weight)


def _similarity(means: Tensor) -> Tensor:
    """Return SSIM `3 h w` from window means `15 h w` of two images, their squares and product."""
    mu_p, mu_t, square_p, square_t, product = means.view(5, 3, *means.shape[1:])
    var_p = (square_p - mu_p * mu_p).clamp_min(0)
    var_t = (square_t - mu_t * mu_t).clamp_min(0)
    covariance = product - mu_p * mu_t
    luminance = (2 * mu_p * mu_t + _C1) / (mu_p * mu_p + mu_t * mu_t + _C1)
    structure = (2 * covariance + _C2) / (var_p + var_t + _C2)
    return luminance * structure


def _blur(image: Tensor) -> Tensor:
    """Filter each channel with the Gaussian window, without padding.

    One grouped convolution an axis: few launches, and its kernels know no reduced precision, which
    variances of small differences would not survive.
    """
    groups = len(image)
    for axis in (-2, -1):
        kernel = _gaussian(image.shape[axis], image.dtype, image.device)
        shape = (1, 1, -1, 1) if axis == -2 else (1, 1, 1, -1)
        weight = kernel.view(shape).expand(groups, -1, -1, -1)
        image = F.conv2d(image, weight, groups=groups)
    return image


@cache
def _gaussian(num_pixels: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return the window, cut to small images; kept, since every step asks for it."""
    size = min(WINDOW, num_pixels - (num_pixels + 1) % 2)
    offset = torch.arange(size, dtype=dtype, device=device) - (size - 1) / 2
    kernel = torch.exp(-(offset**2) / (2 * SIGMA**2))
    return kernel / kernel.sum()
