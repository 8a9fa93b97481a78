"""How much brighter one input photo is than the others, from surfaces that several of them show.

Cameras that choose their exposure and white balance themselves see one wall in two brightnesses. A
splat would explain that by shapes. So each photo gets one factor a channel: the splat has the
brightness of the mean photo, and a render that of the photos around it.
"""

from typing import Any

import torch
from jaxtyping import Float
from nerfstudio.cameras.cameras import Cameras as NerfCameras
from torch import Tensor, nn

from fvgen_nerfstudio.depth import DepthTargets, collect_depth
from fvgen_recon.geometry.projection import project_points
from fvgen_recon.types import Cameras, PointCloud

_TRUSTED = 0.5
"""Confidence from which a point is compared."""
_SAME_DEPTH = 0.02
"""Relative difference of depth up to which two views show the same surface."""
_DARK, _BRIGHT = 0.05, 0.95
"""Values outside say nothing about a factor: noise and clipping."""
_PATCH = 64.0
"""Neighbouring matches err alike: so many count as one."""
_PRIOR = 0.3
"""Standard deviation of the logarithm of a factor before anything was seen."""
_OTHER = 0.08
"""Standard deviation of what else makes photos differ: shine, shade, tone mapping."""
_FEWEST = 100
"""Matches below which two views are not compared."""
_POWER = 4.0
"""Power of the distance by which a photo's brightness counts the less for a pose."""


class Exposure(nn.Module):
    """Brightness of renders: of a photo its own, elsewhere that of the photos around.

    Cameras choose their exposure by what they see, and neighbours see about the same. Logarithms
    are interpolated by inverse distance (Shepard, "A two-dimensional interpolation function for
    irregularly-spaced data", 1968), so that far from all photos it is their mean.

    Args:
        num_photos: Number of input photos.
        metadata: The data parser's; holds `photo_brightness` and `photo_position` where known.
    """

    log_brightness: Float[Tensor, "V 3"]
    """Logarithm of each photo's brightness over that of the splat."""
    position: Float[Tensor, "V 3"]
    """Where each photo was taken."""

    def __init__(self, num_photos: int, metadata: dict[str, Any]) -> None:
        super().__init__()
        brightness = metadata.get("photo_brightness", torch.ones(num_photos, 3))
        position = metadata.get("photo_position", torch.zeros(num_photos, 3))
        self.register_buffer("log_brightness", brightness.float().log())
        self.register_buffer("position", position.float().clone())

    def forward(
        self, rgb: Float[Tensor, "1 H W 3"], camera: NerfCameras
    ) -> Float[Tensor, "1 H W 3"]:
        """Return a render in the brightness of its photo, or of the photos around.

        In training, generated views are made of photos of one brightness: they stay as they are.
        """
        view = (camera.metadata or {}).get("cam_idx")
        if not self.training:
            return rgb * self.at(camera.camera_to_worlds[0, :3, 3])
        return rgb if view is None else rgb * self.log_brightness[view].exp()

    def at(self, position: Float[Tensor, "3"]) -> Float[Tensor, "3"]:
        """Return the brightness that a photo would have from a place."""
        squared = (self.position - position.to(self.position)).square().sum(-1)
        nearness = (squared + 1e-8).pow(-_POWER / 2)
        weight = nearness / nearness.sum()
        return (weight @ self.log_brightness).exp()


def estimate_gains(
    images: Float[Tensor, "V 3 H W"], cameras: Cameras, cloud: PointCloud
) -> Float[Tensor, "V 3"]:
    """Return the factors that bring photos to one brightness; their geometric mean is 1.

    The median of the log ratio of matched colours is compared pair by pair. A pair counts by the
    number of its matches over their spread, and by how well the two photos' values go together: the
    colours of wrong matches do not. Little evidence leaves a factor near 1, and so do differences
    as small as what other causes give (positive-part shrinkage of James and Stein, 1961).

    Args:
        images: The input photos in [0, 1], at the size that the points were lifted at.
        cameras: Their cameras.
        cloud: Points that know the view that they were lifted from.
    """
    num_views = len(images)
    trusted = cloud[cloud.confidence >= _TRUSTED]
    depth = collect_depth(trusted, cameras)
    precision = torch.zeros(3, num_views, num_views, dtype=torch.float64)
    shift = torch.zeros(3, num_views, dtype=torch.float64)
    for first in range(num_views):
        own = trusted[trusted.view == first]
        for second in range(num_views):
            if first == second or len(own) < _FEWEST:
                continue
            pair = _matched_colours(images, cameras, depth, own, second)
            if pair.shape[-1] < _FEWEST:
                continue
            ratio, weight = _compare(pair)
            precision[:, first, second] -= weight
            precision[:, second, first] -= weight
            precision[:, first, first] += weight
            precision[:, second, second] += weight
            shift[:, first] += weight * ratio
            shift[:, second] -= weight * ratio
    precision += torch.eye(num_views, dtype=torch.float64) / _PRIOR**2
    log_gain = torch.linalg.solve(precision, shift[..., None])[..., 0]
    log_gain -= log_gain.mean(1, keepdim=True)
    kept = 1 - _OTHER**2 / log_gain.square().mean().clamp_min(_OTHER**2)
    return (kept * log_gain).exp().mT.float()


def apply_gains(
    images: Float[Tensor, "V 3 H W"], gains: Float[Tensor, "V 3"]
) -> Float[Tensor, "V 3 H W"]:
    """Return photos brought to one brightness; what was clipped stays at the edge of [0, 1]."""
    return (images * gains.to(images)[..., None, None]).clamp_(0, 1)


def _matched_colours(
    images: Tensor, cameras: Cameras, depth: DepthTargets, own: PointCloud, second: int
) -> Float[Tensor, "2 3 N"]:
    """Return the colours of a view's points, and those that another view has at their places."""
    height, width = images.shape[-2:]
    pixels, z = project_points(own.xyz, cameras[second])
    column, row = pixels.floor().long().unbind(-1)
    inside = (column >= 0) & (column < width) & (row >= 0) & (row < height) & (z > 0)
    column, row, z, here = column[inside], row[inside], z[inside], own.rgb[inside].mT
    there = images[second][:, row, column]
    same = (depth.depth[second, 0, row, column] / z - 1).abs() < _SAME_DEPTH
    same &= depth.weight[second, 0, row, column] > 0
    both = torch.stack([here, there])
    usable = (both.amin((0, 1)) > _DARK) & (both.amax((0, 1)) < _BRIGHT)
    return both[..., same & usable]


def _compare(pair: Float[Tensor, "2 3 N"]) -> tuple[Tensor, Tensor]:
    """Return log(second / first) by channel, `3`, and how far it may be trusted, `3`."""
    logs = pair.double().log()
    ratio = logs[1] - logs[0]
    median = ratio.median(dim=1).values
    spread = 1.4826 * (ratio - median[:, None]).abs().median(dim=1).values
    centred = logs - logs.mean(dim=-1, keepdim=True)
    energy = centred.square().sum(-1).prod(0).sqrt()
    together = (centred.prod(0).sum(-1) / energy.clamp_min(1e-12)).clamp_min(0)
    weight = together**4 * (pair.shape[-1] / _PATCH) / (spread**2 + 1e-3)
    return median.cpu(), weight.cpu()
