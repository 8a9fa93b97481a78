"""Footprints to pixels, tile by tile, on the CPU.

Each tile holds the footprints whose 3 sigma square touches it, nearest first, and blends them into
its pixels (Kerbl et al., "3D Gaussian Splatting", 2023, eq. 3) with gsplat 1.4's rules: an
opacity is at most 0.999 and counts from 1/255, and a pixel is finished before its transmittance
would fall to 1e-4.
"""

from dataclasses import dataclass
from typing import NamedTuple, no_type_check

import numpy as np
from jaxtyping import Float, Int

from fvgen_recon.render.gaussian_kernel import kernel, run_chunks

_TILES = 8
"""Tiles a call of a kernel."""
_SPLATS = 8192
"""Footprints a call of a kernel."""


class Grid(NamedTuple):
    """Tiles of an image; sizes in pixels."""

    tile_size: int
    rows: int
    columns: int
    height: int
    width: int


class Footprints(NamedTuple):
    """M footprints of all cameras."""

    means2d: np.ndarray
    """Centres in pixels, `M 2`."""
    conics: np.ndarray
    """Upper triangles of the inverse covariances, `M 3`."""
    opacities: np.ndarray
    """`M`."""
    colors: np.ndarray
    """`M D`."""


class Squares(NamedTuple):
    """Where M footprints may count for something."""

    means2d: np.ndarray
    """Centres in pixels, `M 2`."""
    radii: np.ndarray
    """Half sides in pixels, `M`; 0 for what is not seen."""
    depths: np.ndarray
    """Z-depths, `M`."""
    cameras: np.ndarray
    """Index of each footprint's camera, `M`."""


class Pixels(NamedTuple):
    """Blended images."""

    color: np.ndarray
    """On black, `C H W D`."""
    transmittance: np.ndarray
    """What shines through, `C H W`."""
    last: np.ndarray
    """Which entry of the tiles' lists was the last to add anything, `C H W`; -1 for none."""


class _Lists(NamedTuple):
    """The lists of a tiling, as kernels take them."""

    grid: Grid
    starts: np.ndarray
    ids: np.ndarray
    slots: np.ndarray


class _Walk(NamedTuple):
    """What the way back works on: see `_blend_backward`."""

    v_color: np.ndarray
    light: np.ndarray
    behind: np.ndarray
    out: np.ndarray


@dataclass(frozen=True, kw_only=True, slots=True)
class Tiling:
    """Which footprints touch which tiles."""

    grid: Grid
    """The tiles of one image."""
    starts: Int[np.ndarray, "bins_and_one"]
    """Where the list of each tile (C times rows times columns) begins; at last, where all end."""
    ids: Int[np.ndarray, "entries"]
    """Footprints of all lists, nearest first in each tile."""
    slots: Int[np.ndarray, "entries"]
    """Place of each entry in the order of footprints."""
    firsts: Int[np.ndarray, "M_and_one"]
    """Where the places of each footprint begin; at last, where all end."""


@kernel
@no_type_check
def _rectangle(u, v, radius, grid):
    """Return the tiles that a square touches: first and end column, first and end row."""
    x0 = max(np.floor((u - radius) / grid.tile_size), 0.0)
    y0 = max(np.floor((v - radius) / grid.tile_size), 0.0)
    x1 = min(np.ceil((u + radius) / grid.tile_size), np.float64(grid.columns))
    y1 = min(np.ceil((v + radius) / grid.tile_size), np.float64(grid.rows))
    return np.int64(x0), np.int64(max(x1, x0)), np.int64(y0), np.int64(max(y1, y0))


@kernel
@no_type_check
def _count(squares, grid, per_splat, per_tile):
    """Count tiles a footprint and footprints a tile."""
    for splat in range(squares.radii.shape[0]):
        if squares.radii[splat] <= 0:
            continue
        u, v = squares.means2d[splat]
        x0, x1, y0, y1 = _rectangle(u, v, squares.radii[splat], grid)
        per_splat[splat] = (x1 - x0) * (y1 - y0)
        for row in range(y0, y1):
            first = (squares.cameras[splat] * grid.rows + row) * grid.columns
            for column in range(x0, x1):
                per_tile[first + column] += 1


@kernel
@no_type_check
def _fill(order, squares, lists, firsts):
    """Append footprints, taken nearest first, to the lists of their tiles."""
    grid, ends = lists.grid, lists.starts.copy()
    for splat in order:
        u, v = squares.means2d[splat]
        x0, x1, y0, y1 = _rectangle(u, v, squares.radii[splat], grid)
        slot = firsts[splat]
        for row in range(y0, y1):
            first = (squares.cameras[splat] * grid.rows + row) * grid.columns
            for column in range(x0, x1):
                entry = ends[first + column]
                ends[first + column] += 1
                lists.ids[entry] = splat
                lists.slots[entry] = slot
                slot += 1


