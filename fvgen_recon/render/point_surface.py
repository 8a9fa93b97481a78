"""Points as one opaque surface: the nearest depth, and the mean of what lies at it.

Compositing front to back (`fvgen_recon.render.point`) prefers the nearer of two points of the same
surface, which on a slanted surface shifts the image by up to half a radius, and it lets far points
through gaps. Here a pixel shows the mean of all points up to a depth limit, whatever their order;
hence nothing is sorted.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from fvgen_recon.render.point import PointRender, projection_matrices
from fvgen_recon.render.point_torch import chunks, project, rasterise
from fvgen_recon.types import Cameras, PointCloud


def nearest_depth(
    cloud: PointCloud, cameras: Cameras, *, radius_px: float
) -> Float[Tensor, "T 1 H W"]:
    """Return the z-depth of the nearest point whose disk covers each pixel, infinite if none.

    Args:
        cloud: The points, on the device of the cameras.
        cameras: A row of T cameras.
        radius_px: Radius of the disks in pixels.
    """
    matrices, size = projection_matrices(cameras), (cameras.height, cameras.width)
    xyz = cloud.xyz.float()
    if xyz.device.type == "cpu":
        from fvgen_recon.render.point_surface_cpu import nearest_frames

        return nearest_frames(xyz, matrices, size=size, radius=radius_px)
    return nearest_frames_torch(xyz, matrices, size=size, radius=radius_px)


def blend_surface(
    cloud: PointCloud,
    cameras: Cameras,
    *,
    radius_px: float,
    depth_limit: Float[Tensor, "T 1 H W"],
) -> PointRender:
    """Render the mean of all points up to a depth limit.

    A point counts in a pixel with its alpha = 1 - d^2 / R^2 (see `fvgen_recon.render.point`);
    colours, depth and confidence are means with these weights, opacity is 1 - prod(1 - alpha).

    Args:
        cloud: The points, on the device of the cameras.
        cameras: A row of T cameras.
        radius_px: Radius of the disks in pixels.
        depth_limit: Z-depths, in world units, beyond which a pixel shows nothing.

    Returns:
        Colours multiplied by opacity, opacity, depth and confidence (0 where nothing was hit).
    """
    matrices, size = projection_matrices(cameras), (cameras.height, cameras.width)
    xyz, limit = cloud.xyz.float(), depth_limit[:, 0].float()
    values = torch.cat([cloud.rgb, cloud.confidence[:, None].to(cloud.rgb)], dim=1).float()
    if xyz.device.type == "cpu":
        from fvgen_recon.render.point_surface_cpu import blend_frames

        planes = blend_frames(xyz, values, matrices, size=size, radius=radius_px, depth_limit=limit)
    else:
        planes = blend_frames_torch(
            xyz, values, matrices, size=size, radius=radius_px, depth_limit=limit
        )
    return PointRender(
        frames=planes[:, :3],
        alpha=planes[:, 3:4],
        depth=planes[:, 4:5],
        confidence=planes[:, 5:],
    )


def nearest_frames_torch(
    xyz: Float[Tensor, "N 3"],
    matrices: Float[Tensor, "T 3 4"],
    *,
    size: tuple[int, int],
    radius: float,
) -> Float[Tensor, "T 1 H W"]:
    """Return nearest depths by a scattered minimum."""
    depth = xyz.new_full((len(matrices), size[0] * size[1]), torch.inf)
    for part in chunks(xyz, matrices, radius):
        disks = project(xyz, matrices[part], size, radius)
        found = rasterise(disks, size, radius)
        nearest = depth[part].reshape(-1)
        nearest.scatter_reduce_(0, found.pixel.long(), disks.depth[found.disk], "amin")
        depth[part] = nearest.view(-1, size[0] * size[1])
    return depth.view(-1, 1, *size)


def blend_frames_torch(
    xyz: Float[Tensor, "N 3"],
    values: Float[Tensor, "N 4"],
    matrices: Float[Tensor, "T 3 4"],
    *,
    size: tuple[int, int],
    radius: float,
    depth_limit: Float[Tensor, "T H W"],
) -> Float[Tensor, "T 6 H W"]:
    """Return colours, opacity, depth and confidence by scattered sums.

    `values` are the points' colours and confidences.
    """
    num_pixels = size[0] * size[1]
    planes = xyz.new_zeros(len(matrices), num_pixels, 6)
    for part in chunks(xyz, matrices, radius):
        disks = project(xyz, matrices[part], size, radius)
        found = rasterise(disks, size, radius)
        depth = disks.depth[found.disk]
        kept = depth <= depth_limit[part].reshape(-1)[found.pixel]
        pixel, alpha, depth = found.pixel[kept].long(), found.alpha[kept], depth[kept]
        own = values[disks.point[found.disk[kept]]]
        parts = (own[:, :3], torch.ones_like(depth)[:, None], depth[:, None], own[:, 3:])
        sums = own.new_zeros(planes[part].shape[0] * num_pixels, 6)
        sums.index_add_(0, pixel, torch.cat(parts, dim=1) * alpha[:, None])
        # Logarithms turn the product of 1 - alpha into a sum; that of zero is minus infinity.
        clear = own.new_zeros(len(sums)).index_add_(0, pixel, torch.log1p(-alpha)).exp()
        opacity, total = 1 - clear, sums[:, 3].clamp_min(1e-12)
        colour, rest = sums[:, :3] * (opacity / total)[:, None], sums[:, 4:] / total[:, None]
        result = torch.cat([colour, opacity[:, None], rest], dim=1)
        planes[part] = result.view(-1, num_pixels, 6)
    return planes.mT.reshape(-1, 6, *size)
