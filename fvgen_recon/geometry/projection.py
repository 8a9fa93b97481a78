"""Between world points and pixels.

The centre of pixel (row i, column j) is the image point (j + 0.5, i + 0.5).
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from fvgen_recon.types import Cameras


def pixel_centres(height: int, width: int, like: Tensor) -> Float[Tensor, "H W 2"]:
    """Return the image points (x, y) of all pixel centres, on the device and dtype of `like`."""
    y = torch.arange(height, device=like.device, dtype=like.dtype) + 0.5
    x = torch.arange(width, device=like.device, dtype=like.dtype) + 0.5
    yy, xx = torch.meshgrid(y, x, indexing="ij")
    return torch.stack([xx, yy], dim=-1)


def inverse_intrinsics(K: Float[Tensor, "*B 3 3"]) -> Float[Tensor, "*B 3 3"]:
    """Return the maps from homogeneous pixels to rays with z = 1 in the camera.

    In closed form: a solver would look at the outcome, for which a GPU would have to wait.
    """
    fx, skew, cx = K[..., 0, :].unbind(-1)
    fy, cy = K[..., 1, 1], K[..., 1, 2]
    zero, one = torch.zeros_like(fx), torch.ones_like(fx)
    rows = (
        (1 / fx, -skew / (fx * fy), (skew * cy / fy - cx) / fx),
        (zero, 1 / fy, -cy / fy),
        (zero, zero, one),
    )
    return torch.stack([torch.stack(row, dim=-1) for row in rows], dim=-2)


def camera_rays(cameras: Cameras) -> Float[Tensor, "*B H W 3"]:
    """Return world ray directions through all pixel centres, scaled to z = 1 in the camera."""
    points = pixel_centres(cameras.height, cameras.width, cameras.K)
    K = cameras.K[..., None, None, :, :]
    y = (points[..., 1] - K[..., 1, 2]) / K[..., 1, 1]
    x = (points[..., 0] - K[..., 0, 2] - K[..., 0, 1] * y) / K[..., 0, 0]
    rays = torch.stack([x, y, torch.ones_like(x)], dim=-1)
    return torch.einsum("...ij,...hwj->...hwi", cameras.c2w[..., :3, :3], rays)


def unproject_depth(
    depth: Float[Tensor, "*B H W"], cameras: Cameras
) -> tuple[Float[Tensor, "*B H W 3"], Bool[Tensor, "*B H W"]]:
    """Lift z-depth maps to world points.

    Args:
        depth: Distance along each camera's +z axis, in world units. Zero, negative and non-finite
            values mark missing pixels.
        cameras: One camera for each depth map, of the same image size.

    Returns:
        The world points, zero where missing, and a mask that is true where depth was given.

    Example:
        >>> eye = torch.eye(4)
        >>> cams = Cameras(c2w=eye, K=eye[:3, :3], height=2, width=3)
        >>> points, given = unproject_depth(torch.full((2, 3), 2.0), cams)
        >>> points[0, 0].tolist(), bool(given.all())
        ([1.0, 1.0, 2.0], True)
    """
    given = torch.isfinite(depth) & (depth > 0)
    safe = torch.where(given, depth, torch.zeros_like(depth))
    points = camera_rays(cameras) * safe[..., None] + cameras.position[..., None, None, :]
    return torch.where(given[..., None], points, torch.zeros_like(points)), given


def project_points(
    xyz: Float[Tensor, "N 3"], cameras: Cameras
) -> tuple[Float[Tensor, "*B N 2"], Float[Tensor, "*B N"]]:
    """Project world points into cameras.

    Returns:
        Image points (x, y) in pixels, meaningless where the depth is not positive, and z-depths.
    """
    w2c = cameras.w2c
    local = torch.einsum("...ij,nj->...ni", w2c[..., :3, :3], xyz) + w2c[..., None, :3, 3]
    z = local[..., 2]
    safe = torch.where(z.abs() < 1e-9, torch.full_like(z, 1e-9), z)
    uv = torch.einsum("...ij,...nj->...ni", cameras.K, local)[..., :2] / safe[..., None]
    return uv, z
