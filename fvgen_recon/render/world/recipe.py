"""Random worlds: a furnished room, a table with small things, a yard between houses."""

import math
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from fvgen_recon.errors import InputError
from fvgen_recon.render.world.furniture import INDOORS, OUTDOORS, Thing, house, scatter, tree
from fvgen_recon.render.world.pattern import chance, integer, palette, uniform
from fvgen_recon.render.world.world import Builder, Light, Paint, Painter, World


def _place(
    build: Builder,
    painter: Painter,
    things: tuple[Thing, ...],
    count: int,
    half: tuple[float, float],
    taken: list[tuple[float, float, float]],
) -> None:
    """Put things on the floor, not into each other."""
    rng = build.rng
    for _ in range(count):
        start = len(build.parts)
        radius = things[integer(rng, 0, len(things) - 1)](build, painter)
        for _ in range(15):
            x, z = uniform(rng, -half[0], half[0]), uniform(rng, -half[1], half[1])
            if all(math.hypot(x - a, z - b) > 0.9 * (radius + c) for a, b, c in taken):
                break
        else:
            del build.parts[start:]
            continue
        taken.append((x, z, radius))
        build.group(start, yaw=uniform(rng, 0.0, 2 * math.pi), shift=(x, 0.0, z))


def _walls(build: Builder, painter: Painter, half: tuple[float, float], height: float) -> None:
    """Floor, ceiling, four walls with skirting, pictures, windows and a door."""
    rng, (x, z) = build.rng, half
    floor = painter.paint("wood", "bricks", "checks", "plaster", "photo", low=0.25, high=0.9,
                          gloss=0.3)  # fmt: skip
    build.box((0, 0.1, 0), (x, 0.1, z), floor)
    build.box((0, -height - 0.1, 0), (x, 0.1, z), painter.paint("plaster", low=0.2, high=0.6))
    wall = painter.paint("plaster", "plaster", "bricks", "checks", "photo", low=0.15, high=0.8)
    trim = painter.paint("plaster", "wood", low=0.5, high=1.0)
    for side in range(4):
        own = wall if chance(rng, 0.7) else painter.paint("plaster", "bricks", "wood", high=0.8)
        start = len(build.parts)
        along, away = (x, z) if side % 2 == 0 else (z, x)
        build.box((0, -height / 2, 0.1), (along, height / 2, 0.1), own)
        build.box((0, -0.05, 0), (along, 0.05, 0.012), trim)
        _hang(build, painter, along, height)
        build.group(start, yaw=side * math.pi / 2, shift=(0.0, 0.0, 0.0))
        angle = side * math.pi / 2
        build.group(start, yaw=0.0, shift=(away * math.sin(angle), 0.0, away * math.cos(angle)))


def _hang(build: Builder, painter: Painter, along: float, height: float) -> None:
    """Pictures, windows and doors in a row on the wall at z = 0."""
    rng, x = build.rng, -along + 0.3
    while x < along - 0.8:
        width = uniform(rng, 0.25, 0.7)
        kind = uniform(rng, 0.0, 1.0)
        frame = painter.paint("wood", "plaster", low=1.0, high=2.0)
        if kind < 0.2:
            build.box((x + width, -1.0, 0), (0.45, 1.0, 0.04), frame)
        elif kind < 0.4:
            sky = painter.add("clouds") if chance(rng, 0.5) else painter.add("photo")
            light = Paint(texture=sky, scale=(1.0, 1.0), glow=uniform(rng, 0.5, 1.2))
            build.picture((x + width, -1.5, 0), (width, 0.55, 0.015), light)
            for edge in (-width, 0.0, width):
                build.box((x + width + edge, -1.5, 0), (0.03, 0.58, 0.04), frame)
            for edge in (-0.55, 0.55):
                build.box((x + width, -1.5 + edge, 0), (width, 0.03, 0.04), frame)
        elif kind < 0.8:
            tall = uniform(rng, 0.2, 0.6)
            y = -uniform(rng, 1.2, 1.7)
            build.box((x + width, y, 0), (width + 0.04, tall + 0.04, 0.02), frame)
            image = painter.paint("photo", "photo", "writing")
            build.picture((x + width, y, -0.01), (width, tall, 0.02), image)
        x += 2 * width + uniform(rng, 0.2, 1.2)


