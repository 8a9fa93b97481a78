"""Image metrics in float32 on images in [0, 1]; each under its own name.

ST-LPIPS is not LPIPS, and the Frechet distance on EfficientNet-Lite0 features is not FID: the
numbers compare methods with each other, never with published tables.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


def _weighted_mean(values: Tensor, weight: Tensor | None) -> Tensor:
    """Mean over everything but the batch; NaN where the weight is zero everywhere."""
    if weight is None:
        return values.flatten(1).mean(dim=1)
    weight = weight.float().expand_as(values).flatten(1)
    total = weight.sum(dim=1)
    mean = (values.flatten(1) * weight).sum(dim=1) / total.clamp_min(1e-12)
    return torch.where(total > 0, mean, torch.full_like(mean, torch.nan))


def psnr(
    image: Float[Tensor, "N 3 H W"],
    truth: Float[Tensor, "N 3 H W"],
    weight: Float[Tensor, "N 1 H W"] | None = None,
) -> Float[Tensor, "N"]:
    """Peak signal-to-noise ratio in dB of each image, over the weighted pixels.

    NaN where an image has no weighted pixel; errors below 1e-10 count as 1e-10 (100 dB).
    """
    error = _weighted_mean((image.float() - truth.float()) ** 2, weight)
    return -10 * error.clamp_min(1e-10).log10()


def _gaussian_window(x: Tensor) -> Tensor:
    place = torch.arange(11, device=x.device, dtype=x.dtype) - 5
    row = torch.exp(-(place**2) / (2 * 1.5**2))
    row = (row / row.sum()).expand(x.shape[1], 1, 1, 11)
    x = F.conv2d(x, row, groups=x.shape[1])
    return F.conv2d(x, row.mT, groups=x.shape[1])


def ssim(
    image: Float[Tensor, "N 3 H W"],
    truth: Float[Tensor, "N 3 H W"],
    weight: Float[Tensor, "N 1 H W"] | None = None,
) -> Float[Tensor, "N"]:
    """Structural similarity of each image (Wang et al. 2004): 11x11 Gaussian window, sigma 1.5.

    Windows lie wholly inside the image, as in the reference; `weight` is read at window centres.
    """
    a, b = image.float(), truth.float()
    mean_a, mean_b = _gaussian_window(a), _gaussian_window(b)
    var_a = _gaussian_window(a * a) - mean_a**2
    var_b = _gaussian_window(b * b) - mean_b**2
    cov = _gaussian_window(a * b) - mean_a * mean_b
    c1, c2 = 0.01**2, 0.03**2
    value = (2 * mean_a * mean_b + c1) * (2 * cov + c2)
    value = value / ((mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2))
    inner = None if weight is None else weight[..., 5:-5, 5:-5]
    return _weighted_mean(value, inner)


def _gradient_energy(image: Tensor) -> Tensor:
    gray = image.float().mean(dim=1, keepdim=True)
    x = gray[..., :-1, 1:] - gray[..., :-1, :-1]
    y = gray[..., 1:, :-1] - gray[..., :-1, :-1]
    return F.pad(x**2 + y**2, (0, 1, 0, 1))


def sharpness(
    image: Float[Tensor, "N 3 H W"],
    truth: Float[Tensor, "N 3 H W"],
    weight: Float[Tensor, "N 1 H W"] | None = None,
) -> Float[Tensor, "N"]:
    """Gradient energy relative to the photo's: 1 is as sharp, below is blur, far above is grain."""
    ours = _weighted_mean(_gradient_energy(image), weight)
    return ours / _weighted_mean(_gradient_energy(truth), weight).clamp_min(1e-8)


def flicker(frames: Float[Tensor, "T 3 H W"], truth: Float[Tensor, "T 3 H W"]) -> Float[Tensor, ""]:
    """Mean change between neighbour frames that is not in the truth's own change.

    The error between a method and the photos is a still picture plus its change from frame to
    frame; only that change is counted, so a constant error does not flicker.
    """
    error = frames.float() - truth.float()
    return (error[1:] - error[:-1]).abs().mean()


def frechet_distance(
    first: Float[Tensor, "N D"], second: Float[Tensor, "M D"], shrink: float = 0.0
) -> float:
    """Frechet distance between Gaussians fitted to two sets of features (Heusel et al. 2017).

    Args:
        first: Features of one set.
        second: Features of the other set.
        shrink: Share of the mean variance mixed into the covariances, for few samples.
    """
    moments = []
    for features in (first.double(), second.double()):
        centred = features - features.mean(dim=0)
        covariance = centred.T @ centred / max(1, len(features) - 1)
        moments.append((features.mean(dim=0), covariance))
    return frechet_from_moments(moments[0], moments[1], shrink=shrink)


def frechet_from_moments(
    first: tuple[Float[Tensor, "D"], Float[Tensor, "D D"]],
    second: tuple[Float[Tensor, "D"], Float[Tensor, "D D"]],
    *,
    shrink: float = 0.0,
) -> float:
    """Frechet distance between two Gaussians, each given by its mean and covariance.

    Args:
        first: One Gaussian.
        second: The other.
        shrink: Share of the mean variance mixed into the covariances, for few samples.
    """
    means, covariances = [], []
    for mean, covariance in (first, second):
        scale = covariance.diagonal().mean() * torch.eye(len(covariance), dtype=covariance.dtype)
        means.append(mean)
        covariances.append((1 - shrink) * covariance + shrink * scale)
    root = _sqrt_psd(covariances[0])
    cross = torch.linalg.eigvalsh(root @ covariances[1] @ root).clamp_min(0).sqrt().sum()
    trace = covariances[0].trace() + covariances[1].trace()
    return float(((means[0] - means[1]) ** 2).sum() + trace - 2 * cross)


def _sqrt_psd(matrix: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(matrix)
    return (vectors * values.clamp_min(0).sqrt()) @ vectors.T
