"""Point rendering, the slow obvious way: every pixel looks at every point.

The twin of `fvgen_recon.render.point` that tests compare the fast paths with.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from fvgen_recon.geometry.projection import pixel_centres, project_points
from fvgen_recon.render.point import (
    TEACHER_POINTS_PER_PIXEL,
    TEACHER_RADIUS_NDC,
    PointFragments,
    PointRender,
    disk_radius,
)
from fvgen_recon.types import Cameras, PointCloud


def find_fragments(
    cloud: PointCloud, cameras: Cameras, *, radius: float, points_per_pixel: int
) -> PointFragments:
    """Return the nearest points whose disk (radius in pixels) covers each pixel's centre."""
    centres = pixel_centres(cameras.height, cameras.width, cloud.xyz.double())
    found = [_find_in_frame(cloud, camera, centres, radius, points_per_pixel) for camera in cameras]
    return PointFragments(
        point=torch.stack([f[0] for f in found]),
        depth=torch.stack([f[1] for f in found]),
        squared_distance=torch.stack([f[2] for f in found]),
    )


def _find_in_frame(
    cloud: PointCloud, camera: Cameras, centres: Tensor, radius: float, points_per_pixel: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Look at every pair of a pixel and a point of one frame."""
    double = Cameras(
        c2w=camera.c2w.double(), K=camera.K.double(), height=camera.height, width=camera.width
    )
    uv, z = project_points(cloud.xyz.double(), double)
    z = z.float()
    shape = (camera.height, camera.width, points_per_pixel)
    point = torch.full(shape, -1, dtype=torch.long)
    depth, squared_distance = torch.full(shape, -1.0), torch.full(shape, -1.0)
    order = z.argsort(stable=True)
    for row in range(camera.height):
        for column in range(camera.width):
            d2 = (uv[order] - centres[row, column]).square().sum(-1)
            hits = ((d2 < radius**2) & (z[order] > 0)).nonzero()[:points_per_pixel, 0]
            chosen = order[hits]
            point[row, column, : len(hits)] = chosen
            depth[row, column, : len(hits)] = z[chosen]
            squared_distance[row, column, : len(hits)] = d2[hits].float()
    return point, depth, squared_distance


def render_points_reference(
    cloud: PointCloud,
    cameras: Cameras,
    *,
    radius_px: float | None = None,
    radius_ndc: float = TEACHER_RADIUS_NDC,
    points_per_pixel: int = TEACHER_POINTS_PER_PIXEL,
) -> PointRender:
    """Render a point cloud as `render_points` does, pixel by pixel."""
    radius = disk_radius(cameras, radius_px=radius_px, radius_ndc=radius_ndc)
    found = find_fragments(cloud, cameras, radius=radius, points_per_pixel=points_per_pixel)
    shape = found.point.shape[:3]
    frames, clear = torch.zeros(*shape, 3), torch.ones(*shape, 1)
    depth, heaviest = torch.zeros(*shape, 1), torch.zeros(*shape, 1)
    for k in range(points_per_pixel):
        hit = found.point[..., k, None] >= 0
        alpha = torch.where(hit, 1 - found.squared_distance[..., k, None] / radius**2, 0.0)
        colour = torch.zeros(*shape, 3)
        colour[hit[..., 0]] = cloud.rgb[found.point[..., k][hit[..., 0]]].float()
        weight = clear * alpha
        frames = frames + weight * colour
        clear = clear * (1 - alpha)
        depth = torch.where(weight > heaviest, found.depth[..., k, None], depth)
        heaviest = torch.maximum(heaviest, weight)
    planes = [plane.movedim(-1, 1).contiguous() for plane in (frames, 1 - clear, depth)]
    return PointRender(frames=planes[0], alpha=planes[1], depth=planes[2])


def blend_surface_reference(
    cloud: PointCloud,
    cameras: Cameras,
    *,
    radius_px: float,
    depth_limit: Float[Tensor, "T 1 H W"],
) -> PointRender:
    """Render a surface as `blend_surface` does, pixel by pixel."""
    found = find_fragments(cloud, cameras, radius=radius_px, points_per_pixel=len(cloud))
    hit = (found.point >= 0) & (found.depth <= depth_limit.movedim(1, -1))
    alpha = torch.where(hit, 1 - found.squared_distance / radius_px**2, 0.0)[..., None]
    opacity = 1 - (1 - alpha).prod(-2)
    weight = alpha / alpha.sum(-2, keepdim=True).clamp_min(1e-12)
    colour = (weight * cloud.rgb[found.point.clamp_min(0)]).sum(-2)
    depth = (weight * found.depth[..., None]).sum(-2)
    confidence = (weight * cloud.confidence[found.point.clamp_min(0), None]).sum(-2)
    parts = (opacity * colour, opacity, depth, confidence)
    planes = [plane.movedim(-1, 1).contiguous() for plane in parts]
    return PointRender(frames=planes[0], alpha=planes[1], depth=planes[2], confidence=planes[3])