def _room_light(rng: torch.Generator, half: tuple[float, float], height: float) -> Light:
    warm = torch.tensor([1.0, uniform(rng, 0.8, 1.0), uniform(rng, 0.6, 1.0)])
    x, z = uniform(rng, -0.5, 0.5) * half[0], uniform(rng, -0.5, 0.5) * half[1]
    return Light(
        position=torch.tensor([x, -height * uniform(rng, 0.75, 0.95), z]),
        radius=uniform(rng, 0.05, 0.4),
        colour=warm * uniform(rng, 0.7, 1.3),
        reach=0.6 * height,
        sky=torch.full((3,), uniform(rng, 0.25, 0.5)),
        ground=warm * uniform(rng, 0.12, 0.3),
    )


def _room(build: Builder, painter: Painter) -> dict:
    rng = build.rng
    half = (uniform(rng, 2.0, 4.0), uniform(rng, 2.0, 4.0))
    height = uniform(rng, 2.4, 3.2)
    _walls(build, painter, half, height)
    inner = (half[0] - 0.5, half[1] - 0.5)
    _place(build, painter, INDOORS, integer(rng, 9, 14), inner, [])
    scatter(build, painter, integer(rng, 2, 6), inner, 0.0, scale=uniform(rng, 1.2, 2.2))
    if chance(rng, 0.6):
        rug = painter.paint("checks", "photo", "plaster", low=0.4, high=1.0)
        size = (uniform(rng, 0.5, 1.2), 0.006, uniform(rng, 0.5, 1.2))
        build.box((uniform(rng, -1.0, 1.0), -0.006, uniform(rng, -1.0, 1.0)), size, rug)
    low = torch.tensor([-half[0] + 0.25, -height + 0.2, -half[1] + 0.25])
    high = torch.tensor([half[0] - 0.25, -0.3, half[1] - 0.25])
    return {
        "light": _room_light(rng, half, height),
        "focus": torch.tensor([uniform(rng, -0.8, 0.8), -0.7, uniform(rng, -0.8, 0.8)]),
        "distance": (1.4, max(half) * 1.3),
        "height": (0.9, 1.9),
        "bounds": torch.stack([low, high]),
        "sky": "plaster",
        "haze": 0.0,
    }


def _tabletop(build: Builder, painter: Painter) -> dict:
    """Small things seen from near, before a room."""
    rng = build.rng
    half, height, top = (2.5, 2.5), 2.6, uniform(rng, 0.6, 0.8)
    _walls(build, painter, half, height)
    board = painter.paint("wood", "checks", "photo", "plaster", low=0.6, high=2.5, gloss=0.3)
    x, z = uniform(rng, 0.45, 0.9), uniform(rng, 0.45, 0.7)
    build.box((0, -top + 0.02, 0), (x, 0.02, z), board)
    build.box((0, -top / 2, 0), (0.1, top / 2, 0.1), board)
    scatter(build, painter, 2, (0.15, 0.15), -top, scale=uniform(rng, 1.5, 2.6))
    scatter(build, painter, integer(rng, 9, 18), (0.85 * x, 0.85 * z), -top,
            scale=uniform(rng, 0.7, 1.4))  # fmt: skip
    _place(build, painter, INDOORS, integer(rng, 2, 5), (2.0, 2.0), [(0.0, 0.0, 1.3)])
    return {
        "light": _room_light(rng, half, height),
        "focus": torch.tensor([0.0, -top - 0.12, 0.0]),
        "distance": (0.6, 1.4),
        "height": (top + 0.15, top + 0.9),
        "bounds": torch.tensor([[-2.2, -2.4, -2.2], [2.2, -0.3, 2.2]]),
        "sky": "plaster",
        "haze": 0.0,
    }


