"""Posed photos to camera paths between them."""

from collections.abc import Callable

from fvgen_recon.trajectory.base import TrajectoryPlanner
from fvgen_recon.trajectory.between import EvenPlanner, InterpolatePlanner

PLANNERS: dict[str, Callable[[], TrajectoryPlanner]] = {
    "even": EvenPlanner,
    "interpolate": InterpolatePlanner,
}
"""Planners by name."""

__all__ = ["PLANNERS"]
