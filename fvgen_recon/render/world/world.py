"""The noun of this package, and what assembles it from parts."""

import math
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Float
from torch import Tensor

from fvgen_recon.render.world.pattern import PATTERNS, chance, integer, palette, uniform
from fvgen_recon.render.world.shape import (
    BOX,
    ELLIPSOID,
    FRUSTUM,
    NUM_PLANES,
    POLYTOPE,
    Shapes,
    join_shapes,
    move_shapes,
    sort_shapes,
)
from fvgen_recon.render.world.texture import Atlas, make_atlas

Triple = tuple[float | int, float | int, float | int]
"""A position, half sizes or a colour, while a world is being built."""
UP = (0.0, -1.0, 0.0)
"""Worlds have y down and the floor at y = 0; one unit is a metre."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Light:
    """A lamp or the sun, with light from all round."""

    position: Float[Tensor, "3"]
    """Where the lamp is; far away for the sun."""
    radius: float
    """Its size: how soft shadows are."""
    colour: Float[Tensor, "3"]
    """Its light on a surface that faces it from `reach` away."""
    reach: float
    """Distance at which the lamp has its colour; infinite for the sun, which is as bright all
    over."""
    sky: Float[Tensor, "3"]
    """Light from above."""
    ground: Float[Tensor, "3"]
    """Light from below."""


@dataclass(frozen=True, kw_only=True, slots=True)
class World:
    """Solids, textures and lights."""

    shapes: Shapes
    """All solids, sorted by kind."""
    atlas: Atlas
    """Their textures."""
    light: Light
    """What lights them."""
    sky_texture: int
    """Texture of what lies behind everything."""
    haze: float
    """Share of the sky's colour mixed in a metre of distance."""
    kind: str
    """Name of the recipe."""
    focus: Float[Tensor, "3"]
    """What cameras look at."""
    distance: tuple[float, float]
    """Nearest and farthest distance of cameras from the focus."""
    height: tuple[float, float]
    """Least and greatest height of cameras over the floor."""
    bounds: Float[Tensor, "2 3"]
    """Lowest and highest position that a camera may have."""

    def to(self, device: torch.device | str) -> "World":
        """Move shapes and textures to a device; the rest follows when it is needed."""
        values = {name: getattr(self, name) for name in self.__slots__}
        values["shapes"] = self.shapes.to(device)
        values["atlas"] = self.atlas.to(device)
        return World(**values)


def yaw_rotation(angle: float) -> Float[Tensor, "3 3"]:
    """Rotation about the vertical axis."""
    c, s = math.cos(angle), math.sin(angle)
    return torch.tensor([[c, 0.0, s], [0.0, 1.0, 0.0], [-s, 0.0, c]])


@dataclass(frozen=True, kw_only=True, slots=True)
class Paint:
    """What a surface looks like."""

    texture: int
    scale: tuple[float, float]
    """Repeats a metre."""
    tint: Triple = (1.0, 1.0, 1.0)
    gloss: float = 0.0
    glow: float = 0.0


@dataclass
class Painter:
    """Draws textures of a world and remembers them."""

    rng: torch.Generator
    size: int
    device: torch.device
    photos: Float[Tensor, "N 3 S S"] | None
    """Square crops of photos, for some of the surfaces."""
    images: list[Tensor] = field(default_factory=list)
    mirrored: list[bool] = field(default_factory=list)
    names: list[str] = field(default_factory=list)

    def add(self, name: str) -> int:
        """Make a texture by a pattern's name, or a photo's crop for `photo`."""
        is_photo = name == "photo" and self.photos is not None
        if is_photo:
            assert self.photos is not None
            image = self.photos[integer(self.rng, 0, len(self.photos) - 1)].to(self.device)
            image = torch.nn.functional.interpolate(
                image[None], (self.size, self.size), mode="bilinear", antialias=True
            )[0]
        else:
            pattern = "plaster" if name == "photo" else name
            image = PATTERNS[pattern](self.size, self.rng, self.device)
        self.images.append(image)
        self.mirrored.append(is_photo)
        self.names.append(name)
        return len(self.images) - 1

    def paint(self, *names: str, low: float = 0.4, high: float = 1.5, gloss: float = 0.0) -> Paint:
        """Make or reuse a texture of one of these names.

        Args:
            names: Patterns to choose from.
            low: Fewest repeats a metre.
            high: Most repeats a metre.
            gloss: Greatest strength of highlights; half of the surfaces have none.
        """
        name = names[integer(self.rng, 0, len(names) - 1)]
        known = [i for i, other in enumerate(self.names) if other == name]
        reuse = known and chance(self.rng, min(0.8, 0.25 * len(known)))
        texture = known[integer(self.rng, 0, len(known) - 1)] if reuse else self.add(name)
        scale = math.exp(uniform(self.rng, math.log(low), math.log(high)))
        tint = palette(self.rng, 1, vivid=0.15)[0] * 0.5 + 0.5
        shine = uniform(self.rng, 0.0, gloss) if chance(self.rng, 0.5) else 0.0
        tint_row = (float(tint[0]), float(tint[1]), float(tint[2]))
        return Paint(texture=texture, scale=(scale, scale), tint=tint_row, gloss=shine)

    def atlas(self) -> Atlas:
        """All textures made so far."""
        return make_atlas(torch.stack(self.images), torch.tensor(self.mirrored))


