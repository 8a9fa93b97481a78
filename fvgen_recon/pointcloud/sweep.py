"""Plane sweep: how well does each depth explain the neighbouring photos?

A pixel x (homogeneous, in the reference view) at inverse depth w appears in a source view at
A x + w b with A = K_s R K_r^-1 and b = K_s t (R, t: reference camera to source camera). Photos
are compared by zero-mean normalised cross-correlation (ZNCC) in square windows, which does not
change with exposure.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from fvgen_recon.geometry.projection import inverse_intrinsics, pixel_centres
from fvgen_recon.types import Cameras

_VARIANCE_FLOOR = 1e-4  # of the order of a photo's noise: keeps flat windows from matching
_CHUNK_CPU = 2**20
_CHUNK_CUDA = 2**26


@dataclass(frozen=True, kw_only=True, slots=True)
class ViewPairs:
    """Reference views with their source views: where reference pixels land in the sources."""

    sources: Int[Tensor, "V S"]
    """Indices of the source views of each reference view."""
    infinity: Float[Tensor, "V S 3 3"]
    """Maps homogeneous reference pixels to homogeneous source pixels at infinite depth."""
    epipole: Float[Tensor, "V S 3"]
    """Added to that, times the inverse depth."""

    def __getitem__(self, views: slice) -> "ViewPairs":
        """Return the rows of some reference views."""
        return ViewPairs(
            sources=self.sources[views], infinity=self.infinity[views], epipole=self.epipole[views]
        )


def relate_views(
    cameras: Cameras, sources: Int[Tensor, "R S"], views: slice = slice(None)
) -> ViewPairs:
    """Prepare the projection from some views to their sources.

    Args:
        cameras: All cameras.
        sources: Indices of the source views, one row for each of `views`.
        views: The reference views; all of them by default.
    """
    own = cameras[views]
    to_source = cameras.w2c[sources] @ own.c2w[:, None]
    K_inverse = inverse_intrinsics(own.K)[:, None]
    K_source = cameras.K[sources]
    return ViewPairs(
        sources=sources,
        infinity=K_source @ to_source[..., :3, :3] @ K_inverse,
        epipole=(K_source @ to_source[..., :3, 3:])[..., 0],
    )


def project_inverse_depth(
    pairs: ViewPairs, inverse_depth: Float[Tensor, "V D H2 W2"], size: tuple[int, int]
) -> tuple[Float[Tensor, "V S D H W 2"], Float[Tensor, "V S D H W"]]:
    """Where reference pixels at given inverse depths land in the source views.

    Args:
        pairs: Reference and source views.
        inverse_depth: One or more hypotheses for each pixel; H2 and W2 are 1 for planes.
        size: Height and width of the views.

    Returns:
        Image points in pixels and the depth in the source view relative to the depth in the
        reference view (not positive behind the source camera).
    """
    grid = pixel_centres(*size, inverse_depth)
    rays = torch.cat([grid, torch.ones_like(grid[..., :1])], dim=-1)
    base = torch.einsum("vsij,hwj->vshwi", pairs.infinity, rays)[:, :, None]
    point = base + inverse_depth[:, None, ..., None] * pairs.epipole[:, :, None, None, None]
    z = point[..., 2]
    return point[..., :2] / torch.where(z > 1e-6, z, torch.full_like(z, 1e-6))[..., None], z


def sample_views(
    values: Float[Tensor, "V C H W"],
    views: Int[Tensor, "P"],
    uv: Float[Tensor, "P H2 W2 2"],
    mode: str = "bilinear",
) -> Float[Tensor, "P C H2 W2"]:
    """Read maps of the views named at image points in pixels (edges repeat outside)."""
    return sample_maps(values[views], uv, mode)


def sample_maps(
    values: Float[Tensor, "P C H W"], uv: Float[Tensor, "P H2 W2 2"], mode: str = "bilinear"
) -> Float[Tensor, "P C H2 W2"]:
    """Read each map at its own image points in pixels (edges repeat outside)."""
    # Filled in place: a copy from the host, as `scale[1] = ...` makes one, would make a GPU wait.
    scale = uv.new_full((2,), 2 / values.shape[-1])
    scale[1:] = 2 / values.shape[-2]
    # Far outside points would overflow the sampler's integer coordinates.
    grid = (uv * scale - 1).clamp(-3, 3)
    return F.grid_sample(values, grid, mode=mode, padding_mode="border", align_corners=False)


def inside_image(
    uv: Float[Tensor, "*B 2"], z: Float[Tensor, "*B"], size: tuple[int, int]
) -> Bool[Tensor, "*B"]:
    """Whether image points lie in the image and in front of the camera."""
    x, y = uv.unbind(-1)
    return (z > 1e-6) & (x >= 0) & (y >= 0) & (x <= size[1]) & (y <= size[0])


def _window_sum(values: Tensor, window: int, axis: int) -> Tensor:
    """Sum over a centred window along one axis, zeros outside, by doubling: log(window) sums."""
    half, length = window // 2, values.shape[axis]
    padding = (half, half) if axis == -1 else (0, 0, half, half)
    block, width, start, total = F.pad(values, padding), 1, 0, None
    while width <= window:
        if window & width:
            part = block.narrow(axis, start, length)
            total = part if total is None else total + part
            start += width
        kept = block.shape[axis] - width
        if 2 * width <= window:
            block = block.narrow(axis, 0, kept) + block.narrow(axis, width, kept)
        width *= 2
    assert total is not None
    return total


def box_mean(values: Float[Tensor, "*B H W"], window: int) -> Float[Tensor, "*B H W"]:
    """Mean over a centred window of odd side; at the border over the part inside the image."""
    total = _window_sum(_window_sum(values, window, -1), window, -2)
    ones = values.new_ones(values.shape[-2:])
    return total / _window_sum(_window_sum(ones, window, -1), window, -2)


def correlate(
    reference: Float[Tensor, "V 1 1 H W"], warped: Float[Tensor, "V S D H W"], window: int
) -> Float[Tensor, "V S D H W"]:
    """ZNCC of a reference photo with warped sources in square windows, in [-1, 1]."""
    mean_r, mean_w = box_mean(reference, window), box_mean(warped, window)
    var_r = box_mean(reference.square(), window) - mean_r.square()
    var_w = box_mean(warped.square(), window) - mean_w.square()
    covariance = box_mean(reference * warped, window) - mean_r * mean_w
    scale = (var_r.clamp_min(0) + _VARIANCE_FLOOR) * (var_w.clamp_min(0) + _VARIANCE_FLOOR)
    return (covariance * scale.rsqrt()).clamp(-1, 1)


def best_mean(
    scores: Float[Tensor, "V S D H W"], seen: Bool[Tensor, "V S D H W"], best: int
) -> Float[Tensor, "V D H W"]:
    """Mean of the `best` highest scores among the sources that see the point; 0 where none does.

    An occluded source scores low at the true depth: leaving the worst ones out keeps them from
    voting.
    """
    best = min(best, scores.shape[1])
    masked = scores.masked_fill(~seen, -2.0)
    if best == 1:  # much faster than sorting
        return torch.where(seen.any(dim=1), masked.amax(dim=1), 0.0)
    top = masked if best == scores.shape[1] else masked.topk(best, dim=1).values
    counted = top > -1.5
    return (top * counted).sum(1) / counted.sum(1).clamp_min(1)


def match_scores(
    grey: Float[Tensor, "V H W"],
    pairs: ViewPairs,
    inverse_depth: Float[Tensor, "R D H2 W2"],
    *,
    windows: tuple[int, ...],
    best: int,
    views: slice = slice(None),
) -> Float[Tensor, "R D H W"]:
    """Score every hypothesis of every pixel by how well the source photos agree, in [-1, 1].

    Args:
        grey: Grey photos of all views in [0, 1].
        pairs: Reference and source views; row r has the r-th of `views` as its reference.
        inverse_depth: Hypotheses; H2 and W2 are 1 (planes) or the size of the photos.
        windows: Odd window sides in pixels; the scores of the sizes are averaged.
        best: How many best-matching sources count.
        views: The reference views; all of them by default.
    """
    size = (grey.shape[-2], grey.shape[-1])
    per_plane = pairs.sources.numel() * grey.shape[-2] * grey.shape[-1]
    chunk = max(1, (_CHUNK_CUDA if grey.is_cuda else _CHUNK_CPU) // per_plane)
    parts = []
    for hypotheses in inverse_depth.split(chunk, dim=1):
        uv, z = project_inverse_depth(pairs, hypotheses, size)
        flat = uv.reshape(-1, uv.shape[2] * size[0], size[1], 2)
        warped = sample_views(grey[:, None], pairs.sources.reshape(-1), flat)
        warped = warped.reshape(z.shape)
        reference = grey[views][:, None, None]
        scores = torch.stack([correlate(reference, warped, window) for window in windows])
        parts.append(best_mean(scores.mean(dim=0), inside_image(uv, z, size), best))
    return torch.cat(parts, dim=1)
