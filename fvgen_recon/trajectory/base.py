"""The seam for camera paths."""

from collections.abc import Callable
from typing import Protocol, runtime_checkable

from fvgen_recon.types import Cameras, Scene, Trajectory

SupportFunction = Callable[[Cameras], float]
"""Fraction of a single camera's pixels that known geometry covers; passed in by the caller so that
planners need not know how support is measured."""


@runtime_checkable
class TrajectoryPlanner(Protocol):
    """Plans clips of camera poses from the chosen input cameras alone."""

    def plan(
        self, scene: Scene, num_frames: int, support: SupportFunction
    ) -> tuple[Trajectory, ...]:
        """Return clips of exactly `num_frames` cameras, usually with input views at both ends.

        Raises:
            InputError: The scene has too few views for this planner.
        """
        ...
