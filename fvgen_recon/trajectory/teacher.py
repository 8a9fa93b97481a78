"""The camera paths of the teacher (ViewCrafter), constant by constant.

ViewCrafter interpolates between sparse input views unevenly: the poses of a clip of T frames lie at
fractions 0, 1/T, ..., (T-2)/T and then at the next view, while the intrinsics already reach the
next view at frame T-2. From a single view it moves on a sphere around the point that the view's
centre sees. Both are kept as they are, because the teacher's own numbers are compared with.
"""

import itertools
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from fvgen_recon.errors import InputError
from fvgen_recon.geometry.rigid import normalise
from fvgen_recon.trajectory.pose import move_between
from fvgen_recon.types import Cameras

_DEGENERATE = 1e-3


def interpolate_views(cameras: Cameras, num_frames: int) -> Cameras:
    """Return the teacher's path through a row of N cameras, in their order.

    Between two views positions and intrinsics are interpolated linearly; the viewing direction is
    the normalised linear interpolation, x is made orthogonal to it and to the interpolated y. Where
    that is undefined (opposite directions) the pair is joined by an even screw motion instead, at
    the same fractions.

    Args:
        cameras: N >= 2 cameras.
        num_frames: Frames T >= 2 of the clip between two neighbours, both included.

    Returns:
        (N - 1)(T - 1) + 1 cameras; every (T - 1)th is an input camera.

    Raises:
        InputError: There are fewer than two cameras or frames.
    """
    if len(cameras) < 2 or num_frames < 2:
        raise InputError(
            f"Interpolation needs at least two views and two frames: {len(cameras)} views and "
            f"{num_frames} frames came."
        )
    steps = torch.arange(num_frames - 1, dtype=torch.float64, device=cameras.K.device)
    pose_fraction, K_fraction = steps / num_frames, steps / max(1, num_frames - 2)
    poses, intrinsics = [], []
    for first, second in itertools.pairwise(cameras):
        poses.append(_interpolate_pair(first.c2w, second.c2w, pose_fraction))
        K = torch.lerp(first.K.double(), second.K.double(), K_fraction[:, None, None])
        intrinsics.append(K.to(cameras.K.dtype))
    return Cameras(
        c2w=torch.cat([*poses, cameras.c2w[-1:]]),
        K=torch.cat([*intrinsics, cameras.K[-1:]]),
        height=cameras.height,
        width=cameras.width,
    )


def _interpolate_pair(
    first: Float[Tensor, "4 4"], second: Float[Tensor, "4 4"], fraction: Float[Tensor, "F"]
) -> Float[Tensor, "F 4 4"]:
    """Interpolate linearly and make the axes orthogonal again."""
    mean = torch.lerp(first.double(), second.double(), fraction[:, None, None])
    z = normalise(mean[:, :3, 2])
    side = torch.linalg.cross(mean[:, :3, 1], z)
    x = normalise(side)
    if bool((mean[:, :3, 2].norm(dim=-1) < _DEGENERATE).any()) or bool(
        (side.norm(dim=-1) < _DEGENERATE).any()
    ):
        return move_between(first, second, fraction)
    mean[:, :3, 0], mean[:, :3, 1], mean[:, :3, 2] = x, torch.linalg.cross(z, x), z
    return mean.to(first.dtype)


def to_object_frame(
    c2w: Float[Tensor, "V 4 4"],
    points: Float[Tensor, "*P 3"],
    *,
    view: int,
    radius: float,
    elevation_deg: float = 5.0,
) -> tuple[Float[Tensor, "V 4 4"], Float[Tensor, "*P 3"]]:
    """Move the world's origin in front of a view, y up and z towards the viewer.

    Args:
        c2w: Camera-to-world poses.
        points: World points.
        view: The view that looks at the new origin.
        radius: Distance of the new origin from the view, in world units.
        elevation_deg: How far, in degrees, the new frame is tilted so that the view looks down on
            its origin.

    Returns:
        The poses and the points in the new frame.
    """
    tilt = np.deg2rad(180.0 - elevation_deg)
    frame = torch.eye(4, dtype=torch.float64, device=c2w.device)
    frame[:3, :3] = _rotation_about_x(-tilt).to(c2w.device)
    frame[2, 3] = radius
    to_frame = torch.linalg.inv(c2w[view].double() @ frame)
    moved = points.double() @ to_frame[:3, :3].mT + to_frame[:3, 3]
    return (to_frame @ c2w.double()).to(c2w.dtype), moved.to(points.dtype)


