"""Points to images: coloured disks, the nearest few of a pixel composited front to back.

The semantics are those of PyTorch3D's point rasteriser with its alpha compositor, which made the
renders that ViewCrafter was trained on. A point is a disk of constant size in the image; a pixel
whose centre lies at distance d < R of the disk's centre is hit with alpha = 1 - d^2 / R^2; of all
hits the `points_per_pixel` nearest by z are composited front to back over black. Nothing is
normalised, so sparsely covered pixels come out dark. `point_surface` renders the same points as one
opaque surface instead.

Fast paths: numba on the CPU (`point_cpu`), sorted segments in torch on a GPU (`point_torch`). The
slow twin that the tests compare them with is `point_reference`.
"""

from dataclasses import dataclass

from jaxtyping import Float, Int
from torch import Tensor

from fvgen_recon.errors import InputError
from fvgen_recon.types import Cameras, PointCloud

TEACHER_RADIUS_NDC = 0.01
"""Disk radius of the teacher's renders, in units of half the shorter image side."""
TEACHER_POINTS_PER_PIXEL = 10
"""Number of points that the teacher's renders composite in a pixel."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PointRender:
    """Renders of a point cloud, one for each camera."""

    frames: Float[Tensor, "T 3 H W"]
    """Colours on black, multiplied by `alpha`."""
    alpha: Float[Tensor, "T 1 H W"]
    """Accumulated opacity in [0, 1]."""
    depth: Float[Tensor, "T 1 H W"]
    """Z-depth, in world units, of the point that weighs most in a pixel; 0 where none was hit."""
    confidence: Float[Tensor, "T 1 H W"] | None = None
    """Mean confidence of the points in a pixel; 0 where none was hit. None: not rendered."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PointFragments:
    """The nearest points of every pixel, from near to far."""

    point: Int[Tensor, "T H W P"]
    """Index of the point; -1 where there is none."""
    depth: Float[Tensor, "T H W P"]
    """Z-depth of the point; -1 where there is none."""
    squared_distance: Float[Tensor, "T H W P"]
    """Squared distance of the pixel's centre from the disk's, in squared pixels; -1 if none."""


def disk_radius(
    cameras: Cameras, *, radius_px: float | None = None, radius_ndc: float = TEACHER_RADIUS_NDC
) -> float:
    """Return a disk's radius in pixels.

    Args:
        cameras: The cameras whose image size counts.
        radius_px: Radius in pixels; where it is given it counts.
        radius_ndc: Radius in units of half the shorter image side, as PyTorch3D has it.

    Raises:
        InputError: The radius is not positive.
    """
    radius = radius_px
    if radius is None:
        radius = radius_ndc * min(cameras.height, cameras.width) / 2
    if not radius > 0:
        raise InputError(f"The radius of rendered points must be positive: {radius:g} came.")
    return radius


def projection_matrices(cameras: Cameras) -> Float[Tensor, "T 3 4"]:
    """Return K [R | t] in float64: it takes a world point to (u z, v z, z)."""
    return cameras.K.double() @ cameras.w2c.double()[..., :3, :]


def render_points(
    cloud: PointCloud,
    cameras: Cameras,
    *,
    radius_px: float | None = None,
    radius_ndc: float = TEACHER_RADIUS_NDC,
    points_per_pixel: int = TEACHER_POINTS_PER_PIXEL,
) -> PointRender:
    """Render a point cloud into a row of cameras, whatever the points' confidence.

    Points behind a camera are not drawn. Among points of equal depth the earlier comes first.

    Args:
        cloud: The points, on the device of the cameras.
        cameras: A row of T cameras.
        radius_px: Radius of the disks in pixels; where it is given `radius_ndc` does not count.
        radius_ndc: Radius of the disks in units of half the shorter image side.
        points_per_pixel: Number of nearest points that are composited in a pixel.

    Returns:
        Colours, opacity and depth, in the cloud's dtype. CPU and GPU agree to float32 rounding.

    Raises:
        InputError: The radius or `points_per_pixel` is not positive.
    """
    radius = disk_radius(cameras, radius_px=radius_px, radius_ndc=radius_ndc)
    if points_per_pixel < 1:
        raise InputError(f"points_per_pixel must be at least 1: {points_per_pixel} came.")
    matrices = projection_matrices(cameras)
    # numba is slow to import and of no use on a GPU, so it is imported where it is needed.
    if cloud.xyz.device.type == "cpu":
        from fvgen_recon.render.point_cpu import splat_frames
    else:
        from fvgen_recon.render.point_torch import splat_frames
    frames, alpha, depth = splat_frames(
        cloud.xyz.float(),
        cloud.rgb.float(),
        matrices,
        size=(cameras.height, cameras.width),
        radius=radius,
        points_per_pixel=points_per_pixel,
    )
    dtype = cloud.xyz.dtype
    return PointRender(frames=frames.to(dtype), alpha=alpha.to(dtype), depth=depth.to(dtype))
