"""Planners that walk from input view to input view."""

import itertools
from dataclasses import dataclass

import torch

from fvgen_recon.errors import InputError
from fvgen_recon.trajectory.base import SupportFunction
from fvgen_recon.trajectory.order import visit_order
from fvgen_recon.trajectory.pose import join_rows, move_cameras
from fvgen_recon.trajectory.teacher import interpolate_views
from fvgen_recon.types import Anchor, Cameras, Scene, Trajectory


def require_views(scene: Scene, num_frames: int) -> None:
    """Check that clips between views can be planned.

    Raises:
        InputError: There are fewer than two views or frames.
    """
    if len(scene) < 2:
        raise InputError(
            f"Camera paths between input views need at least two views: {len(scene)} came. Choose "
            f"more views, or give a camera path file with the planner `file`."
        )
    if num_frames < 2:
        raise InputError(f"A clip needs at least two frames: {num_frames} came.")


def cut_into_clips(
    path: Cameras, order: tuple[int, ...], num_frames: int
) -> tuple[Trajectory, ...]:
    """Cut a path through views, every (T - 1)th camera of it one, into clips that share ends."""
    step = num_frames - 1
    return tuple(
        Trajectory(
            cameras=path[i * step : i * step + num_frames],
            anchors=(Anchor(frame=0, view=a), Anchor(frame=step, view=b)),
        )
        for i, (a, b) in enumerate(itertools.pairwise(order))
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class InterpolatePlanner:
    """The teacher's own interpolation between views, uneven spacing included."""

    def plan(
        self, scene: Scene, num_frames: int, support: SupportFunction
    ) -> tuple[Trajectory, ...]:
        """Return one clip for each pair of neighbours along the visit order.

        Raises:
            InputError: There are fewer than two views or frames.
        """
        require_views(scene, num_frames)
        order = visit_order(scene.cameras)
        path = interpolate_views(scene.cameras[list(order)], num_frames)
        return cut_into_clips(path, order, num_frames)


@dataclass(frozen=True, kw_only=True, slots=True)
class EvenPlanner:
    """Even spacing: slerp of the rotation, the position on the arc that belongs to it."""

    def plan(
        self, scene: Scene, num_frames: int, support: SupportFunction
    ) -> tuple[Trajectory, ...]:
        """Return one clip for each pair of neighbours along the visit order.

        Raises:
            InputError: There are fewer than two views or frames.
        """
        require_views(scene, num_frames)
        order = visit_order(scene.cameras)
        ordered = scene.cameras[list(order)]
        fraction = torch.linspace(0, 1, num_frames, dtype=torch.float64, device=ordered.K.device)
        pairs = itertools.pairwise(ordered)
        rows = [move_cameras(a, b, fraction)[:-1] for a, b in pairs]
        path = join_rows([*rows, ordered[-1:]])
        return cut_into_clips(path, order, num_frames)
