"""Two depths of every pixel, by the stereo network and by plane sweep, and which of them counts."""

from dataclasses import dataclass, field, replace
from typing import Protocol, runtime_checkable

import torch

from fvgen_recon.pointcloud.depth_map import DepthMaps, lift_depth
from fvgen_recon.pointcloud.mvs.estimator import LearnedStereo
from fvgen_recon.pointcloud.plane_sweep import PlaneSweep
from fvgen_recon.types import PointCloud, Scene

SOURCES = ("mvs", "plane-sweep")
"""Names of the estimators whose points are the alternatives of `stereo`, in their order."""
_TRUSTED = 0.5
_EPS = 1e-4
_SURER = 2.0
"""How much surer the sweep must be, in logits: it trusts wrong depths more often."""


@runtime_checkable
class DepthSource(Protocol):
    """Finds the depth of every pixel of every view."""

    def estimate_depth(self, scene: Scene) -> DepthMaps:
        """Return depth and confidence at image resolution."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class CombinedStereo:
    """The network's depth, and the sweep's where that is trusted and by far surer.

    The two fail at different places: the sweep needs texture, the network what it was trained on.
    Where neither is trusted the network goes on from what was matched elsewhere, and the sweep
    would only repeat its nearest trusted depth.
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
        return replace(lift_depth(scene, _choose(first, second)), alternatives=guesses)

    def estimate_depth(self, scene: Scene) -> DepthMaps:
        """Return depth and confidence of every pixel of every view, at image resolution."""
        return _choose(*self._both(scene))

    def _both(self, scene: Scene) -> tuple[DepthMaps, DepthMaps]:
        return self.network.estimate_depth(scene), self.sweep.estimate_depth(scene)


def _choose(network: DepthMaps, sweep: DepthMaps) -> DepthMaps:
    lead = torch.logit(sweep.confidence, _EPS) - torch.logit(network.confidence, _EPS)
    is_swept = (sweep.confidence >= _TRUSTED) & (lead > _SURER)
    return DepthMaps(
        depth=torch.where(is_swept, sweep.depth, network.depth),
        confidence=torch.where(is_swept, sweep.confidence, network.confidence),
    )
