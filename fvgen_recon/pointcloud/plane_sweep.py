"""Depth by plane sweep: multi-view stereo that needs no weights."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from fvgen_recon.pointcloud.confidence import Evidence, estimate_confidence, gather_evidence
from fvgen_recon.pointcloud.depth_map import DepthMaps, lift_depth, reduce_scene
from fvgen_recon.pointcloud.depth_range import find_depth_span, plane_depths
from fvgen_recon.pointcloud.fill import fill_untrusted
from fvgen_recon.pointcloud.label import Matching, find_labels
from fvgen_recon.pointcloud.neighbour import best_sources
from fvgen_recon.pointcloud.refine import base_surface, offset_hypotheses
from fvgen_recon.pointcloud.sweep import ViewPairs, relate_views
from fvgen_recon.types import Cameras, PointCloud, Scene


@dataclass(frozen=True, kw_only=True, slots=True)
class PlaneSweep:
    """Plane-sweep stereo over the input views, with semi-global aggregation."""

    long_side: int = 320
    """Longer side of the working images in pixels; larger photos are reduced to it."""
    num_planes: int = 64
    """Depth hypotheses, evenly spaced in inverse depth."""
    num_sources: int = 4
    """Most source views compared with each view."""
    best_share: float = 0.5
    """Share of the sources, the best-matching ones, that count at each depth; at least one."""
    windows: tuple[int, ...] = (5, 11)
    """Sides of the correlation windows in working pixels."""
    small_penalty: float = 0.1
    """Price of a depth change by one plane between neighbouring pixels."""
    large_penalty: float = 1.6
    """Price of any larger depth change where the colour stays the same."""
    num_rounds: int = 3
    """Further sweeps along the surface found."""
    num_offsets: int = 17
    """Hypotheses of a further sweep."""
    shrink: float = 0.5
    """Spacing of each further sweep over that of the one before."""
    coarse_side: int = 112
    """Longer side of the images in which the depth range is sought."""

    def estimate(self, scene: Scene) -> PointCloud:
        """Return one point for every pixel of every view; filled ones have confidence < 0.5.

        Raises:
            InputError: Fewer than two views came, or they do not overlap.
        """
        return lift_depth(scene, self.estimate_depth(scene))

    @torch.no_grad()
    def estimate_depth(self, scene: Scene) -> DepthMaps:
        """Return depth and confidence of every pixel of every view, at image resolution.

        Raises:
            InputError: Fewer than two views came, or they do not overlap.
        """
        inverse_depth, evidence = self.find_evidence(scene)
        images, _ = reduce_scene(scene, self.long_side)
        confidence = estimate_confidence(evidence)
        filled, confidence = fill_untrusted(inverse_depth, confidence, images)
        size = (scene.cameras.height, scene.cameras.width)
        return DepthMaps(
            depth=1 / F.interpolate(filled[:, None], size, mode="nearest-exact")[:, 0],
            confidence=F.interpolate(confidence[:, None], size, mode="nearest-exact")[:, 0],
        )

    @torch.no_grad()
    def find_evidence(self, scene: Scene) -> tuple[Float[Tensor, "V H W"], Evidence]:
        """Return inverse depths at working size, none filled, with what speaks for them.

        Raises:
            InputError: Fewer than two views came, or they do not overlap.
        """
        small, small_cameras = reduce_scene(scene, self.coarse_side)
        span = find_depth_span(small, small_cameras)
        images, cameras = reduce_scene(scene, self.long_side)
        return self._match(images, cameras, span)

    def _match(
        self, images: Float[Tensor, "V 3 H W"], cameras: Cameras, span: Float[Tensor, "V 2"]
    ) -> tuple[Float[Tensor, "V H W"], Evidence]:
        """Return inverse depths with what speaks for them."""
        middle = plane_depths(span, 5)[:, 1:4, 0, 0]
        pairs = relate_views(cameras, best_sources(cameras, middle, self.num_sources))
        step = (span[:, 1] - span[:, 0]) / (self.num_planes - 1)
        planes = plane_depths(span, self.num_planes)
        inverse_depth, evidence = self._sweep(images, cameras, pairs, planes)
        for i in range(self.num_rounds):
            surface = base_surface(inverse_depth, estimate_confidence(evidence), images)
            near = offset_hypotheses(surface, step * self.shrink ** (i + 1), self.num_offsets)
            inverse_depth, evidence = self._sweep(images, cameras, pairs, near)
            inverse_depth = torch.maximum(inverse_depth, 0.5 * span[:, :1, None])
        return inverse_depth, evidence

    def _sweep(
        self,
        images: Float[Tensor, "V 3 H W"],
        cameras: Cameras,
        pairs: ViewPairs,
        hypotheses: Float[Tensor, "V D H2 W2"],
    ) -> tuple[Float[Tensor, "V H W"], Evidence]:
        """Match and aggregate the hypotheses, evenly spaced for each pixel, and pick the best."""
        best = max(1, round(pairs.sources.shape[1] * self.best_share))
        found = find_labels(
            images,
            pairs,
            hypotheses,
            Matching(
                windows=self.windows,
                best=best,
                small_penalty=self.small_penalty,
                large_penalty=self.large_penalty,
            ),
        )
        spacing = hypotheses[:, 1] - hypotheses[:, 0]
        inverse_depth = hypotheses[:, 0] + found.label * spacing
        evidence = gather_evidence(
            score=found.score,
            clarity=found.clarity,
            inverse_depth=inverse_depth,
            cameras=cameras,
        )
        return inverse_depth, evidence
