"""Comparison of camera paths with a numeric fixture made by the teacher's own code."""

import re
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from fvgen_recon.errors import InputError
from fvgen_recon.geometry.conventions import opencv_to_pytorch3d
from fvgen_recon.io.file import read_json, read_tensors
from fvgen_recon.trajectory.teacher import (
    OrbitKeys,
    OrbitTarget,
    interpolate_views,
    orbit_along_keys,
    orbit_to_target,
    to_object_frame,
)
from fvgen_recon.types import Cameras, Difference

_TOLERANCE = 1e-5


def compare_camera(path: Path) -> tuple[Difference, ...]:
    """Compare our camera paths with a fixture of the layout of `camera_traj.safetensors`.

    The fixture holds the input cameras (`in.*`), and any of paths through them (`interpN.*` with N
    frames a clip), a change to an object frame (`obj.*`) and two single-view paths that start there
    (`specified.*`, `txt.*`). The arguments of the latter are read from the notes in the JSON.

    Raises:
        InputError: The files have another layout.
    """
    path = Path(path)
    tensors, notes = read_tensors(path), read_json(path.with_suffix(".json"))
    try:
        height, width = notes["image_size_hw"]
        notes = notes["notes"]
        cameras = _cameras(tensors["in.c2ws"], tensors["in.focals"], tensors["in.pp"])
        cameras = Cameras(c2w=cameras.c2w, K=cameras.K, height=height, width=width)
        rows = _compare_interpolation(tensors, cameras)
        if "obj.c2ws" in tensors:
            rows += _compare_object_frame(tensors, cameras, notes["obj.*"])
            rows += _compare_orbits(tensors, notes)
    except (KeyError, ValueError, TypeError) as error:
        raise InputError(f"{path} is not a fixture of camera paths: {error!r}.") from error
    if not rows:
        raise InputError(f"{path} holds no camera path: use a fixture of camera paths.")
    return tuple(rows)


def _cameras(c2w: Tensor, focal: Tensor, centre: Tensor) -> Cameras:
    """Make cameras of any image size."""
    K = torch.eye(3).repeat(len(c2w), 1, 1)
    K[:, [0, 1], [0, 1]] = focal.reshape(len(c2w), -1).expand(-1, 2)
    K[:, :2, 2] = centre
    return Cameras(c2w=c2w, K=K, height=1, width=1)


def _compare_path(tensors: dict[str, Tensor], name: str, path: Cameras) -> list[Difference]:
    """Compare a path's PyTorch3D cameras."""
    rotation, translation = opencv_to_pytorch3d(path.w2c)
    ours = {
        "R": rotation,
        "T": translation,
        "focal": path.K[:, [0, 1], [0, 1]],
        "pp": path.K[:, :2, 2],
    }
    return [_difference(f"{name}.{key}", value, tensors) for key, value in ours.items()]


def _difference(name: str, ours: Float[Tensor, "*S"], tensors: dict[str, Tensor]) -> Difference:
    """Compare with the fixture's tensor of that name."""
    value = float((ours - tensors[name]).abs().amax())
    return Difference(name=name, value=value, tolerance=_TOLERANCE)


def _compare_interpolation(tensors: dict[str, Tensor], cameras: Cameras) -> list[Difference]:
    """Compare the paths through the input cameras."""
    names = sorted({key.split(".")[0] for key in tensors if key.startswith("interp")})
    rows = []
    for name in names:
        path = interpolate_views(cameras, int(name.removeprefix("interp")))
        rows.append(_difference(f"{name}.c2w_path", path.c2w, tensors))
        rows += _compare_path(tensors, name, path)
    return rows


def _compare_object_frame(
    tensors: dict[str, Tensor], cameras: Cameras, note: str
) -> list[Difference]:
    """Compare the change to the object frame; it concerns the first cameras."""
    given = _numbers(note)
    c2w, points = to_object_frame(
        cameras.c2w[: len(tensors["obj.c2ws"])],
        tensors["obj.in_points"],
        view=int(given["k"]),
        radius=float(tensors["obj.radius"]),
        elevation_deg=given["elevation"],
    )
    return [
        _difference("obj.c2ws", c2w, tensors),
        _difference("obj.points", points, tensors),
    ]


def _compare_orbits(tensors: dict[str, Tensor], notes: dict[str, str]) -> list[Difference]:
    """Compare the single-view paths; both start at the last camera of the object frame."""
    start, paths = tensors["obj.c2ws"][-1], {}
    if "specified.T" in tensors:
        target = _target(_numbers(notes["specified"]))
        paths["specified"] = orbit_to_target(start, target, len(tensors["specified.T"]))
    if "txt.T" in tensors:
        lists = _lists(notes["txt"])
        keys = OrbitKeys(phi_deg=lists["phi"], theta_deg=lists["theta"], radius_change=lists["r"])
        paths["txt"] = orbit_along_keys(start, keys, len(tensors["txt.T"]))
    rows = []
    for name, c2w in paths.items():
        # A single view's intrinsics do not change along its path.
        path = _cameras(c2w, tensors["in.focals"][:1].expand(len(c2w), 1), tensors["in.pp"][:1])
        rows += _compare_path(tensors, name, path)
    return rows


def _target(given: dict[str, float]) -> OrbitTarget:
    return OrbitTarget(
        theta_deg=given["theta"],
        phi_deg=given["phi"],
        radius_change=given["d_r"],
        shift_x=given["d_x"],
        shift_y=given["d_y"],
    )


def _numbers(note: str) -> dict[str, float]:
    """Read `name=number` pairs of a note."""
    return {name: float(value) for name, value in re.findall(r"(\w+)=(-?\d*\.?\d+)", note)}


def _lists(note: str) -> dict[str, tuple[float, ...]]:
    """Read `name=[numbers]` pairs of a note."""
    return {
        name: tuple(float(value) for value in values.split(","))
        for name, values in re.findall(r"(\w+)=\[([^\]]*)\]", note)
    }
