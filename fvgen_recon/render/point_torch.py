"""Point rendering in torch, for GPUs: sort once by depth, once by pixel, then composite segments.

There is no loop over points or pixels. All frames of a chunk share the two sorts; chunks bound the
memory.
"""

import math
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from fvgen_recon.render.point import PointFragments

_MAX_CANDIDATES = 2**26
"""Pairs of a point and a pixel near it that are looked at together: about 1.5 GB."""


class Disks(NamedTuple):
    """Points that may touch an image."""

    frame: Int[Tensor, "M"]
    point: Int[Tensor, "M"]
    u: Float[Tensor, "M"]
    v: Float[Tensor, "M"]
    depth: Float[Tensor, "M"]


class Fragments(NamedTuple):
    """Hits of disks on pixels, in the order of the disks."""

    disk: Int[Tensor, "F"]
    pixel: Int[Tensor, "F"]
    alpha: Float[Tensor, "F"]


class _Slots(NamedTuple):
    """The nearest fragments of every pixel, from near to far."""

    alpha: Float[Tensor, "P K"]
    disk: Int[Tensor, "P K"]


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
    height, width = size
    planes = xyz.new_zeros(matrices.shape[0], height * width, 5)
    for part in chunks(xyz, matrices, radius):
        disks = _sort_by_depth(project(xyz, matrices[part], size, radius))
        fragments = rasterise(disks, size, radius)
        num_pixels = planes[part].shape[0] * height * width
        slots = _take_nearest(fragments, num_pixels, points_per_pixel)
        planes[part] = _composite(slots, disks, rgb).view(-1, height * width, 5)
    planes = planes.mT.reshape(-1, 5, height, width)
    return planes[:, :3], planes[:, 3:4], planes[:, 4:5]


def nearest_points(
    xyz: Float[Tensor, "N 3"],
    matrices: Float[Tensor, "T 3 4"],
    *,
    size: tuple[int, int],
    radius: float,
    points_per_pixel: int,
) -> PointFragments:
    """Return the points that every pixel composites, as PyTorch3D's rasteriser does."""
    shape = (matrices.shape[0], *size, points_per_pixel)
    point = torch.full(shape, -1, device=xyz.device)
    depth, squared = xyz.new_full(shape, -1.0), xyz.new_full(shape, -1.0)
    for part in chunks(xyz, matrices, radius):
        disks = _sort_by_depth(project(xyz, matrices[part], size, radius))
        fragments = rasterise(disks, size, radius)
        chunk = point[part].shape
        slots = _take_nearest(fragments, chunk[:3].numel(), points_per_pixel)
        alpha, disk = slots.alpha.view(chunk), slots.disk.view(chunk)
        hit = disk >= 0
        point[part][hit] = disks.point[disk[hit]]
        depth[part][hit] = disks.depth[disk[hit]]
        squared[part][hit] = (1 - alpha[hit]) * radius**2
    return PointFragments(point=point, depth=depth, squared_distance=squared)


