"""Two depths of every pixel, by plane sweep and by the stereo network, and of both the surer."""

from dataclasses import dataclass, field, replace
from typing import Protocol, runtime_checkable

import torch

from fvgen_recon.pointcloud.depth_map import DepthMaps, lift_depth
from fvgen_recon.pointcloud.mvs.estimator import LearnedStereo
from fvgen_recon.pointcloud.plane_sweep import PlaneSweep
from fvgen_recon.types import PointCloud, Scene

SOURCES = ("mvs", "plane-sweep")
"""Names of the estimators whose points are the alternatives of `stereo`, in their order."""


@runtime_checkable
class DepthSource(Protocol):
    """Finds the depth of every pixel of every view."""

    def estimate_depth(self, scene: Scene) -> DepthMaps:
        """Return depth and confidence at image resolution."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class CombinedStereo:
    """At each pixel the depth that is claimed with more confidence; both claims are calibrated.

    The two fail at different places: the sweep needs texture, the network what it was trained on.
    """

    sweep: DepthSource = field(default_factory=PlaneSweep)
    """The plane sweep."""
    network: DepthSource = field(default_factory=LearnedStereo)
    """The stereo network."""

    def estimate(self, scene: Scene) -> PointCloud:
        """Return one point for every pixel of every view; both depths are its alternatives.

        Raises:
            InputError: Fewer than two views came, or they do not overlap.
            WeightsError: The weights of the network are missing or damaged.
        """
        first, second = self._both(scene)
        guesses = tuple(lift_depth(scene, maps) for maps in (first, second))
        return replace(lift_depth(scene, _surer(first, second)), alternatives=guesses)

    def estimate_depth(self, scene: Scene) -> DepthMaps:
        """Return depth and confidence of every pixel of every view, at image resolution."""
        return _surer(*self._both(scene))

    def _both(self, scene: Scene) -> tuple[DepthMaps, DepthMaps]:
        return self.network.estimate_depth(scene), self.sweep.estimate_depth(scene)


def _surer(first: DepthMaps, second: DepthMaps) -> DepthMaps:
    is_first = first.confidence >= second.confidence
    return DepthMaps(
        depth=torch.where(is_first, first.depth, second.depth),
        confidence=torch.maximum(first.confidence, second.confidence),
    )