@dataclass(frozen=True, kw_only=True, slots=True)
class OrbitTarget:
    """Where a single-view move ends, as the teacher's `target` mode has it."""

    theta_deg: float
    """Angle about x in degrees; negative looks from further up."""
    phi_deg: float
    """Angle about y in degrees."""
    radius_change: float
    """Change of the distance, as a fraction of the view's own z."""
    shift_x: float = 0.0
    """Shift along x in world units, before the rotation."""
    shift_y: float = 0.0
    """Shift along y in world units, before the rotation."""


def orbit_to_target(
    c2w: Float[Tensor, "4 4"], target: OrbitTarget, num_frames: int
) -> Float[Tensor, "T 4 4"]:
    """Return the teacher's `target` path: angles, distance and shifts grow linearly from zero.

    Args:
        c2w: The starting pose in an object frame (see `to_object_frame`).
        target: Where the path ends.
        num_frames: Number of poses.
    """
    ramp = np.linspace(0.0, 1.0, num_frames)
    shift = np.stack(
        [
            ramp * target.shift_x,
            ramp * target.shift_y,
            ramp * target.radius_change * float(c2w[2, 3]),
        ],
        axis=-1,
    )
    return _orbit(c2w, ramp * target.theta_deg, ramp * target.phi_deg, shift)


@dataclass(frozen=True, kw_only=True, slots=True)
class OrbitKeys:
    """The three rows of numbers of the teacher's `txt` mode, each of at least two."""

    phi_deg: tuple[float, ...]
    """Angles about y in degrees."""
    theta_deg: tuple[float, ...]
    """Angles about x in degrees."""
    radius_change: tuple[float, ...]
    """Changes of the distance, as fractions of the view's own z."""


def orbit_along_keys(
    c2w: Float[Tensor, "4 4"], keys: OrbitKeys, num_frames: int
) -> Float[Tensor, "T 4 4"]:
    """Return the teacher's `txt` path: a smoothed curve through each row of numbers.

    Args:
        c2w: The starting pose in an object frame (see `to_object_frame`).
        keys: The rows of numbers; up to three are joined linearly, more by a smoothing cubic
            spline whose ends are put back.
        num_frames: Number of poses.

    Raises:
        InputError: A row has fewer than two numbers.
    """
    rows = (keys.phi_deg, keys.theta_deg, keys.radius_change)
    phi, theta, change = (_resample_keys(row, num_frames) for row in rows)
    shift = np.zeros((num_frames, 3))
    shift[:, 2] = change * float(c2w[2, 3])
    return _orbit(c2w, theta, phi, shift)


def _resample_keys(keys: tuple[float, ...], num_frames: int) -> np.ndarray:
    """Resample a row of numbers."""
    if len(keys) < 2:
        raise InputError(f"Each row of a camera path needs at least two numbers: {len(keys)} came.")
    places, frames = np.linspace(0, 1, len(keys)), np.linspace(0, 1, num_frames)
    if len(keys) <= 3:
        return np.interp(frames, places, keys)
    from scipy.interpolate import UnivariateSpline

    # SciPy's default smoothing: the curve need not pass through the numbers.
    values = np.array(UnivariateSpline(places, keys, k=3)(frames))
    values[0], values[-1] = keys[0], keys[-1]
    return values


def _orbit(
    c2w: Float[Tensor, "4 4"], theta_deg: np.ndarray, phi_deg: np.ndarray, shift: np.ndarray
) -> Float[Tensor, "T 4 4"]:
    """Shift a pose, then turn it about the world's x axis and then about its y axis."""
    poses = c2w.double().repeat(len(shift), 1, 1)
    poses[:, :3, 3] += torch.from_numpy(shift).to(c2w.device)
    turns = torch.stack(
        [
            _rotation_about_y(np.deg2rad(phi)) @ _rotation_about_x(np.deg2rad(theta))
            for theta, phi in zip(theta_deg, phi_deg, strict=True)
        ]
    ).to(c2w.device)
    poses[:, :3] = turns @ poses[:, :3]
    return poses.to(c2w.dtype)


def _rotation_about_x(angle: float) -> Float[Tensor, "3 3"]:
    c, s = np.cos(angle), np.sin(angle)
    return torch.tensor([[1, 0, 0], [0, c, -s], [0, s, c]], dtype=torch.float64)


def _rotation_about_y(angle: float) -> Float[Tensor, "3 3"]:
    c, s = np.cos(angle), np.sin(angle)
    return torch.tensor([[c, 0, s], [0, 1, 0], [-s, 0, c]], dtype=torch.float64)