def chunks(xyz: Tensor, matrices: Tensor, radius: float) -> list[slice]:
    """Split the frames so that each part looks at a bounded number of candidates."""
    if not len(xyz):
        return []
    step = max(1, _MAX_CANDIDATES // (len(xyz) * _window(radius) ** 2))
    return [slice(start, start + step) for start in range(0, len(matrices), step)]


def _window(radius: float) -> int:
    """Return the number of pixel centres that a disk may cover along an axis."""
    return math.ceil(2 * radius)


def project(
    xyz: Float[Tensor, "N 3"],
    matrices: Float[Tensor, "T 3 4"],
    size: tuple[int, int],
    radius: float,
) -> Disks:
    """Project points and drop those that cannot touch an image; by frame, then by index."""
    height, width = size
    local = matrices[..., :3] @ xyz.double().mT + matrices[..., 3:]
    depth = local[:, 2].float()
    u, v = local[:, 0] / local[:, 2], local[:, 1] / local[:, 2]
    near = (u > -radius) & (u < width + radius) & (v > -radius) & (v < height + radius)
    frame, point = ((depth > 0) & near).nonzero(as_tuple=True)
    return Disks(frame, point, u[frame, point], v[frame, point], depth[frame, point])


def _sort_by_depth(disks: Disks) -> Disks:
    """Sort by frame and then from near to far."""
    # The bits of positive floats sort like the floats: one key holds the frame and the depth.
    key = (disks.frame << 32) | disks.depth.view(torch.int32).long()
    order = key.sort(stable=True).indices
    return Disks(*(values[order] for values in disks))


def rasterise(disks: Disks, size: tuple[int, int], radius: float) -> Fragments:
    """Find the pixels whose centre lies inside each disk."""
    height, width = size
    window = _window(radius)
    offset = torch.arange(window, device=disks.u.device)
    first_x = (disks.u - radius - 0.5).floor() + 1
    first_y = (disks.v - radius - 0.5).floor() + 1
    dx = (first_x + 0.5 - disks.u).float()[:, None] + offset
    dy = (first_y + 0.5 - disks.v).float()[:, None] + offset
    x = first_x.int()[:, None] + offset.int()
    y = first_y.int()[:, None] + offset.int()
    # A hit needs d^2 < R^2; a pixel outside the image gets an infinite distance.
    dx2 = torch.where((x >= 0) & (x < width), dx.square(), torch.inf)
    dy2 = torch.where((y >= 0) & (y < height), dy.square(), torch.inf)
    squared = (dy2[:, :, None] + dx2[:, None, :]).view(-1)
    hit = (squared < radius**2).nonzero()[:, 0]
    disk = hit // window**2
    row, column = hit // window % window, hit % window
    pixel = (disks.frame[disk].int() * height + y[disk, row]) * width + x[disk, column]
    alpha = 1 - squared[hit] / radius**2
    return Fragments(disk, pixel, alpha)


def _take_nearest(fragments: Fragments, num_pixels: int, points_per_pixel: int) -> _Slots:
    """Put the first few fragments of every pixel into a table."""
    pixel, order = fragments.pixel.sort(stable=True)
    borders = torch.arange(num_pixels, device=pixel.device, dtype=pixel.dtype)
    start = torch.searchsorted(pixel, borders)
    rank = torch.arange(len(pixel), device=pixel.device) - start[pixel]
    keep = rank < points_per_pixel
    slot = pixel[keep].long() * points_per_pixel + rank[keep]
    order = order[keep]
    size = num_pixels * points_per_pixel
    alpha = fragments.alpha.new_zeros(size)
    alpha[slot] = fragments.alpha[order]
    disk = fragments.disk.new_full((size,), -1)
    disk[slot] = fragments.disk[order]
    return _Slots(alpha.view(num_pixels, -1), disk.view(num_pixels, -1))


def _composite(slots: _Slots, disks: Disks, rgb: Float[Tensor, "N 3"]) -> Float[Tensor, "P 5"]:
    """Composite the fragments of every pixel: red, green, blue, opacity, depth."""
    result = rgb.new_zeros(len(slots.alpha), 5)
    if not len(disks.point):
        return result
    clear = (1 - slots.alpha).cumprod(1)
    weight = slots.alpha * torch.cat([torch.ones_like(clear[:, :1]), clear[:, :-1]], dim=1)
    disk = slots.disk.clamp_min(0)  # Empty slots weigh nothing.
    for k in range(disk.shape[1]):
        result[:, :3] += weight[:, k, None] * rgb[disks.point[disk[:, k]]]
    result[:, 3] = 1 - clear[:, -1]
    heaviest, best = weight.max(1)
    depth = disks.depth[disk.gather(1, best[:, None])[:, 0]]
    result[:, 4] = torch.where(heaviest > 0, depth, torch.zeros_like(depth))
    return result