class Builder:
    """Collects solids; groups of them can be moved together."""

    def __init__(self, rng: torch.Generator) -> None:
        self.rng = rng
        self.parts: list[Shapes] = []

    def _add(self, kind: int, centre: Tensor, size: Tensor, yaw: float, paint: Paint) -> None:
        shift = torch.rand(1, 2, generator=self.rng)
        self.parts.append(
            Shapes(
                kind=torch.tensor([kind]),
                centre=centre[None].float(),
                rotation=yaw_rotation(yaw)[None],
                size=size[None].float().clamp_min(2e-3),
                taper=torch.zeros(1),
                planes=torch.zeros(1, NUM_PLANES, 4),
                texture=torch.tensor([paint.texture]),
                uv_scale=torch.tensor([paint.scale]),
                uv_shift=shift,
                tint=torch.tensor([paint.tint]),
                gloss=torch.tensor([paint.gloss]),
                glow=torch.tensor([paint.glow]),
            )
        )

    def box(
        self,
        centre: Triple,
        size: Triple,
        paint: Paint,
        *,
        yaw: float = 0.0,
    ) -> None:
        """Add a box of half sides `size`."""
        self._add(BOX, torch.tensor(centre), torch.tensor(size), yaw, paint)

    def picture(self, centre: Triple, size: Triple, paint: Paint) -> None:
        """Add a box whose front (along z) shows a texture exactly once."""
        scale = (0.5 / size[0], 0.5 / size[1])
        self.box(centre, size, replace(paint, scale=scale))
        # The front's texture coordinates are shifted by 0.37 times its axis, 2.
        self.parts[-1].uv_shift[0] = 0.5 - 0.74 * torch.tensor(scale)

    def ball(
        self,
        centre: Triple,
        size: Triple,
        paint: Paint,
        *,
        rotation: Tensor | None = None,
    ) -> None:
        """Add an ellipsoid of half axes `size`."""
        self._add(ELLIPSOID, torch.tensor(centre), torch.tensor(size), 0.0, paint)
        if rotation is not None:
            self.parts[-1].rotation[0] = rotation

    def cone(
        self,
        centre: Triple,
        size: Triple,
        paint: Paint,
        *,
        taper: float = 0.0,
        rotation: Tensor | None = None,
    ) -> None:
        """Add an upright tapered cylinder; positive taper is wider below (y is down)."""
        self._add(FRUSTUM, torch.tensor(centre), torch.tensor(size), 0.0, paint)
        self.parts[-1].taper[0] = taper
        if rotation is not None:
            self.parts[-1].rotation[0] = rotation

    def rock(
        self,
        centre: Triple,
        size: Triple,
        paint: Paint,
        *,
        planes: Tensor | None = None,
        yaw: float = 0.0,
    ) -> None:
        """Add a convex body of given planes, or of random ones."""
        self._add(POLYTOPE, torch.tensor(centre), torch.tensor(size), yaw, paint)
        if planes is None:
            normal = torch.randn(NUM_PLANES, 3, generator=self.rng)
            height = 0.6 + 0.35 * torch.rand(NUM_PLANES, 1, generator=self.rng)
            planes = torch.cat([normal / normal.norm(dim=1, keepdim=True), height], 1)
            # Six of the planes close the body whatever the others are.
            planes[:6, :3] = torch.cat([torch.eye(3), -torch.eye(3)])
        self.parts[-1].planes[0, : len(planes)] = planes
        # Rows that are left must not cut anything: they repeat a plane that is there.
        self.parts[-1].planes[0, len(planes) :] = planes[0]

    def group(self, start: int, *, yaw: float, shift: Triple) -> None:
        """Turn everything added since `start` about the vertical axis, then shift it."""
        turn, move = yaw_rotation(yaw), torch.tensor(shift).float()
        self.parts[start:] = [move_shapes(p, turn, move) for p in self.parts[start:]]

    def finish(self) -> Shapes:
        """All solids, sorted by kind."""
        return sort_shapes(join_shapes(self.parts))


def roof_planes() -> Float[Tensor, "5 4"]:
    """A gable roof along z: two slopes, two ends and a bottom."""
    slope = 1 / math.sqrt(2)
    rows = [
        [slope, -slope, 0.0, slope * 0.999],
        [-slope, -slope, 0.0, slope * 0.999],
        [0.0, 0.0, 1.0, 1.0],
        [0.0, 0.0, -1.0, 1.0],
        [0.0, 1.0, 0.0, 0.0],
    ]
    return torch.tensor(rows)
