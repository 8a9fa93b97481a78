"""Posed photos to camera paths between them."""

from collections.abc import Callable

from fvgen_recon.trajectory.base import TrajectoryPlanner
from fvgen_recon.trajectory.between import EvenPlanner, InterpolatePlanner
from fvgen_recon.trajectory.camera_file import FilePlanner
from fvgen_recon.trajectory.support import SupportPlanner

PLANNERS: dict[str, Callable[[], TrajectoryPlanner]] = {
    "even": EvenPlanner,
    "interpolate": InterpolatePlanner,
    "support": SupportPlanner,
    "file": FilePlanner,
}
"""Planners by name."""

__all__ = ["PLANNERS"]
