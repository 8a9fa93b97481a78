"""Planners that walk from input view to input view."""

import itertools
from dataclasses import dataclass

import torch

from fvgen_recon.errors import InputError
from fvgen_recon.trajectory.base import SupportFunction
from fvgen_recon.trajectory.order import visit_order
from fvgen_recon.trajectory.pose import move_between
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


def move_cameras(first: Cameras, second: Cameras, num_frames: int) -> Cameras:
    """Return evenly spaced cameras from one camera to another, both included.

    Poses follow the even screw motion, intrinsics are interpolated linearly.
    """
    fraction = torch.linspace(0, 1, num_frames, dtype=torch.float64, device=first.K.device)
    K = torch.lerp(first.K.double(), second.K.double(), fraction[:, None, None])
    return Cameras(
        c2w=move_between(first.c2w, second.c2w, fraction),
        K=K.to(first.K.dtype),
        height=first.height,
        width=first.width,
    )


def join_cameras(rows: list[Cameras]) -> Cameras:
    """Join rows of cameras whose ends coincide."""
    return Cameras(
        c2w=torch.cat([rows[0].c2w, *(row.c2w[1:] for row in rows[1:])]),
        K=torch.cat([rows[0].K, *(row.K[1:] for row in rows[1:])]),
        height=rows[0].height,
        width=rows[0].width,
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
        pairs = itertools.pairwise(ordered)
        path = join_cameras([move_cameras(a, b, num_frames) for a, b in pairs])
        return cut_into_clips(path, order, num_frames)