def _yard(build: Builder, painter: Painter) -> dict:
    rng = build.rng
    ground = painter.paint("pebbles", "foliage", "bricks", "plaster", "photo", low=0.15, high=0.8)
    build.box((0, 0.5, 0), (80.0, 0.5, 80.0), ground)
    if chance(rng, 0.6):
        path = painter.paint("bricks", "pebbles", "plaster", low=0.3, high=0.8)
        build.box(
            (0, 0.0, 0), (uniform(rng, 0.8, 2.0), 0.01, 30.0), path, yaw=uniform(rng, 0.0, 3.0)
        )
    for index in range(integer(rng, 6, 10)):
        angle = 2 * math.pi * (index + uniform(rng, 0.0, 0.7)) / 8
        reach = uniform(rng, 8.0, 17.0)
        start = len(build.parts)
        house(build, painter) if chance(rng, 0.6) else tree(build, painter)
        place = (reach * math.sin(angle), 0.0, reach * math.cos(angle))
        build.group(start, yaw=angle + uniform(rng, -0.5, 0.5), shift=place)
    for _ in range(integer(rng, 1, 4)):
        angle, reach = uniform(rng, 0.0, 2 * math.pi), uniform(rng, 25.0, 45.0)
        hill = (uniform(rng, 8.0, 18.0), uniform(rng, 1.0, 6.0), uniform(rng, 8.0, 18.0))
        centre = (reach * math.sin(angle), 0.0, reach * math.cos(angle))
        build.ball(centre, hill, painter.paint("foliage", "plaster", low=0.1, high=0.3))
    _place(build, painter, OUTDOORS, integer(rng, 10, 16), (5.0, 5.0), [])
    scatter(build, painter, integer(rng, 3, 8), (4.0, 4.0), 0.0, scale=uniform(rng, 1.5, 4.0))
    elevation, azimuth = uniform(rng, 0.35, 1.3), uniform(rng, 0.0, 2 * math.pi)
    sun = torch.tensor([
        math.cos(elevation) * math.sin(azimuth),
        -math.sin(elevation),
        math.cos(elevation) * math.cos(azimuth),
    ])  # fmt: skip
    overcast = chance(rng, 0.3)
    light = Light(
        position=200 * sun,
        radius=12.0 if overcast else 2.0,
        colour=torch.tensor([1.0, 0.95, 0.85]) * (0.3 if overcast else uniform(rng, 0.8, 1.3)),
        reach=math.inf,
        sky=torch.tensor([0.75, 0.85, 1.0]) * uniform(rng, 0.35, 0.6),
        ground=torch.full((3,), uniform(rng, 0.1, 0.25)),
    )
    return {
        "light": light,
        "focus": torch.tensor(
            [uniform(rng, -1.0, 1.0), -uniform(rng, 0.5, 1.2), uniform(rng, -1.0, 1.0)]
        ),
        "distance": (2.2, 6.0),
        "height": (0.8, 2.6),
        "bounds": torch.tensor([[-9.0, -6.0, -9.0], [9.0, -0.3, 9.0]]),
        "sky": "clouds",
        "haze": uniform(rng, 0.0, 0.01),
    }


RECIPES: dict[str, Callable[[Builder, Painter], dict]] = {
    "room": _room,
    "table": _tabletop,
    "yard": _yard,
}
"""Kinds of worlds."""


def random_world(
    seed: int,
    *,
    kind: str | None = None,
    photos: Float[Tensor, "N 3 S S"] | None = None,
    texture_size: int = 512,
    device: torch.device | str = "cpu",
) -> World:
    """Make a world of about 40 to 120 solids.

    Args:
        seed: Decides everything.
        kind: One of `RECIPES`; drawn by default.
        photos: Square crops of photos for some of the surfaces: they bring the statistics of
            natural images. None makes patterns only.
        texture_size: Texels along a texture's side; a power of two.
        device: Where it shall lie.

    Raises:
        InputError: There is no such kind, or the texture size is no power of two.
    """
    if kind is not None and kind not in RECIPES:
        raise InputError(f"There is no world `{kind}`: choose one of {', '.join(RECIPES)}.")
    if texture_size < 64 or texture_size & (texture_size - 1):
        raise InputError(
            f"A texture size that is a power of two from 64 was expected: {texture_size} came."
        )
    rng = torch.Generator().manual_seed(seed)
    names = tuple(RECIPES)
    kind = kind or names[integer(rng, 0, len(names) - 1)]
    build = Builder(rng)
    painter = Painter(rng=rng, size=texture_size, device=torch.device(device), photos=photos)
    rest = RECIPES[kind](build, painter)
    sky = painter.add(rest.pop("sky"))
    shapes = build.finish()
    # One cast of colour over everything, as a camera's white balance leaves it.
    shapes.tint.mul_(palette(rng, 1, vivid=0.1)[0] * 0.2 + 0.8)
    return World(
        shapes=shapes.to(device), atlas=painter.atlas(), sky_texture=sky, kind=kind, **rest
    )
