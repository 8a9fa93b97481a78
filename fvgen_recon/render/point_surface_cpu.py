"""Points as one opaque surface on the CPU: numba kernels that walk the points as they come."""

from typing import no_type_check

import numba
import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from fvgen_recon.render.point_cpu import disk_span, project_point, run_frames

_RED, _GREEN, _BLUE, _CONFIDENCE, _TOTAL, _DEPTH, _CLEAR, _NUM_STATES = 0, 1, 2, 3, 4, 5, 6, 8


def nearest_frames(
    xyz: Float[Tensor, "N 3"],
    matrices: Float[Tensor, "T 3 4"],
    *,
    size: tuple[int, int],
    radius: float,
) -> Float[Tensor, "T 1 H W"]:
    """Return nearest depths; see `fvgen_recon.render.point_surface.nearest_depth`."""
    depth = np.full((matrices.shape[0], *size), np.inf, dtype=np.float32)
    points, projections = xyz.contiguous().numpy(), matrices.contiguous().numpy()
    run_frames(
        lambda frame: _find_nearest(points, projections[frame], float(radius), depth[frame]),
        len(depth),
    )
    return torch.from_numpy(depth)[:, None]


def blend_frames(
    xyz: Float[Tensor, "N 3"],
    values: Float[Tensor, "N 4"],
    matrices: Float[Tensor, "T 3 4"],
    *,
    size: tuple[int, int],
    radius: float,
    depth_limit: Float[Tensor, "T H W"],
) -> Float[Tensor, "T 6 H W"]:
    """Return what `fvgen_recon.render.point_surface.blend_frames_torch` returns."""
    planes = np.empty((matrices.shape[0], 6, *size), dtype=np.float32)
    points, shown = xyz.contiguous().numpy(), values.contiguous().numpy()
    projections, limits = matrices.contiguous().numpy(), depth_limit.contiguous().numpy()

    def draw(frame: int) -> None:
        projection, limit = projections[frame], limits[frame]
        _blend(points, shown, projection, float(radius), limit, planes[frame])

    run_frames(draw, len(planes))
    return torch.from_numpy(planes)


@numba.njit(cache=True, nogil=True)
@no_type_check
def _find_nearest(xyz, matrix, radius, nearest):
    """Lower every pixel's depth to that of the nearest point that covers it."""
    height, width = nearest.shape
    for i in range(xyz.shape[0]):
        u, v, depth = project_point(xyz[i], matrix)
        if not (depth > 0 and -radius < u < width + radius and -radius < v < height + radius):
            continue
        first_x, stop_x = disk_span(u, radius, width)
        first_y, stop_y = disk_span(v, radius, height)
        for y in range(first_y, stop_y):
            for x in range(first_x, stop_x):
                squared = (x + 0.5 - u) ** 2 + (y + 0.5 - v) ** 2
                if squared < radius * radius and depth < nearest[y, x]:
                    nearest[y, x] = depth


@numba.njit(cache=True, nogil=True)
@no_type_check
def _blend(xyz, values, matrix, radius, limit, planes):
    """Draw one frame into `planes`: red, green, blue, opacity, depth, confidence."""
    height, width = limit.shape
    state = np.zeros((height, width, _NUM_STATES), dtype=np.float32)
    state[:, :, _CLEAR] = 1.0
    for i in range(xyz.shape[0]):
        u, v, depth = project_point(xyz[i], matrix)
        if depth > 0 and -radius < u < width + radius and -radius < v < height + radius:
            _add_disk(state, limit, (u, v, radius), depth, values[i])
    for y in range(height):
        for x in range(width):
            pixel = state[y, x]
            opacity = np.float32(1.0) - pixel[_CLEAR]
            total = max(pixel[_TOTAL], np.float32(1e-12))
            planes[0, y, x] = pixel[_RED] * (opacity / total)
            planes[1, y, x] = pixel[_GREEN] * (opacity / total)
            planes[2, y, x] = pixel[_BLUE] * (opacity / total)
            planes[3, y, x] = opacity
            planes[4, y, x] = pixel[_DEPTH] / total
            planes[5, y, x] = pixel[_CONFIDENCE] / total


@numba.njit(cache=True, nogil=True, inline="always")
@no_type_check
def _add_disk(state, limit, disk, depth, value):
    """Add a disk (x, y, radius) to the sums of the pixels that it may be seen in."""
    u, v, radius = disk
    first_x, stop_x = disk_span(u, radius, limit.shape[1])
    first_y, stop_y = disk_span(v, radius, limit.shape[0])
    for y in range(first_y, stop_y):
        for x in range(first_x, stop_x):
            squared = (x + 0.5 - u) ** 2 + (y + 0.5 - v) ** 2
            if squared >= radius * radius or depth > limit[y, x]:
                continue
            alpha = np.float32(1.0 - squared / (radius * radius))
            pixel = state[y, x]
            pixel[_RED] += alpha * value[0]
            pixel[_GREEN] += alpha * value[1]
            pixel[_BLUE] += alpha * value[2]
            pixel[_CONFIDENCE] += alpha * value[3]
            pixel[_TOTAL] += alpha
            pixel[_DEPTH] += alpha * depth
            pixel[_CLEAR] *= np.float32(1.0) - alpha
