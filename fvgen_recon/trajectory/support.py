"""Novel poses chosen by support: as far from the input views as known geometry allows."""

import itertools
import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from fvgen_recon.geometry.rigid import look_at, normalise
from fvgen_recon.trajectory.base import SupportFunction
from fvgen_recon.trajectory.between import require_views
from fvgen_recon.trajectory.order import visit_order
from fvgen_recon.trajectory.pose import (
    join_rows,
    move_cameras,
    pose_distances,
    scene_unit,
    space_evenly,
)
from fvgen_recon.types import Anchor, Cameras, Scene, Trajectory

_MIN_CONVERGENCE = math.radians(2.0)
_PARALLEL_DISTANCE = 4.0


@dataclass(frozen=True, kw_only=True, slots=True)
class SupportPlanner:
    """Leaves an input view, passes a novel pose beside the way and ends at the next view.

    Candidates stand around the middle of the way between two neighbours and look at the point that
    the middle looks at. Of those whose fraction of uncovered pixels stays under `max_holes` the one
    farthest from all input views is taken, as guidedvd-3dgs (Zhong et al. 2025) chooses its poses.
    Where none stays under the bound, the one with the fewest uncovered pixels is taken.
    """

    max_holes: float = 0.25
    """Greatest fraction of a novel view's pixels that may be uncovered."""
    yaw_deg: tuple[float, ...] = (-20.0, -10.0, 0.0, 10.0, 20.0)
    """Turns of the candidates around the point looked at, to the side, in degrees."""
    pitch_deg: tuple[float, ...] = (-15.0, 0.0, 15.0)
    """Turns upwards, in degrees."""
    distance_scale: tuple[float, ...] = (0.8, 1.0, 1.25)
    """Distances to the point looked at, as multiples of the middle's."""

    def plan(
        self, scene: Scene, num_frames: int, support: SupportFunction
    ) -> tuple[Trajectory, ...]:
        """Return one clip for each pair of neighbours along the visit order.

        Raises:
            InputError: There are fewer than two views or frames.
        """
        require_views(scene, num_frames)
        cameras, unit = scene.cameras, scene_unit(scene.cameras)
        clips = []
        for a, b in itertools.pairwise(visit_order(cameras)):
            candidates = self._candidates(cameras[a], cameras[b], unit)
            novel = self._choose(candidates, cameras, support, unit)
            way = join_rows([cameras[[a]], novel, cameras[[b]]])
            anchors = (Anchor(frame=0, view=a), Anchor(frame=num_frames - 1, view=b))
            path = space_evenly(way, num_frames, unit=unit)
            clips.append(Trajectory(cameras=path, anchors=anchors))
        return tuple(clips)

    def _candidates(self, first: Cameras, second: Cameras, unit: float) -> Cameras:
        """Return poses around the middle of the way between two cameras, the middle first."""
        half = torch.tensor([0.5], device=first.K.device)
        middle = move_cameras(first, second, half)
        distance = viewing_distance(first, second, unit)
        turns = itertools.product(self.yaw_deg, self.pitch_deg, self.distance_scale)
        # From the point looked at to the camera, in the camera's axes.
        offsets = torch.tensor(
            [
                [
                    scale * math.sin(math.radians(yaw)) * math.cos(math.radians(pitch)),
                    -scale * math.sin(math.radians(pitch)),
                    -scale * math.cos(math.radians(yaw)) * math.cos(math.radians(pitch)),
                ]
                for yaw, pitch, scale in turns
            ]
        ).to(middle.c2w)
        rotation = middle.c2w[0, :3, :3]
        target = middle.position[0] + distance * rotation[:, 2]
        position = target + distance * offsets @ rotation.mT
        poses = look_at(position, target.expand_as(position), -rotation[:, 1])
        return Cameras(
            c2w=torch.cat([middle.c2w, poses]),
            K=middle.K.expand(len(poses) + 1, 3, 3),
            height=middle.height,
            width=middle.width,
        )

    def _choose(
        self, candidates: Cameras, inputs: Cameras, support: SupportFunction, unit: float
    ) -> Cameras:
        """Return the most novel candidate under the bound, as a row of one."""
        holes = torch.tensor([1 - support(camera) for camera in candidates], dtype=torch.float64)
        novelty = pose_distances(candidates, inputs, unit=unit).amin(1).cpu()
        allowed = holes <= self.max_holes
        if not allowed.any():
            return candidates[[int(holes.argmin())]]
        return candidates[[int(torch.where(allowed, novelty, -torch.inf).argmax())]]


def viewing_distance(first: Cameras, second: Cameras, unit: float) -> float:
    """Return how far before two cameras lies the point that both look at.

    It is the mean distance to where the optical axes pass each other; where they are nearly
    parallel or pass each other behind a camera it is four times `unit`.
    """
    axes = torch.stack([first.direction, -second.direction], dim=-1).double()
    shift = (second.position - first.position).double()
    if _convergence(first.direction, second.direction) < _MIN_CONVERGENCE:
        return _PARALLEL_DISTANCE * unit
    along = torch.linalg.lstsq(axes, shift[:, None]).solution[:, 0]
    return float(along.mean()) if bool((along > 0).all()) else _PARALLEL_DISTANCE * unit


def _convergence(first: Float[Tensor, "3"], second: Float[Tensor, "3"]) -> float:
    """Return the acute angle between two axes in radians."""
    sine = torch.linalg.cross(normalise(first.double()), normalise(second.double())).norm()
    return float(torch.arcsin(sine.clamp(max=1.0)))
