"""The best of several depths for each pixel, sought in a few views at a time.

What all views take at once grows with their number: seven gigabytes for sixty photos of 320x180.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from fvgen_recon.pointcloud.aggregation import aggregate_cost, pick_label
from fvgen_recon.pointcloud.sweep import ViewPairs, match_scores

_MOST_CPU = 2**26
_MOST_CUDA = 2**28
"""Scores that are held at once, some 36 bytes each."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Matching:
    """How photos are compared, and what a jump in depth costs."""

    windows: tuple[int, ...]
    """Odd sides of the correlation windows in pixels."""
    best: int
    """How many best-matching sources count."""
    small_penalty: float
    """Price of a depth change by one label between neighbouring pixels."""
    large_penalty: float
    """Price of any larger depth change where the colour stays the same."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Labels:
    """Which hypothesis each pixel takes."""

    label: Float[Tensor, "V H W"]
    """Index of the hypothesis, with a fraction."""
    clarity: Float[Tensor, "V H W"]
    """By how much the next best costs more."""
    score: Float[Tensor, "V H W"]
    """ZNCC with the source views at the nearest whole label, in [-1, 1]."""


def find_labels(
    images: Float[Tensor, "V 3 H W"],
    pairs: ViewPairs,
    hypotheses: Float[Tensor, "V D H2 W2"],
    matching: Matching,
) -> Labels:
    """Match every hypothesis of every pixel, aggregate along paths and pick the cheapest.

    Args:
        images: Photos of all views.
        pairs: Reference and source views; row v has view v as its reference.
        hypotheses: Inverse depths; H2 and W2 are 1 (planes) or the size of the photos.
        matching: How to compare.
    """
    most = _MOST_CUDA if images.is_cuda else _MOST_CPU
    step = max(1, most // (hypotheses.shape[1] * images[0, 0].numel()))
    starts = range(0, len(images), step)
    parts = [_pick(images, pairs, hypotheses, matching, slice(s, s + step)) for s in starts]
    label, clarity, score = (torch.cat(part) for part in zip(*parts, strict=True))
    return Labels(label=label, clarity=clarity, score=score)


def _pick(
    images: Float[Tensor, "V 3 H W"],
    pairs: ViewPairs,
    hypotheses: Float[Tensor, "V D H2 W2"],
    matching: Matching,
    views: slice,
) -> tuple[Float[Tensor, "R H W"], ...]:
    """Return label, clarity and score of some views, as `Labels` has them."""
    scores = match_scores(
        images.mean(dim=1),
        pairs[views],
        hypotheses[views],
        windows=matching.windows,
        best=matching.best,
        views=views,
    )
    total = aggregate_cost(
        1 - scores, images[views], small=matching.small_penalty, large=matching.large_penalty
    )
    label, clarity = pick_label(total)
    return label, clarity, scores.gather(1, label.round().long()[:, None])[:, 0]