def bin_footprints(squares: Squares, num_cameras: int, grid: Grid) -> Tiling:
    """List the footprints that touch each tile, nearest first; equal depths keep their order."""
    per_splat = np.zeros(squares.radii.shape[0], np.int64)
    per_tile = np.zeros(num_cameras * grid.rows * grid.columns, np.int64)
    _count(squares, grid, per_splat, per_tile)
    firsts = np.concatenate([np.zeros(1, np.int64), np.cumsum(per_splat)])
    starts = np.concatenate([np.zeros(1, np.int64), np.cumsum(per_tile)])
    visible = np.flatnonzero(per_splat)
    order = visible[np.argsort(squares.depths[visible], kind="stable")]
    ids, slots = np.empty(firsts[-1], np.int32), np.empty(firsts[-1], np.int64)
    _fill(order, squares, _Lists(grid, starts, ids, slots), firsts)
    return Tiling(grid=grid, starts=starts, ids=ids, slots=slots, firsts=firsts)


@kernel
@no_type_check
def _extent(conic, opacity):
    """Return the ellipse outside of which a footprint counts for nothing.

    It is a dx^2 + 2 b dx dy + c dy^2 <= bound, given as half its height, bound over a, b / a and
    the determinant over a squared. The height is negative where there is no such ellipse; where
    rounding has spoilt the conic, the ellipse is the whole plane.
    """
    a, b, c = np.float64(conic[0]), np.float64(conic[1]), np.float64(conic[2])
    if not 255.0 * opacity >= 1.0:
        return -1e9, 0.0, 0.0, 0.0
    bound = 2.0 * np.log(255.0 * opacity)
    det = a * c - b * b
    if a < 1e-12 or det < 1e-12 * a * c:
        return 1e9, 1e18, 0.0, 0.0
    return np.sqrt(bound * a / det), bound / a, b / a, det / (a * a)


@kernel
@no_type_check
def _span(centre, half, low, high):
    """Return the first and the end pixel within `half` of `centre`, half a pixel to spare."""
    first = max(np.floor(centre - half - 0.5), np.float64(low))
    end = min(np.ceil(centre + half + 0.5), np.float64(high))
    return np.int64(first), np.int64(max(end, first))


@kernel
@no_type_check
def _row(extent, u, v, y, x0, x1):
    """Return the first and the end pixel of image row `y` within the ellipse around (u, v)."""
    dy = v - (y + 0.5)
    half = np.sqrt(max(extent[1] - extent[3] * dy * dy, 0.0))
    return _span(u + extent[2] * dy, half, x0, x1)


