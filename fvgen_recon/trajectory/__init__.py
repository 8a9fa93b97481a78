"""Posed photos to camera paths between them."""

from collections.abc import Callable
from pathlib import Path

from fvgen_recon.errors import InputError
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


def make_planner(name: str, camera_path: Path | None = None) -> TrajectoryPlanner:
    """Return a planner by name.

    Args:
        name: One of `PLANNERS`.
        camera_path: What the planner `file` follows.

    Raises:
        InputError: There is no such planner, `file` has no file, or another planner has one.
    """
    if name not in PLANNERS:
        known = ", ".join(PLANNERS)
        raise InputError(f"There is no trajectory planner `{name}`: choose one of {known}.")
    if (name == "file") != (camera_path is not None):
        raise InputError("The trajectory planner `file`, and no other, needs a camera path file.")
    if camera_path is None:
        return PLANNERS[name]()
    if not camera_path.is_file():
        raise InputError(f"The camera path {camera_path} was expected and is not there.")
    return FilePlanner(path=camera_path)
