"""Things made of solids, each built round the origin with its foot on y = 0."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from fvgen_recon.render.world.pattern import chance, integer, uniform
from fvgen_recon.render.world.world import Builder, Paint, Painter, roof_planes

Thing = Callable[[Builder, Painter], float]
"""Adds solids and returns the radius of the floor that they need."""


def _any_rotation(rng: torch.Generator) -> Tensor:
    rotation, upper = torch.linalg.qr(torch.randn(3, 3, generator=rng))
    rotation = rotation * upper.diagonal().sign()
    return rotation * torch.det(rotation)


def trinket(build: Builder, painter: Painter, *, scale: float = 1.0) -> float:
    """A small thing: mug, can, book, vase, fruit, box, stone, bottle or figure."""
    rng, r = build.rng, uniform(build.rng, 0.04, 0.11) * scale
    paint = painter.paint(
        "photo", "photo", "writing", "checks", "plaster", "wood", low=1.5, high=6.0, gloss=0.5
    )
    _TRINKETS[integer(rng, 0, len(_TRINKETS) - 1)](build, painter, r, paint)
    return 1.9 * r


def _mug(build: Builder, painter: Painter, r: float, paint: Paint) -> None:
    build.cone((0, -r, 0), (0.8 * r, r, 0.8 * r), paint, taper=uniform(build.rng, -0.15, 0.1))
    build.ball((0.9 * r, -r, 0), (0.35 * r, 0.5 * r, 0.1 * r), paint)


def _can(build: Builder, painter: Painter, r: float, paint: Paint) -> None:
    build.cone((0, -1.3 * r, 0), (0.6 * r, 1.3 * r, 0.6 * r), paint)


def _books(build: Builder, painter: Painter, r: float, paint: Paint) -> None:
    rng, height = build.rng, 0.0
    for _ in range(integer(rng, 1, 4)):
        cover = painter.paint("writing", "photo", "checks", low=3.0, high=8.0)
        half = uniform(rng, 0.15, 0.35) * r
        size = (r * uniform(rng, 0.9, 1.4), half, r * uniform(rng, 1.2, 1.8))
        build.box((0, height - half, 0), size, cover, yaw=uniform(rng, -0.5, 0.5))
        height -= 2 * half


def _vase(build: Builder, painter: Painter, r: float, paint: Paint) -> None:
    build.cone((0, -r, 0), (0.5 * r, r, 0.5 * r), paint, taper=-0.45)
    build.cone((0, -2.6 * r, 0), (0.42 * r, 0.6 * r, 0.42 * r), paint, taper=0.6)


def _fruit(build: Builder, painter: Painter, r: float, paint: Paint) -> None:
    for _ in range(integer(build.rng, 1, 4)):
        x, z = uniform(build.rng, -r, r), uniform(build.rng, -r, r)
        build.ball((x, -0.6 * r, z), (0.65 * r, 0.6 * r, 0.6 * r), paint)


def _carton(build: Builder, painter: Painter, r: float, paint: Paint) -> None:
    x, y, z = (r * uniform(build.rng, 0.6, 1.8) for _ in range(3))
    build.box((0, -y, 0), (x, y, z), paint)


def _stone(build: Builder, painter: Painter, r: float, paint: Paint) -> None:
    build.rock((0, -0.7 * r, 0), (r, 0.8 * r, r), paint)


def _bottle(build: Builder, painter: Painter, r: float, paint: Paint) -> None:
    build.cone((0, -1.2 * r, 0), (0.45 * r, 1.2 * r, 0.45 * r), paint)
    build.cone((0, -2.7 * r, 0), (0.3 * r, 0.35 * r, 0.3 * r), paint, taper=0.5)
    build.cone((0, -3.3 * r, 0), (0.14 * r, 0.4 * r, 0.14 * r), paint)


def _figure(build: Builder, painter: Painter, r: float, paint: Paint) -> None:
    build.cone((0, -r, 0), (0.7 * r, r, 0.5 * r), paint, taper=0.35)
    build.ball((0, -2.4 * r, 0), (0.5 * r, 0.6 * r, 0.5 * r), paint)
    build.ball((0, -2.5 * r, -0.4 * r), (0.15 * r, 0.15 * r, 0.3 * r), paint)


_TRINKETS = (_mug, _can, _books, _vase, _fruit, _carton, _stone, _bottle, _figure)


def scatter(build: Builder, painter: Painter, count: int, half: tuple[float, float], y: float,
            *, scale: float = 1.0) -> None:  # fmt: skip
    """Put small things on a surface of half sides `half` at height `y`, not into each other."""
    taken: list[tuple[float, float, float]] = []
    for _ in range(count):
        start = len(build.parts)
        radius = trinket(build, painter, scale=scale)
        for _ in range(12):
            x = uniform(build.rng, -half[0], half[0])
            z = uniform(build.rng, -half[1], half[1])
            if all(math.hypot(x - a, z - b) > radius + c for a, b, c in taken):
                break
        else:
            del build.parts[start:]
            continue
        taken.append((x, z, radius))
        build.group(start, yaw=uniform(build.rng, 0.0, 2 * math.pi), shift=(x, y, z))


def table(build: Builder, painter: Painter) -> float:
    """A table, round or not, with things on it."""
    rng = build.rng
    wood = painter.paint("wood", "plaster", "photo", low=0.5, high=1.5, gloss=0.3)
    height, x, z = uniform(rng, 0.45, 0.8), uniform(rng, 0.35, 0.8), uniform(rng, 0.3, 0.5)
    if chance(rng, 0.25):
        build.cone((0, -height, 0), (x, 0.02, x), wood)
        build.cone((0, -height / 2, 0), (0.05, height / 2, 0.05), wood, taper=0.5)
    else:
        build.box((0, -height, 0), (x, 0.02, z), wood)
        for i in (-1, 1):
            for j in (-1, 1):
                leg = (i * (x - 0.05), -height / 2, j * (z - 0.05))
                build.box(leg, (0.025, height / 2, 0.025), wood)
    scatter(build, painter, integer(rng, 2, 6), (0.8 * x, 0.7 * z), -height - 0.02)
    return math.hypot(x, z)


def chair(build: Builder, painter: Painter) -> float:
    """A chair, or an armchair where it is wide."""
    rng = build.rng
    cover = painter.paint("checks", "plaster", "photo", "photo", "wood", low=0.7, high=3.0)
    half, seat = uniform(rng, 0.2, 0.35), uniform(rng, 0.35, 0.48)
    back = uniform(rng, 0.35, 0.6)
    if half > 0.28:
        build.box((0, -seat / 2, 0), (half, seat / 2, half), cover)
        build.box((-half, -seat * 0.8, 0), (0.07, 0.8 * seat, half), cover)
        build.box((half, -seat * 0.8, 0), (0.07, 0.8 * seat, half), cover)
    else:
        build.box((0, -seat, 0), (half, 0.03, half), cover)
        for i in (-1, 1):
            for j in (-1, 1):
                leg = (i * (half - 0.03), -seat / 2, j * (half - 0.03))
                build.cone(leg, (0.02, seat / 2, 0.02), cover, taper=-0.2)
    build.box((0, -seat - back / 2, half), (half, back / 2, 0.04), cover)
    return 1.3 * half


def shelf(build: Builder, painter: Painter) -> float:
    """A shelf with books and things."""
    rng = build.rng
    board = painter.paint("wood", "plaster", low=0.5, high=1.5)
    half, levels = uniform(rng, 0.3, 0.6), integer(rng, 2, 4)
    gap, depth = uniform(rng, 0.28, 0.4), uniform(rng, 0.13, 0.18)
    height = levels * gap
    for side in (-half, half):
        build.box((side, -height / 2, 0), (0.015, height / 2, depth), board)
    build.box((0, -height / 2, depth), (half, height / 2, 0.01), board)
    for level in range(levels + 1):
        build.box((0, -level * gap - 0.012, 0), (half, 0.012, depth), board)
    for level in range(levels):
        x, end = -half + 0.03, half * uniform(rng, 0.0, 0.9)
        while x < end:
            width, tall = uniform(rng, 0.012, 0.035), gap * uniform(rng, 0.3, 0.44)
            cover = painter.paint("writing", "photo", "plaster", low=2.0, high=8.0)
            size = (width, tall, depth * uniform(rng, 0.6, 0.9))
            build.box((x + width, -level * gap - 0.024 - tall, 0), size, cover)
            x += 2 * width + (uniform(rng, 0.0, 0.2) if chance(rng, 0.2) else 0.002)
    return math.hypot(half, depth)


def cabinet(build: Builder, painter: Painter) -> float:
    """A chest with doors, and things on it."""
    rng = build.rng
    body = painter.paint("wood", "plaster", "photo", low=0.5, high=2.0, gloss=0.3)
    front = painter.paint("wood", "plaster", "checks", low=0.5, high=2.0)
    x, y, z = uniform(rng, 0.3, 0.8), uniform(rng, 0.25, 0.6), uniform(rng, 0.2, 0.3)
    build.box((0, -y, 0), (x, y, z), body)
    doors = integer(rng, 2, 4)
    for door in range(doors):
        centre = -x + (door + 0.5) * 2 * x / doors
        build.box((centre, -y, -z), (x / doors - 0.015, y - 0.03, 0.012), front)
        build.ball((centre + 0.6 * x / doors, -y, -z - 0.02), (0.02, 0.02, 0.02), body)
    scatter(build, painter, integer(rng, 1, 4), (0.8 * x, 0.6 * z), -2 * y)
    return math.hypot(x, z)


def plant(build: Builder, painter: Painter) -> float:
    """A pot with leaves."""
    rng = build.rng
    pot = painter.paint("plaster", "checks", "photo", low=2.0, high=5.0, gloss=0.4)
    leaf = painter.paint("foliage", low=2.0, high=6.0)
    high, wide = uniform(rng, 0.12, 0.25), uniform(rng, 0.1, 0.2)
    build.cone((0, -high, 0), (wide, high, wide), pot, taper=-0.2)
    reach = uniform(rng, 0.25, 0.6)
    for _ in range(integer(rng, 8, 16)):
        angle, lift = uniform(rng, 0.0, 2 * math.pi), uniform(rng, 0.2, 1.4)
        direction = torch.tensor(
            [math.cos(lift) * math.sin(angle), -math.sin(lift), math.cos(lift) * math.cos(angle)]
        )
        length = reach * uniform(rng, 0.6, 1.0) / 2
        x = torch.linalg.cross(direction, torch.tensor([0.3, 1.0, 0.1]))
        x = x / x.norm()
        frame = torch.stack([x, torch.linalg.cross(direction, x), direction], dim=1)
        place = direction * length - torch.tensor([0.0, 2 * high, 0.0])
        centre = (float(place[0]), float(place[1]), float(place[2]))
        build.ball(centre, (0.2 * length, 0.02 * length, length), leaf, rotation=frame)
    return max(wide, 0.6 * reach)


def lamp(build: Builder, painter: Painter) -> float:
    """A standing lamp."""
    pole = painter.paint("plaster", low=1.0, high=2.0, gloss=0.5)
    shade = painter.paint("checks", "plaster", low=1.0, high=3.0)
    height, wide = uniform(build.rng, 1.0, 1.7), uniform(build.rng, 0.12, 0.25)
    build.cone((0, -0.02, 0), (wide, 0.02, wide), pole)
    build.cone((0, -height / 2, 0), (0.015, height / 2, 0.015), pole)
    build.cone((0, -height, 0), (wide, 0.15, wide), shade, taper=0.3)
    return wide


def pile(build: Builder, painter: Painter) -> float:
    """Crates and parcels on each other, or stones."""
    rng = build.rng
    height, side = 0.0, uniform(rng, 0.2, 0.4)
    stones = chance(rng, 0.3)
    for _ in range(integer(rng, 1, 4)):
        names = ("plaster", "pebbles", "photo") if stones else ("wood", "writing", "photo")
        paint = painter.paint(*names, low=0.8, high=3.0)
        half = side * uniform(rng, 0.5, 0.9)
        size = (side * uniform(rng, 0.7, 1.2), half, side * uniform(rng, 0.7, 1.2))
        yaw = uniform(rng, 0.0, 3.0)
        shift = (uniform(rng, -0.1, 0.1) * side, height - half, uniform(rng, -0.1, 0.1) * side)
        if stones:
            build.rock(shift, size, paint, yaw=yaw)
        else:
            build.box(shift, size, paint, yaw=yaw)
        height -= 2 * half * (0.8 if stones else 1.0)
        side *= 0.85
    return 0.6


def statue(build: Builder, painter: Painter) -> float:
    """Bodies on a pedestal."""
    rng = build.rng
    stone = painter.paint("plaster", "pebbles", "photo", low=0.5, high=2.0, gloss=0.3)
    base = painter.paint("bricks", "plaster", "writing", low=0.5, high=2.0)
    wide, height = uniform(rng, 0.3, 0.6), uniform(rng, 0.3, 1.0)
    build.box((0, -height / 2, 0), (wide, height / 2, wide), base)
    build.box((0, -height, 0), (1.15 * wide, 0.04, 1.15 * wide), base)
    y = -height
    for index in range(integer(rng, 2, 5)):
        half = uniform(rng, 0.15, 0.35) * 0.9**index
        x = wide * uniform(rng, 0.4, 0.8) * 0.85**index
        size = (x, half, x * uniform(rng, 0.6, 1.0))
        side = (uniform(rng, -0.05, 0.05), y - half, uniform(rng, -0.05, 0.05))
        kind = integer(rng, 0, 2)
        if kind == 0:
            build.ball(side, size, stone)
        elif kind == 1:
            build.cone(side, size, stone, taper=uniform(rng, -0.4, 0.5))
        else:
            build.rock(side, size, stone, yaw=uniform(rng, 0.0, 3.0))
        y -= 1.8 * half
    return 1.7 * wide


def tree(build: Builder, painter: Painter) -> float:
    """A tree, round or a fir."""
    rng = build.rng
    bark, leaf = (
        painter.paint("wood", "plaster", low=1.0, high=3.0),
        painter.paint("foliage", high=1.0),
    )
    height, wide = uniform(rng, 1.5, 4.0), uniform(rng, 0.08, 0.2)
    build.cone((0, -height / 2, 0), (wide, height / 2, wide), bark, taper=0.3)
    if chance(rng, 0.3):
        for level in range(3):
            size = height * (0.35 - 0.07 * level)
            centre = (0.0, -height * (0.5 + 0.3 * level), 0.0)
            build.cone(centre, (size, 0.25 * height, size), leaf, taper=0.95)
        return 0.35 * height
    for _ in range(integer(rng, 4, 9)):
        size = height * uniform(rng, 0.12, 0.25)
        angle, reach = uniform(rng, 0.0, 2 * math.pi), uniform(rng, 0.0, 0.25) * height
        centre = (
            reach * math.sin(angle),
            -height * uniform(rng, 0.8, 1.25),
            reach * math.cos(angle),
        )
        ball = (size, size * uniform(rng, 0.6, 1.0), size * uniform(rng, 0.8, 1.1))
        build.ball(centre, ball, leaf, rotation=_any_rotation(rng))
    return 0.35 * height


def house(build: Builder, painter: Painter) -> float:
    """A building with a flat or a gable roof."""
    rng = build.rng
    wall = painter.paint("facade", "facade", "bricks", "photo", low=0.12, high=0.35)
    roof = painter.paint("bricks", "wood", "plaster", low=0.3, high=0.8)
    x, y, z = uniform(rng, 1.5, 4.0), uniform(rng, 1.2, 4.0), uniform(rng, 1.5, 4.0)
    build.box((0, -y, 0), (x, y, z), wall)
    if chance(rng, 0.5):
        planes = roof_planes()
        build.rock((0, -2 * y, 0), (1.1 * x, uniform(rng, 0.6, 1.0) * x, 1.1 * z), roof,
                   planes=planes)  # fmt: skip
    else:
        build.box((0, -2 * y, 0), (1.04 * x, 0.12, 1.04 * z), roof)
    door = painter.paint("wood", low=0.5, high=1.0)
    build.box((uniform(rng, -0.6, 0.6) * x, -1.0, -z), (0.45, 1.0, 0.06), door)
    return math.hypot(x, z)


def car(build: Builder, painter: Painter) -> float:
    """A car or a van."""
    rng = build.rng
    body = painter.paint("plaster", "checks", low=0.2, high=0.5, gloss=0.6)
    dark = painter.paint("plaster", low=0.5, high=1.0)
    length, high = uniform(rng, 1.3, 2.2), uniform(rng, 0.25, 0.5)
    build.box((0, -0.3 - high, 0), (length, high, 0.75), body)
    build.rock((0.1, -0.3 - 2 * high, 0), (0.65 * length, 0.9, 0.7), dark, planes=roof_planes(),
               yaw=0.0)  # fmt: skip
    rotation = torch.tensor([[1.0, 0, 0], [0, 0, -1], [0, 1, 0]])
    for i in (-1, 1):
        for j in (-1, 1):
            wheel = (i * 0.65 * length, -0.3, j * 0.7)
            build.cone(wheel, (0.3, 0.12, 0.3), dark, rotation=rotation)
    return length


def fence(build: Builder, painter: Painter) -> float:
    """Posts with rails."""
    rng = build.rng
    wood = painter.paint("wood", "plaster", low=1.0, high=2.0)
    count, height = integer(rng, 5, 9), uniform(rng, 0.6, 1.1)
    for index in range(count):
        x = (index - (count - 1) / 2) * 0.3
        build.box((x, -height / 2, 0), (0.05, height / 2, 0.015), wood)
    for level in (0.3, 0.8):
        build.box((0, -level * height, 0.03), (0.15 * count, 0.04, 0.015), wood)
    return 0.16 * count


INDOORS: tuple[Thing, ...] = (table, table, chair, chair, shelf, cabinet, plant, lamp, pile, statue)
"""What stands in rooms."""
OUTDOORS: tuple[Thing, ...] = (tree, tree, statue, pile, pile, fence, car, table, plant)
"""What stands in yards."""
