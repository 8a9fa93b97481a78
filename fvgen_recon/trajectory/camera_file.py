"""A user's own camera path, in the JSON that nerfstudio's viewer writes."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fvgen_recon.errors import InputError
from fvgen_recon.geometry.conventions import opengl_to_opencv
from fvgen_recon.io.file import read_json
from fvgen_recon.trajectory.base import SupportFunction
from fvgen_recon.trajectory.pose import join_rows, pose_distances, scene_unit, space_evenly
from fvgen_recon.types import Anchor, Cameras, Scene, Trajectory


def read_camera_path(path: Path, *, height: int, width: int) -> Cameras:
    """Read a nerfstudio camera path at an image size of one's own.

    The vertical field of view is the file's; the horizontal one follows from the image size, with
    square pixels and the principal point in the middle. Poses are in the world that the viewer
    showed: that of the trained model.

    Args:
        path: JSON with `camera_path`, a list of `camera_to_world` (OpenGL, 16 numbers by rows) and
            `fov` (vertical, degrees).
        height: Image height in pixels.
        width: Image width in pixels.

    Raises:
        InputError: The file is missing, is not such a path, or is not a perspective one.
    """
    content = read_json(path)
    if not isinstance(content, dict) or not isinstance(content.get("camera_path"), list):
        raise InputError(
            f"{path} has no list `camera_path`: export a camera path from nerfstudio's viewer."
        )
    kind = str(content.get("camera_type", "perspective"))
    if kind.lower() != "perspective":
        raise InputError(
            f"{path} holds a {kind} camera path: export it with the camera type Perspective."
        )
    rows = [_read_row(path, i, row) for i, row in enumerate(content["camera_path"])]
    if not rows:
        raise InputError(f"{path} holds no cameras: add keyframes and export it again.")
    matrices = torch.tensor([matrix for matrix, _ in rows], dtype=torch.float32).view(-1, 4, 4)
    focal = [height / 2 / math.tan(math.radians(fov) / 2) for _, fov in rows]
    K = torch.tensor([[[f, 0, width / 2], [0, f, height / 2], [0, 0, 1]] for f in focal])
    return Cameras(c2w=opengl_to_opencv(matrices), K=K, height=height, width=width)


def _read_row(path: Path, index: int, row: Any) -> tuple[list[float], float]:
    """Check one camera of a path: its 16 numbers and its field of view."""
    try:
        matrix, fov = [float(value) for value in row["camera_to_world"]], float(row["fov"])
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"Camera {index} of {path} needs `camera_to_world` (16 numbers) and `fov` (degrees): "
            f"export the path again."
        ) from error
    if len(matrix) != 16 or not 0 < fov < 180:
        raise InputError(
            f"Camera {index} of {path} has {len(matrix)} numbers in `camera_to_world` and a `fov` "
            f"of {fov:g} degrees: 16 numbers and an angle between 0 and 180 were expected."
        )
    return matrix, fov


@dataclass(frozen=True, kw_only=True, slots=True)
class FilePlanner:
    """Follows a user's camera path in clips that leave an input view and end at one."""

    path: Path = Path("camera_path.json")
    """JSON as nerfstudio's viewer writes it."""

    def plan(
        self, scene: Scene, num_frames: int, support: SupportFunction
    ) -> tuple[Trajectory, ...]:
        """Return clips along the path.

        The path is cut into stretches of `num_frames` cameras that share their ends. A clip runs
        from the input view nearest to the stretch's start along the stretch to the input view
        nearest to its end, evenly spaced by pose distance; neighbouring clips share that view.

        Raises:
            InputError: The file is not a camera path, or a clip has fewer than two frames.
        """
        if num_frames < 2:
            raise InputError(f"A clip needs at least two frames: {num_frames} came.")
        cameras = scene.cameras
        path = read_camera_path(self.path, height=cameras.height, width=cameras.width)
        path = path.to(cameras.c2w.device)
        unit = scene_unit(cameras)
        step = num_frames - 1
        starts = range(0, max(1, len(path) - 1), step)
        stretches = [path[start : start + num_frames] for start in starts]
        return tuple(_make_clip(cameras, stretch, num_frames, unit) for stretch in stretches)


def _make_clip(cameras: Cameras, stretch: Cameras, num_frames: int, unit: float) -> Trajectory:
    """Run from an input view along a stretch to an input view."""
    ends = pose_distances(stretch[[0, -1]], cameras, unit=unit).argmin(1).tolist()
    first, last = cameras[[ends[0]]], cameras[[ends[1]]]
    way = join_rows([first, stretch, last])
    return Trajectory(
        cameras=space_evenly(way, num_frames, unit=unit),
        anchors=(Anchor(frame=0, view=ends[0]), Anchor(frame=num_frames - 1, view=ends[1])),
    )
