"""Depth by the stereo network, as a point-cloud source."""

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


@dataclass(frozen=True, kw_only=True, slots=True)
class LearnedStereo:
    """Multi-view stereo with the compact network, a drop-in for the plane sweep."""

    weights: Path = SHIPPED
    """Folder of the network (config.json and weights.safetensors)."""
    long_side: int = 320
    """Longer side of the working images in pixels; larger photos are reduced to it."""
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
        network = keep_mvs(self.weights, str(scene.images.device))
        span = widen_near(*find_matched_span(*reduce_scene(scene, self.coarse_side)))
        images, cameras = reduce_scene(scene, self.long_side)
        inverse_depth, confidence = apply_network(
            network, images, cameras, span, num_sources=self.num_sources, chunk=self.chunk
        )
        if self.fill:
            inverse_depth, confidence = fill_untrusted(inverse_depth, confidence, images)
        size = (scene.cameras.height, scene.cameras.width)
        return DepthMaps(
            depth=1 / F.interpolate(inverse_depth[:, None], size, mode="nearest-exact")[:, 0],
            confidence=F.interpolate(confidence[:, None], size, mode="nearest-exact")[:, 0],
        )


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
