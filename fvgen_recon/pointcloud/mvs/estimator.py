"""Depth by the stereo network, as a point-cloud source.

The network errs in other places at other image sizes: what it compares and how much of a photo it
looks at are counted in pixels. So it looks at several sizes and keeps, in every pixel, the depth
that it is surest of.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from fvgen_recon.pointcloud.depth_map import DepthMaps, lift_depth, reduce_scene
from fvgen_recon.pointcloud.depth_range import find_matched_span, plane_depths, widen_near
from fvgen_recon.pointcloud.fill import fill_untrusted
from fvgen_recon.pointcloud.mvs.checkpoint import SHIPPED, keep_mvs
from fvgen_recon.pointcloud.mvs.network import SIZE_STEP, MvsNetwork
from fvgen_recon.pointcloud.neighbour import best_sources
from fvgen_recon.types import Cameras, PointCloud, Scene

_ENLARGED = 1.6
"""How much photos may be enlarged: there the depths of the validation scenes were still better."""
_Maps = tuple[Float[Tensor, "V _ _"], Float[Tensor, "V _ _"]]
"""Inverse depth and confidence."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LearnedStereo:
    """Multi-view stereo with the compact network, a drop-in for the plane sweep."""

    weights: Path = SHIPPED
    """Folder of the network (config.json and weights.safetensors)."""
    long_sides: tuple[int, ...] = (224, 320, 400)
    """Longer sides of the working images in pixels. Smaller photos are enlarged, a little: each
    size costs the time of its pixels."""
    num_sources: int = 4
    """Most source views compared with each view."""
    coarse_side: int = 112
    """Longer side of the images in which the depth range is sought."""
    chunk: int = 4
    """Views matched at a time, which bounds the memory."""
    fill: bool = False
    """Replace depths below 0.5 by trusted neighbours, as the plane sweep does, instead of keeping
    what the network made of the rest of the view."""

    def estimate(self, scene: Scene) -> PointCloud:
        """Return one point for every pixel of every view.

        Raises:
            InputError: Fewer than two views came, or they do not overlap.
            WeightsError: The weights are missing or damaged.
        """
        return lift_depth(scene, self.estimate_depth(scene))

    @torch.no_grad()
    def estimate_depth(self, scene: Scene) -> DepthMaps:
        """Return depth and confidence of every pixel of every view, at image resolution.

        Raises:
            InputError: Fewer than two views came, or they do not overlap.
            WeightsError: The weights are missing or damaged.
        """
        span = widen_near(*find_matched_span(*reduce_scene(scene, self.coarse_side)))
        found = [self._look(scene, side, span) for side in self._sides(scene)]
        inverse_depth, confidence = _surest(found)
        size = (scene.cameras.height, scene.cameras.width)
        return DepthMaps(
            depth=1 / _at_size(inverse_depth, size), confidence=_at_size(confidence, size)
        )

    def _sides(self, scene: Scene) -> tuple[int, ...]:
        """Return the sizes to look at, ascending; what a photo is too small for is one of them."""
        largest = round(_ENLARGED * max(scene.cameras.height, scene.cameras.width))
        return tuple(sorted({min(side, largest) for side in self.long_sides}))

    def _look(self, scene: Scene, long_side: int, span: Float[Tensor, "V 2"]) -> _Maps:
        """Return inverse depth and confidence at one size of the photos."""
        network = keep_mvs(self.weights, str(scene.images.device))
        images, cameras = _resize_scene(scene, long_side)
        inverse_depth, confidence = apply_network(
            network, images, cameras, span, num_sources=self.num_sources, chunk=self.chunk
        )
        if self.fill:
            inverse_depth, confidence = fill_untrusted(inverse_depth, confidence, images)
        return inverse_depth, confidence


def _resize_scene(scene: Scene, long_side: int) -> tuple[Float[Tensor, "V 3 H W"], Cameras]:
    """Return photos and cameras with a longer side of `long_side`, enlarged where smaller."""
    height, width = scene.cameras.height, scene.cameras.width
    scale = long_side / max(height, width)
    if scale <= 1:
        return reduce_scene(scene, long_side)
    size = (round(height * scale), round(width * scale))
    images = F.interpolate(scene.images, size, mode="bicubic").clamp(0, 1)
    return images, scene.cameras.resize(*size)


def _surest(found: Sequence[_Maps]) -> _Maps:
    """Return what is surest in every pixel, at the size of the last and largest maps."""
    best_depth, best = found[-1]
    for inverse_depth, confidence in found[:-1]:
        size = (best.shape[-2], best.shape[-1])
        depth, sure = _at_size(inverse_depth, size), _at_size(confidence, size)
        best_depth = torch.where(sure > best, depth, best_depth)
        best = torch.maximum(best, sure)
    return best_depth, best


def _at_size(maps: Float[Tensor, "V h w"], size: tuple[int, int]) -> Float[Tensor, "V H W"]:
    return F.interpolate(maps[:, None], size, mode="nearest-exact")[:, 0]


def apply_network(
    network: MvsNetwork,
    images: Float[Tensor, "V 3 H W"],
    cameras: Cameras,
    span: Float[Tensor, "V 2"],
    *,
    num_sources: int,
    chunk: int,
) -> tuple[Float[Tensor, "V H W"], Float[Tensor, "V H W"]]:
    """Return inverse depth and confidence of photos of any size."""
    height, width = images.shape[-2:]
    padding = (0, -width % SIZE_STEP, 0, -height % SIZE_STEP)
    padded = F.pad(images, padding, mode="replicate")
    around = Cameras(c2w=cameras.c2w, K=cameras.K, height=padded.shape[-2], width=padded.shape[-1])
    middle = plane_depths(span, 5)[:, 1:4, 0, 0]
    sources = best_sources(cameras, middle, num_sources)
    result = network(padded, around, sources, span, chunk=chunk)
    inverse_depth = torch.maximum(result.inverse_depth, 0.25 * span[:, :1, None])
    confidence = torch.sigmoid(result.confidence_logit)
    return inverse_depth[:, :height, :width], confidence[:, :height, :width]
