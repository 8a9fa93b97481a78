"""Tileable patterns as textures: noise, wood, bricks, tiles, cloth, pebbles, writing, facades.

All return colours as displayed, `3 S S` in [0, 1], that continue seamlessly at the borders.
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

Palette = Float[Tensor, "N 3"]


def uniform(rng: torch.Generator, low: float, high: float) -> float:
    """Draw a number."""
    return low + (high - low) * float(torch.rand((), generator=rng))


def integer(rng: torch.Generator, low: int, high: int) -> int:
    """Draw an integer from `low` to `high`, both included."""
    return int(torch.randint(low, high + 1, (), generator=rng))


def chance(rng: torch.Generator, share: float) -> bool:
    """Be true with a given share."""
    return uniform(rng, 0.0, 1.0) < share


def palette(rng: torch.Generator, count: int, *, vivid: float = 0.25) -> Palette:
    """Draw colours of related hues and different brightness, most of them muted.

    Args:
        rng: Decides.
        count: How many.
        vivid: Mean saturation; one palette in six has twice as much.
    """
    base = uniform(rng, 0.02, 0.18) if chance(rng, 0.5) else uniform(rng, 0.0, 1.0)
    strength = vivid * (2.0 if chance(rng, 0.16) else 0.8)
    rows = []
    for index in range(count):
        hue = base + uniform(rng, -0.06, 0.06) + (0.5 if chance(rng, 0.12) else 0.0)
        saturation = min(0.9, strength * uniform(rng, 0.3, 1.7))
        value = 0.12 + 0.8 * (index + uniform(rng, 0.0, 1.0)) / count
        rows.append(_from_hsv(hue % 1.0, saturation, value))
    order = torch.randperm(count, generator=rng)
    return torch.tensor(rows)[order]


def _from_hsv(hue: float, saturation: float, value: float) -> list[float]:
    places = [(n + hue * 6) % 6 for n in (5, 3, 1)]
    return [value * (1 - saturation * max(0.0, min(k, 4 - k, 1.0))) for k in places]


def periodic_noise(
    size: int, cells: tuple[int, int], rng: torch.Generator, device: torch.device
) -> Float[Tensor, "S S"]:
    """Smooth noise in about [0, 1] with the given number of lattice cells down and across."""
    grid = torch.rand(1, 1, *cells, generator=rng).to(device)
    grid = F.pad(grid, (2, 2, 2, 2), mode="circular") if min(cells) > 1 else _repeat(grid)
    scale = (size // cells[0], size // cells[1])
    shape = (grid.shape[-2] * scale[0], grid.shape[-1] * scale[1])
    wide = F.interpolate(grid, shape, mode="bicubic", align_corners=False)[0, 0]
    return wide[2 * scale[0] : 2 * scale[0] + size, 2 * scale[1] : 2 * scale[1] + size]


def _repeat(grid: Tensor) -> Tensor:
    """Circular padding by two for axes of any length."""
    rows = torch.arange(-2, grid.shape[-2] + 2, device=grid.device) % grid.shape[-2]
    columns = torch.arange(-2, grid.shape[-1] + 2, device=grid.device) % grid.shape[-1]
    return grid[..., rows, :][..., columns]


def fractal_noise(
    size: int,
    rng: torch.Generator,
    device: torch.device,
    *,
    cells: tuple[int, int] = (4, 4),
    gain: float = 0.6,
) -> Float[Tensor, "S S"]:
    """Noise over all octaves from `cells` to single texels, mean 0.5, about [0, 1]."""
    total = torch.zeros(size, size, device=device)
    weight, octave = 1.0, 0
    power = 0.0
    while max(cells) << octave <= size:
        scaled = (cells[0] << octave, cells[1] << octave)
        total += weight * (periodic_noise(size, scaled, rng, device) - 0.5)
        power += weight * weight
        weight, octave = weight * gain, octave + 1
    return (0.5 + total / math.sqrt(max(power, 1e-9))).clamp(0, 1)


def ramp(value: Float[Tensor, "S S"], colours: Palette) -> Float[Tensor, "3 S S"]:
    """Map [0, 1] to a row of colours, linearly in between."""
    colours = colours.to(value.device)
    place = value.clamp(0, 1) * (len(colours) - 1)
    low = place.floor().long().clamp(max=len(colours) - 2)
    share = (place - low)[..., None]
    return torch.lerp(colours[low], colours[low + 1], share).permute(2, 0, 1)


def _grid(size: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Rows and columns in [0, 1)."""
    line = (torch.arange(size, device=device) + 0.5) / size
    y, x = torch.meshgrid(line, line, indexing="ij")
    return y, x