@kernel
@no_type_check
def _tile(bin_, grid):
    """Return the camera of a tile and its first and end pixel column and row."""
    in_image = bin_ % (grid.rows * grid.columns)
    x0 = (in_image % grid.columns) * grid.tile_size
    y0 = (in_image // grid.columns) * grid.tile_size
    x1, y1 = min(x0 + grid.tile_size, grid.width), min(y0 + grid.tile_size, grid.height)
    return bin_ // (grid.rows * grid.columns), x0, x1, y0, y1


@kernel
@no_type_check
def _density(conic, dx, dy):
    """Return the Gaussian at an offset, or 0 where rounding puts it above its own peak."""
    real = conic.dtype.type
    sigma = real(0.5) * (conic[0] * dx * dx + conic[2] * dy * dy) + conic[1] * dx * dy
    return np.exp(-sigma) if sigma >= real(0) else real(0)


@kernel
@no_type_check
def _blend(start, stop, lists, splats, pixels):
    """Blend the lists of tiles start..stop, front to back."""
    real = splats.opacities.dtype.type
    half, one, floor, most, least = real(0.5), real(1), real(1 / 255), real(0.999), real(1e-4)
    size = lists.grid.tile_size
    is_open = np.empty((size, size), np.bool_)
    for bin_ in range(start, stop):
        camera, x0, x1, y0, y1 = _tile(bin_, lists.grid)
        light, color, last = pixels.transmittance[camera], pixels.color[camera], pixels.last[camera]
        is_open[:] = True
        num_open = (x1 - x0) * (y1 - y0)
        for entry in range(lists.starts[bin_], lists.starts[bin_ + 1]):
            if num_open == 0:
                break
            splat = lists.ids[entry]
            u, v = splats.means2d[splat]
            conic, opacity = splats.conics[splat], splats.opacities[splat]
            extent = _extent(conic, opacity)
            row, row_end = _span(v, extent[0], y0, y1)
            for y in range(row, row_end):
                dy = v - (real(y) + half)
                column, column_end = _row(extent, u, v, y, x0, x1)
                for x in range(column, column_end):
                    density = _density(conic, u - (real(x) + half), dy)
                    alpha = min(most, opacity * density)
                    if alpha < floor or not is_open[y - y0, x - x0]:
                        continue
                    through = light[y, x] * (one - alpha)
                    if through <= least:
                        is_open[y - y0, x - x0] = False
                        num_open -= 1
                        continue
                    _add(color[y, x], alpha * light[y, x], splats.colors[splat])
                    light[y, x] = through
                    last[y, x] = entry


@kernel
@no_type_check
def _add(total, weight, values):
    """Add weighted values; return nothing."""
    for k in range(values.shape[0]):
        total[k] += weight * values[k]


@kernel
@no_type_check
def _dot(left, right):
    """Return the scalar product of two short vectors."""
    total = left.dtype.type(0)
    for k in range(left.shape[0]):
        total += left[k] * right[k]
    return total


@kernel
@no_type_check
def _add_shape(v_own, conic, dx, dy, v_sigma):
    """Add the gradients of centre and conic, given that of the exponent."""
    v_u = v_sigma * (conic[0] * dx + conic[1] * dy)
    v_v = v_sigma * (conic[1] * dx + conic[2] * dy)
    half = v_own.dtype.type(0.5)
    v_own[0] += v_u
    v_own[1] += v_v
    v_own[2] += abs(v_u)
    v_own[3] += abs(v_v)
    v_own[4] += half * v_sigma * dx * dx
    v_own[5] += v_sigma * dx * dy
    v_own[6] += half * v_sigma * dy * dy


@kernel
@no_type_check
def _blend_backward(start, stop, lists, splats, last, walk):
    """Write the gradients of every entry of tiles start..stop, back to front.

    `walk.light` starts as the transmittance behind everything and is divided back to the front.
    `walk.behind` starts as that transmittance times its gradient, and takes up what lies behind
    the entry at hand. A row of `walk.out` is the gradient of means2d (2), its absolute value pixel
    by pixel (2), of conic (3), opacity and colours.
    """
    real = splats.opacities.dtype.type
    half, one, floor, most = real(0.5), real(1), real(1 / 255), real(0.999)
    for bin_ in range(start, stop):
        camera, x0, x1, y0, y1 = _tile(bin_, lists.grid)
        light, behind, v_color = walk.light[camera], walk.behind[camera], walk.v_color[camera]
        final = last[camera, y0:y1, x0:x1].max()
        for entry in range(final, lists.starts[bin_] - 1, -1):
            splat, v_own = lists.ids[entry], walk.out[lists.slots[entry]]
            u, v = splats.means2d[splat]
            conic, opacity = splats.conics[splat], splats.opacities[splat]
            extent = _extent(conic, opacity)
            row, row_end = _span(v, extent[0], y0, y1)
            for y in range(row, row_end):
                dy = v - (real(y) + half)
                column, column_end = _row(extent, u, v, y, x0, x1)
                for x in range(column, column_end):
                    dx = u - (real(x) + half)
                    density = _density(conic, dx, dy)
                    alpha = min(most, opacity * density)
                    if alpha < floor or entry > last[camera, y, x]:
                        continue
                    rest = one / (one - alpha)
                    before = light[y, x] * rest
                    seen = _dot(splats.colors[splat], v_color[y, x])
                    _add(v_own[8:], alpha * before, v_color[y, x])
                    v_alpha = before * seen - rest * behind[y, x]
                    behind[y, x] += alpha * before * seen
                    light[y, x] = before
                    if opacity * density <= most:
                        v_own[7] += density * v_alpha
                        _add_shape(v_own, conic, dx, dy, -opacity * density * v_alpha)


@kernel
@no_type_check
def _gather(start, stop, firsts, entries, out):
    """Sum the entries of each footprint."""
    for splat in range(start, stop):
        for entry in range(firsts[splat], firsts[splat + 1]):
            for k in range(out.shape[1]):
                out[splat, k] += entries[entry, k]


def blend_tiles(tiling: Tiling, splats: Footprints, num_cameras: int) -> Pixels:
    """Blend footprints into the images of all cameras, on black.

    Returns:
        New pixels: colour, transmittance and the last entry of each.
    """
    grid, dtype = tiling.grid, splats.opacities.dtype
    shape = (num_cameras, grid.height, grid.width)
    pixels = Pixels(
        np.zeros((*shape, splats.colors.shape[1]), dtype),
        np.ones(shape, dtype),
        np.full(shape, -1, np.int64),
    )
    lists = _Lists(grid, tiling.starts, tiling.ids, tiling.slots)
    run_chunks(_blend, tiling.starts.shape[0] - 1, _TILES, lists, splats, pixels)
    return pixels


def blend_tiles_backward(
    tiling: Tiling,
    splats: Footprints,
    pixels: Pixels,
    v_color: Float[np.ndarray, "C H W D"],
    v_transmittance: Float[np.ndarray, "C H W"],
) -> Float[np.ndarray, "M rows"]:
    """Return the gradients of all footprints, given those of `blend_tiles`.

    Returns:
        For each footprint the gradient of means2d (2 numbers), the sum over pixels of its absolute
        value (2), the gradient of the conic (3), of the opacity and of the colours.
    """
    dtype = splats.opacities.dtype
    row = 8 + splats.colors.shape[1]
    entries = np.zeros((tiling.ids.shape[0], row), dtype)
    light = pixels.transmittance.copy()
    walk = _Walk(v_color, light, light * v_transmittance, entries)
    lists = _Lists(tiling.grid, tiling.starts, tiling.ids, tiling.slots)
    num_bins = tiling.starts.shape[0] - 1
    run_chunks(_blend_backward, num_bins, _TILES, lists, splats, pixels.last, walk)
    total = np.zeros((splats.opacities.shape[0], row), dtype)
    run_chunks(_gather, total.shape[0], _SPLATS, tiling.firsts, entries, total)
    return total
