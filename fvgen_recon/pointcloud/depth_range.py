"""Between which depths does the scene lie? Found from the cameras and photos alone."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from fvgen_recon.errors import InputError
from fvgen_recon.geometry.projection import project_points, unproject_depth
from fvgen_recon.pointcloud.consistency import compare_depth, view_chunks
from fvgen_recon.pointcloud.label import Matching, find_labels
from fvgen_recon.pointcloud.neighbour import (
    best_sources,
    first_sources,
    other_views,
    require_baseline,
)
from fvgen_recon.pointcloud.sweep import relate_views
from fvgen_recon.types import Cameras

_NUM_PLANES = 128
_NUM_SOURCES = 2
_MATCHING = Matching(windows=(5,), best=1, small_penalty=0.1, large_penalty=0.6)
_NEAREST = 2.0  # the nearest depth tried is the baseline over this
_MIN_MATCHES = 24
_MIN_FRACTION = 0.03
_QUANTILES = (0.02, 0.98)
_MATCHED = 0.15  # a view of which so much is matched has shown how near it comes
_MOST_PROJECTED = 2**24  # points times views at once, some 50 bytes each


def plane_depths(span: Float[Tensor, "V 2"], count: int) -> Float[Tensor, "V D 1 1"]:
    """Return inverse depths spaced evenly over each view's span, from far to near."""
    steps = torch.linspace(0, 1, count, dtype=span.dtype, device=span.device)
    return (span[:, :1] + (span[:, 1:] - span[:, :1]) * steps)[..., None, None]


def find_depth_span(images: Float[Tensor, "V 3 H W"], cameras: Cameras) -> Float[Tensor, "V 2"]:
    """Find the span of inverse depths of each view, as `find_matched_span` does."""
    return find_matched_span(images, cameras)[0]


def widen_near(span: Float[Tensor, "V 2"], matched: Float[Tensor, "V"]) -> Float[Tensor, "V 2"]:
    """Let the near end come up to half as near again where little of a view was matched.

    What stands before all that two views see has no match that would tell.
    """
    lack = ((_MATCHED - matched) / _MATCHED).clamp(0, 1)
    return torch.stack([span[:, 0], span[:, 1] * (1 + 0.5 * lack)], dim=1)


def find_matched_span(
    images: Float[Tensor, "V 3 H W"], cameras: Cameras
) -> tuple[Float[Tensor, "V 2"], Float[Tensor, "V"]]:
    """Find the span of inverse depths of each view, and the share of it that was matched.

    A wide sweep from infinity to half a baseline, at small size, keeps matches that two views
    agree on; a second sweep over what they span sharpens it.

    Args:
        images: Small photos (some hundred pixels a side).
        cameras: Their cameras.

    Returns:
        Far and near end, in inverse world units, with a margin, positive; and the share of each
        view's pixels whose matches agree.

    Raises:
        InputError: Fewer than two views came, all stand at one place or nothing matches.
    """
    distance = require_baseline(cameras)
    sources, shortest = first_sources(cameras, distance, _NUM_SOURCES)
    near = _NEAREST / torch.where(shortest.isfinite(), shortest, distance.amax())
    span = torch.stack([near * 1e-3, near], dim=1)
    matched = torch.zeros_like(near)
    for _ in range(2):
        inverse_depth, reliable = _sweep(images, cameras, sources, span)
        least = max(_MIN_MATCHES, _MIN_FRACTION * reliable.numel())
        if int(reliable.sum()) < least:
            raise InputError(
                "The input views show nothing in common that could be matched: choose views that "
                "overlap more, and check that the poses belong to these photos."
            )
        matched = reliable.flatten(1).float().mean(dim=1)
        span, middle = _span_of_matches(inverse_depth, reliable, cameras, span)
        sources = best_sources(cameras, middle, _NUM_SOURCES)
    return span, matched


def _sweep(images: Tensor, cameras: Cameras, sources: Tensor, span: Tensor) -> tuple:
    """Return inverse depths (V H W) and where they can be relied on."""
    planes = plane_depths(span, _NUM_PLANES)
    found = find_labels(images, relate_views(cameras, sources), planes, _MATCHING)
    step = (span[:, 1] - span[:, 0])[:, None, None] / (_NUM_PLANES - 1)
    inverse_depth = span[:, :1, None] + found.label * step
    others = other_views(len(cameras), inverse_depth)
    chunks = view_chunks(others, inverse_depth)
    close = torch.cat([_agrees(inverse_depth, cameras, others, views) for views in chunks])
    inner = (found.label > 0.5) & (found.label < _NUM_PLANES - 1.5)
    return inverse_depth, close & (found.score > 0.6) & inner


def _agrees(
    inverse_depth: Float[Tensor, "V H W"],
    cameras: Cameras,
    others: Int[Tensor, "V S"],
    views: slice,
) -> Bool[Tensor, "R H W"]:
    """Return where some other view has about the same depth."""
    found = compare_depth(inverse_depth, cameras, others, views)
    close = found.seen & (found.error < 1.0) & (found.relative.abs() < 0.15)
    return close.any(dim=1)


def _span_of_matches(
    inverse_depth: Float[Tensor, "V H W"],
    reliable: Bool[Tensor, "V H W"],
    cameras: Cameras,
    span: Float[Tensor, "V 2"],
) -> tuple[Float[Tensor, "V 2"], Float[Tensor, "V 3"]]:
    """Span of inverse depth of all reliable points that each view sees, and its quartiles."""
    points, _ = unproject_depth(1 / inverse_depth, cameras)
    points, own = points[reliable], inverse_depth[reliable]
    limit = torch.tensor([cameras.width, cameras.height], device=own.device)
    step = (span[:, 1] - span[:, 0]) / (_NUM_PLANES - 1)
    ends, quartiles = [], []
    at = torch.tensor([*_QUANTILES, 0.25, 0.5, 0.75], dtype=own.dtype, device=own.device)
    count = max(1, _MOST_PROJECTED // len(points))
    for start in range(0, len(cameras), count):
        uv, z = project_points(points, cameras[start : start + count])
        seen = (z > 0) & ((uv >= 0) & (uv <= limit)).all(dim=-1)
        for depth, mask in zip(z, seen, strict=True):
            # A view that sees no match of the others borrows their depths.
            known = int(mask.sum()) >= _MIN_MATCHES
            found = torch.quantile(1 / depth[mask] if known else own, at)
            ends.append(found[:2])
            quartiles.append(found[2:])
    far, near = torch.stack(ends).unbind(dim=1)
    margin = 0.15 * (near - far) + 1.5 * step
    # What lies far behind has few matches: the far end moves out further.
    far = torch.maximum(torch.minimum(far - margin, 0.7 * far), 0.02 * near)
    return torch.stack([far, near + margin], dim=1), torch.stack(quartiles)
