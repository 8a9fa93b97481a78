"""Distances between poses and motions from one pose to another."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from fvgen_recon.types import Cameras


def pose_distances(first: Cameras, second: Cameras, *, unit: float) -> Float[Tensor, "M N"]:
    """Return distance / `unit` + angle in radians between all pairs of two rows of cameras.

    The angle comes from the length of the chord between rotations, which unlike the trace keeps
    its digits at small angles.
    """
    distance = _distances(first.position, second.position)
    chord = _distances(first.c2w[:, :3, :3].flatten(1), second.c2w[:, :3, :3].flatten(1))
    return distance / unit + 2 * torch.arcsin((chord / math.sqrt(8)).clamp(max=1.0))


def _distances(first: Float[Tensor, "M D"], second: Float[Tensor, "N D"]) -> Float[Tensor, "M N"]:
    """Return Euclidean distances in float64, exactly zero between equal rows."""
    return (first.double()[:, None] - second.double()[None]).norm(dim=-1)


def scene_unit(cameras: Cameras) -> float:
    """Return the median distance between different camera positions: the unit of pose distances.

    It is 1 where all cameras stand in one place.
    """
    distances = torch.pdist(cameras.position.double())
    apart = distances[distances > 1e-9]
    return float(apart.median()) if len(apart) else 1.0


def nearest_view(row: Cameras, camera: Cameras) -> tuple[float, float]:
    """Return how far a single camera is from the nearest one of a row.

    Args:
        row: The cameras to choose from, nearest by `pose_distances`.
        camera: The camera.

    Returns:
        The angle between their viewing directions in radians, and the distance between their
        positions over the median distance within the row.
    """
    unit = scene_unit(row)
    one = Cameras(c2w=camera.c2w[None], K=camera.K[None], height=camera.height, width=camera.width)
    nearest = row[int(pose_distances(row, one, unit=unit)[:, 0].argmin())]
    chord = (nearest.direction.double() - camera.direction.double()).norm()
    distance = (nearest.position.double() - camera.position.double()).norm() / unit
    return float(2 * torch.arcsin((chord / 2).clamp(max=1.0))), float(distance)


def rotation_to_vector(rotation: Float[Tensor, "*B 3 3"]) -> Float[Tensor, "*B 3"]:
    """Return axis times angle of rotations; half turns get one of their two axes, never NaN."""
    quaternion = _rotation_to_quaternion(rotation)
    real, imaginary = quaternion[..., :1], quaternion[..., 1:]
    length = imaginary.norm(dim=-1, keepdim=True)
    angle = 2 * torch.atan2(length, real)
    # angle / sin(angle / 2) tends to 2 for small angles.
    factor = torch.where(length > 1e-12, angle / length.clamp_min(1e-12), torch.full_like(real, 2))
    return imaginary * factor


def _rotation_to_quaternion(rotation: Float[Tensor, "*B 3 3"]) -> Float[Tensor, "*B 4"]:
    """Return unit quaternions (w, x, y, z) with w >= 0.

    The quaternion is the greatest eigenvector of a symmetric matrix (Bar-Itzhack 2000), which is
    well conditioned at every angle.
    """
    r = rotation
    rows = [
        [r[..., 0, 0] + r[..., 1, 1] + r[..., 2, 2], r[..., 2, 1] - r[..., 1, 2],
         r[..., 0, 2] - r[..., 2, 0], r[..., 1, 0] - r[..., 0, 1]],
        [r[..., 2, 1] - r[..., 1, 2], r[..., 0, 0] - r[..., 1, 1] - r[..., 2, 2],
         r[..., 0, 1] + r[..., 1, 0], r[..., 0, 2] + r[..., 2, 0]],
        [r[..., 0, 2] - r[..., 2, 0], r[..., 0, 1] + r[..., 1, 0],
         r[..., 1, 1] - r[..., 0, 0] - r[..., 2, 2], r[..., 1, 2] + r[..., 2, 1]],
        [r[..., 1, 0] - r[..., 0, 1], r[..., 0, 2] + r[..., 2, 0],
         r[..., 1, 2] + r[..., 2, 1], r[..., 2, 2] - r[..., 0, 0] - r[..., 1, 1]],
    ]  # fmt: skip
    matrix = torch.stack([torch.stack(row, dim=-1) for row in rows], dim=-2)
    quaternion = torch.linalg.eigh(matrix).eigenvectors[..., -1]
    return torch.where(quaternion[..., :1] < 0, -quaternion, quaternion)


def cross_matrix(vector: Float[Tensor, "*B 3"]) -> Float[Tensor, "*B 3 3"]:
    """Return the matrices that take the cross product with vectors from the left."""
    x, y, z = vector.unbind(-1)
    o = torch.zeros_like(x)
    return torch.stack([o, -z, y, z, o, -x, -y, x, o], dim=-1).unflatten(-1, (3, 3))


def _rodrigues(vector: Float[Tensor, "*B 3"]) -> tuple[Float[Tensor, "*B 3 3"], ...]:
    """Return exp([v]) and its integral over [0, 1], for vectors of axis times angle."""
    angle = vector.norm(dim=-1)[..., None, None]
    small = angle < 1e-6
    safe = torch.where(small, torch.ones_like(angle), angle)
    sine = torch.where(small, 1 - angle**2 / 6, safe.sin() / safe)
    versine = torch.where(small, 0.5 - angle**2 / 24, (1 - safe.cos()) / safe**2)
    rest = torch.where(small, 1 / 6 - angle**2 / 120, (safe - safe.sin()) / safe**3)
    cross = cross_matrix(vector)
    eye = torch.eye(3, dtype=vector.dtype, device=vector.device)
    rotation = eye + sine * cross + versine * cross @ cross
    return rotation, eye + versine * cross + rest * cross @ cross


def move_between(
    first: Float[Tensor, "4 4"], second: Float[Tensor, "4 4"], fraction: Float[Tensor, "T"]
) -> Float[Tensor, "T 4 4"]:
    """Return the poses along the even screw motion from one pose to another.

    The rotation is a slerp; the position runs on the arc that belongs to it, so that cameras
    around an object keep their distance and cameras without rotation run straight. The ends are
    exact. Half turns go one of their two ways.

    Args:
        first: Camera-to-world pose at fraction 0.
        second: Camera-to-world pose at fraction 1.
        fraction: Numbers in [0, 1].
    """
    a, b, u = first.double(), second.double(), fraction.double()[:, None]
    vector = rotation_to_vector(a[:3, :3].mT @ b[:3, :3])
    shift = a[:3, :3].mT @ (b[:3, 3] - a[:3, 3])
    _, integral = _rodrigues(vector)
    velocity = torch.linalg.solve(integral, shift)
    rotation, integral = _rodrigues(vector * u)
    poses = torch.eye(4, dtype=a.dtype, device=a.device).repeat(len(u), 1, 1)
    poses[:, :3, :3] = a[:3, :3] @ rotation
    poses[:, :3, 3] = a[:3, 3] + (a[:3, :3] @ integral @ (velocity * u)[..., None])[..., 0]
    poses = poses.to(first.dtype)
    poses[fraction <= 0], poses[fraction >= 1] = first, second
    return poses


def move_cameras(first: Cameras, second: Cameras, fraction: Float[Tensor, "T"]) -> Cameras:
    """Return cameras on the way from one camera to another.

    Poses follow the even screw motion (see `move_between`), intrinsics are interpolated linearly.

    Args:
        first: A single camera, at fraction 0.
        second: A single camera, at fraction 1.
        fraction: Numbers in [0, 1].
    """
    K = torch.lerp(first.K.double(), second.K.double(), fraction.double()[:, None, None])
    return Cameras(
        c2w=move_between(first.c2w, second.c2w, fraction),
        K=K.to(first.K.dtype),
        height=first.height,
        width=first.width,
    )


def space_evenly(way: Cameras, num_frames: int, *, unit: float) -> Cameras:
    """Return cameras evenly spaced by pose distance along a way, its ends included.

    Between two cameras of the way the motion is the even screw motion.

    Args:
        way: At least two cameras.
        num_frames: Number of cameras to return.
        unit: The distance, in world units, that counts as much as one radian.
    """
    gaps = pose_distances(way, way, unit=unit).diagonal(1)
    length = torch.cat([gaps.new_zeros(1), gaps.cumsum(0)])
    places = torch.linspace(0, 1, num_frames, dtype=torch.float64, device=gaps.device) * length[-1]
    index = (torch.searchsorted(length, places, right=True) - 1).clamp(0, len(gaps) - 1)
    fraction = ((places - length[index]) / gaps[index].clamp_min(1e-12)).clamp(0, 1)
    # The ends are exact, whatever the rounding.
    index[0], index[-1] = 0, len(gaps) - 1
    fraction[0], fraction[-1] = 0.0, 1.0
    picked = [
        move_cameras(way[i], way[i + 1], part[None])
        for i, part in zip(index.tolist(), fraction, strict=True)
    ]
    return join_rows(picked)


def join_rows(rows: list[Cameras]) -> Cameras:
    """Put rows of cameras of one image size one after the other."""
    return Cameras(
        c2w=torch.cat([row.c2w for row in rows]),
        K=torch.cat([row.K for row in rows]),
        height=rows[0].height,
        width=rows[0].width,
    )