def _per_cell(row: Tensor, column: Tensor, shape: tuple[int, int], rng: torch.Generator) -> Tensor:
    """One random number for each cell of a grid that repeats."""
    table = torch.rand(shape, generator=rng).to(row.device)
    return table[row.long() % shape[0], column.long() % shape[1]]


def _step(value: Tensor, edge: float, softness: float) -> Tensor:
    return ((value - edge) / softness).clamp(0, 1)


def plaster(size: int, rng: torch.Generator, device: torch.device) -> Float[Tensor, "3 S S"]:
    """Paint, stone or marble: noise of one of several characters."""
    cells = 2 ** integer(rng, 1, 4)
    noise = fractal_noise(size, rng, device, cells=(cells, cells), gain=uniform(rng, 0.5, 0.95))
    if chance(rng, 0.3):
        y, x = _grid(size, device)
        bands = integer(rng, 1, 4)
        noise = 0.5 + 0.5 * torch.sin(2 * math.pi * (bands * (x + y) + 2.0 * noise))
    colours = palette(rng, integer(rng, 2, 4), vivid=uniform(rng, 0.03, 0.35))
    contrast = uniform(rng, 0.15, 1.0)
    mean = colours.mean(0)
    return ramp(noise, mean + (colours - mean) * contrast)


def wood(size: int, rng: torch.Generator, device: torch.device) -> Float[Tensor, "3 S S"]:
    """Planks with grain along x."""
    planks = 2 ** integer(rng, 1, 3)
    y, x = _grid(size, device)
    row = (y * planks).floor()
    own = _per_cell(row, 0 * row, (planks, 1), rng)
    grain = fractal_noise(size, rng, device, cells=(8, 1), gain=0.75)
    wave = periodic_noise(size, (8, 2), rng, device)
    rings = 0.5 + 0.5 * torch.sin(2 * math.pi * (6 * own + 3 * wave + 3 * y * planks))
    tone = 0.35 * own + 0.35 * grain + 0.3 * rings
    hue = uniform(rng, 0.04, 0.11)
    level = uniform(rng, 0.35, 0.85)
    rows = [_from_hsv(hue, uniform(rng, 0.3, 0.65), level * s) for s in (0.45, 0.75, 1.05)]
    colour = ramp(tone, torch.tensor(rows).clamp(0, 1))
    length = integer(rng, 1, 2)
    joint = ((x * length + own * 7.3) % 1.0) * size / length
    gap = torch.minimum((y * planks % 1.0) * size / planks, joint)
    return colour * (0.35 + 0.65 * _step(gap, 0.5, 1.5))


