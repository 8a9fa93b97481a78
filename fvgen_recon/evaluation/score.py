"""Rendered test views against the held-out photos, whatever rendered them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from fvgen_recon.errors import InputError
from fvgen_recon.evaluation.judge import Jury
from fvgen_recon.evaluation.metric import psnr, ssim
from fvgen_recon.evaluation.moment import Moments, measure_moments
from fvgen_recon.io.image import read_image

SHARED_METRICS = ("psnr", "ssim", "psnr_seen", "psnr_unseen", "ssim_seen", "seen_share")
"""Numbers of every view, apart from the perceptual distances that happen to be there."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ViewScore:
    """One test view; NaN where a number is not defined."""

    view: int
    """Id of the view in the capture."""
    psnr: float
    """dB over all pixels."""
    ssim: float
    """Structural similarity over all pixels."""
    psnr_seen: float
    """dB over the pixels that the inputs see too."""
    psnr_unseen: float
    """dB over the other pixels."""
    ssim_seen: float
    """Structural similarity of windows whose centre the inputs see too."""
    seen_share: float
    """Share of pixels that the inputs see too."""
    distances: dict[str, float]
    """Perceptual distances by name."""


@dataclass(frozen=True, kw_only=True, slots=True)
class HeldOut:
    """The held-out photos of a fold; opened for scoring only."""

    views: tuple[int, ...]
    """Their ids in the capture."""
    photos: Float[Tensor, "N 3 H W"]
    """The photos at the fold's size."""
    seen: Bool[Tensor, "N 1 H W"]
    """Where the inputs see the same."""


def read_renders(folder: Path, views: Sequence[int], names: Sequence[str]) -> list[Tensor]:
    """Read a folder of rendered test views.

    Args:
        folder: PNG or JPEG files, named by the photo's stem or by the view's id in five digits.
        views: Ids of the test views.
        names: Names of their photos.

    Raises:
        InputError: A view is missing.
    """
    images = []
    for view, name in zip(views, names, strict=True):
        stems = (f"{view:05d}", Path(name).stem)
        found = [folder / f"{s}{e}" for s in stems for e in (".png", ".jpg", ".jpeg")]
        path = next((path for path in found if path.is_file()), None)
        if path is None:
            raise InputError(
                f"{folder} has no render of the test view {name}: {stems[0]}.png or {stems[1]}.png "
                "was expected."
            )
        images.append(read_image(path))
    return images


def fit_render(image: Float[Tensor, "3 h w"], height: int, width: int) -> Float[Tensor, "3 H W"]:
    """Bring a render to the photos' size where it is of the same shape.

    Raises:
        InputError: It is of another shape, so that pixels would not correspond.
    """
    old_height, old_width = image.shape[-2:]
    if (old_height, old_width) == (height, width):
        return image
    if abs(old_height * width / old_width - height) > 1.5:
        raise InputError(
            f"A render of {old_height}x{old_width} (height x width) cannot be compared with photos "
            f"of {height}x{width}: render the whole view."
        )
    size = (height, width)
    resized = torch.nn.functional.interpolate(image[None], size, mode="bicubic", antialias=True)
    return resized[0].clamp(0, 1)


@torch.no_grad()
def score_renders(
    renders: Sequence[Float[Tensor, "3 h w"]], truth: HeldOut, jury: Jury
) -> tuple[list[ViewScore], dict[str, Moments]]:
    """Score every test view.

    Returns:
        One score a view, and the moments of the features of `renders` and of `photos`; these are
        empty where the feature network is missing.
    """
    height, width = truth.photos.shape[-2:]
    scores, features = [], {"renders": [], "photos": []}
    for view, render, photo, seen in zip(
        truth.views, renders, truth.photos, truth.seen, strict=True
    ):
        pair = [fit_render(render, height, width)[None], photo[None]]
        image, target = (x.to(jury.device) for x in pair)
        scores.append(_score_view(view, image, target, seen[None].to(jury.device), jury))
        if jury.eyes is not None:
            for name, picture in (("renders", image), ("photos", target)):
                features[name].append(jury.eyes.local_features(picture))
    moments = {name: measure_moments(torch.cat(parts)) for name, parts in features.items() if parts}
    return scores, moments


def _score_view(view: int, image: Tensor, photo: Tensor, seen: Tensor, jury: Jury) -> ViewScore:
    is_large = min(image.shape[-2:]) > 10  # the window of SSIM
    weight = seen.float()
    return ViewScore(
        view=view,
        psnr=float(psnr(image, photo)),
        ssim=float(ssim(image, photo)) if is_large else math.nan,
        psnr_seen=float(psnr(image, photo, weight)),
        psnr_unseen=float(psnr(image, photo, 1 - weight)),
        ssim_seen=float(ssim(image, photo, weight)) if is_large else math.nan,
        seen_share=float(weight.mean()),
        distances={name: float(value) for name, value in jury.distances(image, photo).items()},
    )


def mean_scores(scores: Sequence[ViewScore]) -> dict[str, float]:
    """Average every number over the views in which it is defined."""
    columns = {name: [float(getattr(s, name)) for s in scores] for name in SHARED_METRICS}
    for name in scores[0].distances:
        columns[name] = [s.distances[name] for s in scores]
    means = {}
    for name, values in columns.items():
        known = [value for value in values if not math.isnan(value)]
        means[name] = sum(known) / len(known) if known else math.nan
    return means
