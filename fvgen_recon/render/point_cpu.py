"""Point rendering on the CPU: one numba kernel a frame, frames spread over threads.

All points of a frame are sorted by depth once; walking them from near to far visits every pixel's
points in order, so no list of fragments is ever made. The kernels release the GIL and are cached on
disk. Frames run on plain Python threads, as many as torch may use, since numba's own thread pools
are neither safe to enter from several threads nor safe to fork.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import no_type_check

import numba
import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

_RADIX_BITS = 11
_NUM_PASSES = 3
_RED, _GREEN, _BLUE, _CLEAR, _COUNT, _WEIGHT, _DEPTH, _NUM_STATES = 0, 1, 2, 3, 4, 5, 6, 8


def splat_frames(
    xyz: Float[Tensor, "N 3"],
    rgb: Float[Tensor, "N 3"],
    matrices: Float[Tensor, "T 3 4"],
    *,
    size: tuple[int, int],
    radius: float,
    points_per_pixel: int,
) -> tuple[Float[Tensor, "T 3 H W"], Float[Tensor, "T 1 H W"], Float[Tensor, "T 1 H W"]]:
    """Return colours, opacity and the depth of the heaviest point of every pixel.

    See `fvgen_recon.render.point.render_points`, which calls this.
    """
    planes = np.empty((matrices.shape[0], 5, *size), dtype=np.float32)
    points, colours = xyz.contiguous().numpy(), rgb.contiguous().numpy()
    projections = matrices.contiguous().numpy()
    disk = (float(radius), points_per_pixel)
    run_frames(
        lambda frame: _draw_frame(points, colours, projections[frame], disk, planes[frame]),
        len(planes),
    )
    result = torch.from_numpy(planes)
    return result[:, :3], result[:, 3:4], result[:, 4:5]


def run_frames(draw: Callable[[int], None], num_frames: int) -> None:
    """Call a function for every frame, on as many threads as torch may use."""
    num_threads = min(torch.get_num_threads(), num_frames)
    if num_threads <= 1:
        for frame in range(num_frames):
            draw(frame)
        return
    with ThreadPoolExecutor(num_threads) as pool:
        list(pool.map(draw, range(num_frames)))


@numba.njit(cache=True, nogil=True)
@no_type_check
def project_point(point, matrix):
    """Return a point's place in the image (x, y) and its z-depth, which decides if it counts."""
    x, y, z = float(point[0]), float(point[1]), float(point[2])
    depth = matrix[2, 0] * x + matrix[2, 1] * y + matrix[2, 2] * z + matrix[2, 3]
    if not np.float32(depth) > 0:
        return 0.0, 0.0, np.float32(-1.0)
    u = (matrix[0, 0] * x + matrix[0, 1] * y + matrix[0, 2] * z + matrix[0, 3]) / depth
    v = (matrix[1, 0] * x + matrix[1, 1] * y + matrix[1, 2] * z + matrix[1, 3]) / depth
    return u, v, np.float32(depth)


@numba.njit(cache=True, nogil=True)
@no_type_check
def disk_span(centre, radius, size):
    """Return the range of pixels along an axis whose centres may lie within a disk."""
    first = int(np.floor(centre - radius - 0.5)) + 1
    return max(0, first), min(size, int(np.ceil(centre + radius - 0.5)))


@numba.njit(cache=True, nogil=True)
@no_type_check
def _draw_frame(xyz, rgb, matrix, disk, planes):
    """Draw one frame into `planes`: red, green, blue, opacity, depth."""
    height, width = planes.shape[1], planes.shape[2]
    index, centre, depth = _project(xyz, matrix, height, width, disk[0])
    order = _argsort_positive(depth)
    state = np.zeros((height, width, _NUM_STATES), dtype=np.float32)
    state[:, :, _CLEAR] = 1.0
    for k in order:
        _draw_disk(state, centre[k], depth[k], rgb[index[k]], disk)
    for y in range(height):
        for x in range(width):
            pixel = state[y, x]
            planes[0, y, x], planes[1, y, x] = pixel[_RED], pixel[_GREEN]
            planes[2, y, x], planes[3, y, x] = pixel[_BLUE], 1.0 - pixel[_CLEAR]
            planes[4, y, x] = pixel[_DEPTH]


@numba.njit(cache=True, nogil=True)
@no_type_check
def _project(xyz, matrix, height, width, radius):
    """Project points and keep those whose disk may touch the image.

    Returns:
        Their indices, image points (x, y) in float64 and z-depths in float32.
    """
    num_points = xyz.shape[0]
    index = np.empty(num_points, dtype=np.int32)
    centre = np.empty((num_points, 2), dtype=np.float64)
    depth = np.empty(num_points, dtype=np.float32)
    num_kept = 0
    for i in range(num_points):
        u, v, z = project_point(xyz[i], matrix)
        if not z > 0:
            continue
        if -radius < u < width + radius and -radius < v < height + radius:
            index[num_kept] = i
            centre[num_kept, 0], centre[num_kept, 1] = u, v
            depth[num_kept] = z
            num_kept += 1
    return index[:num_kept], centre[:num_kept], depth[:num_kept]


@numba.njit(cache=True, nogil=True)
@no_type_check
def _argsort_positive(values):
    """Return the stable order of positive float32 values, by radix sort of their bits."""
    num_values = values.shape[0]
    keys = values.view(np.uint32).copy()
    order = np.arange(num_values).astype(np.int32)
    other_keys, other_order = np.empty_like(keys), np.empty_like(order)
    mask = np.uint32((1 << _RADIX_BITS) - 1)
    for step in range(_NUM_PASSES):
        shift = np.uint32(step * _RADIX_BITS)
        start = np.zeros((1 << _RADIX_BITS) + 1, dtype=np.int64)
        for i in range(num_values):
            start[((keys[i] >> shift) & mask) + 1] += 1
        for digit in range(1 << _RADIX_BITS):
            start[digit + 1] += start[digit]
        for i in range(num_values):
            digit = (keys[i] >> shift) & mask
            place = start[digit]
            start[digit] = place + 1
            other_keys[place], other_order[place] = keys[i], order[i]
        keys, other_keys = other_keys, keys
        order, other_order = other_order, order
    return order


@numba.njit(cache=True, nogil=True, inline="always")
@no_type_check
def _draw_disk(state, centre, depth, colour, disk):
    """Composite a disk of (radius, points per pixel) behind what its pixels already hold."""
    height, width = state.shape[0], state.shape[1]
    u, v, radius, points_per_pixel = centre[0], centre[1], disk[0], disk[1]
    squared_radius = radius * radius
    first_x, stop_x = disk_span(u, radius, width)
    first_y, stop_y = disk_span(v, radius, height)
    for y in range(first_y, stop_y):
        dy = y + 0.5 - v
        for x in range(first_x, stop_x):
            dx = x + 0.5 - u
            squared = dx * dx + dy * dy
            pixel = state[y, x]
            if squared >= squared_radius or pixel[_COUNT] >= points_per_pixel:
                continue
            alpha = np.float32(1.0 - squared / squared_radius)
            weight = pixel[_CLEAR] * alpha
            pixel[_RED] += weight * colour[0]
            pixel[_GREEN] += weight * colour[1]
            pixel[_BLUE] += weight * colour[2]
            pixel[_CLEAR] *= np.float32(1.0) - alpha
            pixel[_COUNT] += 1
            if weight > pixel[_WEIGHT]:
                pixel[_WEIGHT], pixel[_DEPTH] = weight, depth