def bricks(size: int, rng: torch.Generator, device: torch.device) -> Float[Tensor, "3 S S"]:
    """Bricks in courses, or tiles where courses are not shifted."""
    rows = 2 ** integer(rng, 2, 4)
    columns = max(2, rows // integer(rng, 1, 3))
    shift = 0.5 if chance(rng, 0.7) else 0.0
    y, x = _grid(size, device)
    row = (y * rows).floor()
    along = x * columns + shift * (row % 2)
    own = _per_cell(row, along.floor(), (rows, columns), rng)
    noise = fractal_noise(size, rng, device, cells=(8, 8), gain=0.8)
    colours = palette(rng, 3, vivid=uniform(rng, 0.05, 0.4))
    colour = ramp(0.5 * own + 0.5 * noise, colours[:2])
    width = uniform(rng, 0.02, 0.1)
    edge = torch.minimum(
        0.5 - (y * rows % 1 - 0.5).abs(), (0.5 - (along % 1 - 0.5).abs()) * rows / columns
    )
    inside = _step(edge, width, 0.03)
    joint = (colours[2].to(device)[:, None, None] * (0.7 + 0.4 * noise)).clamp(0, 1)
    return torch.lerp(joint, colour, inside)


def checks(size: int, rng: torch.Generator, device: torch.device) -> Float[Tensor, "3 S S"]:
    """Checks, stripes or tartan over cloth."""
    count = 2 ** integer(rng, 1, 4)
    y, x = _grid(size, device)
    wave = 0.04 * (periodic_noise(size, (4, 4), rng, device) - 0.5)
    sharp = uniform(rng, 2.0, 20.0)
    across = torch.sin(2 * math.pi * count * (x + wave)) * sharp
    down = torch.sin(2 * math.pi * count * (y + wave)) * sharp
    kind = integer(rng, 0, 2)
    mix = (across, across * down / sharp, 0.5 * (across + down))[kind].tanh() * 0.5 + 0.5
    weave = 0.5 + 0.5 * torch.sin(math.pi * size / 4 * x) * torch.sin(math.pi * size / 4 * y)
    noise = fractal_noise(size, rng, device, cells=(4, 4), gain=0.8)
    colour = ramp(mix, palette(rng, 3, vivid=uniform(rng, 0.05, 0.5)))
    return (colour * (0.75 + 0.15 * weave + 0.3 * (noise - 0.3))).clamp(0, 1)


def pebbles(size: int, rng: torch.Generator, device: torch.device) -> Float[Tensor, "3 S S"]:
    """Cells around scattered points: pebbles, gravel, cracked earth or leaves."""
    count = 2 ** integer(rng, 3, 5)
    y, x = _grid(size, device)
    row, column = (y * count).floor(), (x * count).floor()
    points = torch.rand(2, count, count, generator=rng).to(device)
    shade = torch.rand(count, count, generator=rng).to(device)
    best = torch.full_like(y, 9.0)
    second, own = best.clone(), best.clone()
    for i in (-1, 0, 1):
        for j in (-1, 0, 1):
            cell = ((row + i).long() % count, (column + j).long() % count)
            dy = row + i + points[0][cell] - y * count
            dx = column + j + points[1][cell] - x * count
            distance = (dx * dx + dy * dy).sqrt()
            nearer = distance < best
            second = torch.where(nearer, best, torch.minimum(second, distance))
            own = torch.where(nearer, shade[cell], own)
            best = torch.where(nearer, distance, best)
    edge = _step(second - best, 0.02, uniform(rng, 0.1, 0.5))
    noise = fractal_noise(size, rng, device, cells=(8, 8), gain=0.8)
    colour = ramp(0.6 * own + 0.4 * noise, palette(rng, 3, vivid=uniform(rng, 0.03, 0.35)))
    return colour * (0.3 + 0.7 * edge)


def writing(size: int, rng: torch.Generator, device: torch.device) -> Float[Tensor, "3 S S"]:
    """Lines of made-up letters on paper, some lines larger."""
    letters = (torch.rand(24, 7, 5, generator=rng) < 0.5).float()
    letters[:, :, 2] = torch.maximum(letters[:, :, 2], letters[:, 3:4, 2])
    columns, rows = size // 8, size // 8
    sheet = torch.zeros(rows * 8, columns * 6)
    for row in range(rows):
        if chance(rng, 0.12):
            continue
        end = integer(rng, columns // 3, columns)
        for column in range(1, end - 1):
            if not chance(rng, 0.17):
                glyph = letters[integer(rng, 0, 23)]
                sheet[row * 8 : row * 8 + 7, column * 6 : column * 6 + 5] = glyph
    sheet = sheet.to(device)
    zoom = integer(rng, 1, 3)
    sheet = sheet[: sheet.shape[0] // zoom, : sheet.shape[1] // zoom]
    ink = F.interpolate(sheet[None, None], (size, size), mode="bilinear")[0, 0].clamp(0, 1)
    colours = palette(rng, 2, vivid=uniform(rng, 0.0, 0.5)).to(device)[:, :, None, None]
    noise = fractal_noise(size, rng, device, gain=0.7)
    return (torch.lerp(colours[0], colours[1], ink) * (0.85 + 0.3 * noise)).clamp(0, 1)


def facade(size: int, rng: torch.Generator, device: torch.device) -> Float[Tensor, "3 S S"]:
    """Rows of windows with frames in a wall."""
    rows, columns = 2 ** integer(rng, 1, 2), 2 ** integer(rng, 1, 2)
    y, x = _grid(size, device)
    base = bricks if chance(rng, 0.5) else plaster
    wall = base(size, rng, device)
    v, u = (y * rows % 1 - 0.5).abs(), (x * columns % 1 - 0.5).abs()
    height, width = uniform(rng, 0.25, 0.38), uniform(rng, 0.2, 0.38)
    window = (v < height) & (u < width)
    glass = (v < height - 0.03) & (u < width - 0.03) & (u > 0.012) & (v > 0.01)
    lit = _per_cell((y * rows).floor(), (x * columns).floor(), (rows, columns), rng)
    glow = 0.1 + 0.4 * lit + 0.25 * (fractal_noise(size, rng, device) - 0.5)
    pane = torch.stack([glow * 0.9, glow, glow * 1.1])
    frame = palette(rng, 2, vivid=0.2).amax(0).to(device)[:, None, None]
    return torch.where(glass, pane, torch.where(window, frame, wall)).clamp(0, 1)


def foliage(size: int, rng: torch.Generator, device: torch.device) -> Float[Tensor, "3 S S"]:
    """Leaves and grass: strong fine noise in greens or autumn colours."""
    noise = fractal_noise(size, rng, device, cells=(8, 8), gain=0.95)
    fine = fractal_noise(size, rng, device, cells=(32, 16), gain=0.9)
    hue = uniform(rng, 0.18, 0.36) if chance(rng, 0.8) else uniform(rng, 0.02, 0.15)
    rows = [
        _from_hsv(hue + uniform(rng, -0.03, 0.03), uniform(rng, 0.4, 0.8), v)
        for v in (0.08, 0.3, 0.5, 0.85)
    ]
    return ramp(0.45 * noise + 0.55 * fine, torch.tensor(rows))


def clouds(size: int, rng: torch.Generator, device: torch.device) -> Float[Tensor, "3 S S"]:
    """Sky, seen as a map of directions: horizon at the bottom row, zenith at the top."""
    y, _ = _grid(size, device)
    noise = fractal_noise(size, rng, device, cells=(4, 4), gain=0.55)
    cover = _step(noise, uniform(rng, 0.3, 0.7), uniform(rng, 0.15, 0.5))
    hue = uniform(rng, 0.54, 0.64)
    zenith = torch.tensor(_from_hsv(hue, uniform(rng, 0.3, 0.75), uniform(rng, 0.5, 0.9)))
    horizon = torch.tensor(_from_hsv(hue, uniform(rng, 0.02, 0.25), uniform(rng, 0.75, 0.98)))
    blue = torch.lerp(zenith.to(device)[:, None, None], horizon.to(device)[:, None, None], y**2)
    white = uniform(rng, 0.75, 1.0) * (0.75 + 0.3 * noise)
    return torch.lerp(blue, white.expand_as(blue), cover * (1 - 0.5 * y)).clamp(0, 1)


PATTERNS: dict[str, Callable[[int, torch.Generator, torch.device], Tensor]] = {
    "plaster": plaster,
    "wood": wood,
    "bricks": bricks,
    "checks": checks,
    "pebbles": pebbles,
    "writing": writing,
    "facade": facade,
    "foliage": foliage,
    "clouds": clouds,
}
"""Patterns by name."""
