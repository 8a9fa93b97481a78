"""Procedural scenes with exact cameras and depth: textured solids in a textured room, ray traced.

Used for the bundled example, for tests and as training data in any number. Everything is torch,
so it runs on a GPU too. Shading is diffuse with a hard shadow: appearance does not change with
the viewpoint, as multi-view stereo and splats assume.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from fvgen_recon.geometry.projection import camera_rays
from fvgen_recon.geometry.rigid import look_at, normalise
from fvgen_recon.types import Cameras

_FAR = 1e6
_EPS = 1e-4


@dataclass(frozen=True, kw_only=True, slots=True)
class Texture:
    """A solid texture: colours mixed by noise over several octaves, checks or stripes."""

    palette: Float[Tensor, "3 3"]
    """Three colours in [0, 1]."""
    frequency: float
    """Cells of the coarsest noise a world unit."""
    checks: float
    """Checks a world unit; 0 for none."""
    seed: int
    """Seed of the noise lattice."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Solid:
    """A sphere or a box."""

    is_sphere: bool
    """Sphere of radius `size[0]`, or box of half sides `size`."""
    centre: Float[Tensor, "3"]
    """World position."""
    rotation: Float[Tensor, "3 3"]
    """Object-to-world rotation."""
    size: Float[Tensor, "3"]
    """Radius or half sides in world units."""
    texture: Texture
    """What its surface looks like."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ProceduralScene:
    """A room (a box seen from inside) with solids in it."""

    room: Solid
    """The surrounding box."""
    solids: tuple[Solid, ...]
    """What stands in it."""
    light: Float[Tensor, "3"]
    """Unit direction towards the light."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ProceduralRender:
    """Photos of a procedural scene with their exact depth."""

    images: Float[Tensor, "V 3 H W"]
    """Colours in [0, 1]."""
    depth: Float[Tensor, "V H W"]
    """Z-depth at pixel centres in world units."""


def _local(solid: Solid, vector: Tensor) -> Tensor:
    return vector @ solid.rotation


def _hit_sphere(solid: Solid, origin: Tensor, ray: Tensor) -> Tensor:
    offset = origin - solid.centre
    a, b = (ray * ray).sum(-1), (offset * ray).sum(-1)
    c = (offset * offset).sum(-1) - solid.size[0] ** 2
    discriminant = b * b - a * c
    distance = (-b - discriminant.clamp_min(0).sqrt()) / a
    return torch.where((discriminant > 0) & (distance > _EPS), distance, _FAR)


def _hit_box(solid: Solid, origin: Tensor, ray: Tensor, *, from_inside: bool) -> Tensor:
    """Return distances by the slab method: the near side, or the far one from inside."""
    position, direction = _local(solid, origin - solid.centre), _local(solid, ray)
    inverse = 1 / torch.where(direction.abs() < 1e-9, torch.full_like(direction, 1e-9), direction)
    first, second = (-solid.size - position) * inverse, (solid.size - position) * inverse
    enter = torch.minimum(first, second).amax(-1)
    leave = torch.maximum(first, second).amin(-1)
    if from_inside:
        return torch.where(leave > _EPS, leave, _FAR)
    return torch.where((leave > enter) & (enter > _EPS), enter, _FAR)


def _hit(solid: Solid, origin: Tensor, ray: Tensor) -> Tensor:
    if solid.is_sphere:
        return _hit_sphere(solid, origin, ray)
    return _hit_box(solid, origin, ray, from_inside=False)


def _normal(solid: Solid, point: Tensor) -> Tensor:
    """Return outward unit normals at surface points."""
    if solid.is_sphere:
        return normalise(point - solid.centre)
    local = _local(solid, point - solid.centre) / solid.size
    axis = local.abs().argmax(-1, keepdim=True)
    one_hot = torch.zeros_like(local).scatter_(-1, axis, local.gather(-1, axis).sign())
    return one_hot @ solid.rotation.T


def _lattice(cell: Tensor, seed: int) -> Tensor:
    """Hash integer lattice points to numbers in [0, 1)."""
    x, y, z = cell.unbind(-1)
    mixed = (x * 73856093) ^ (y * 19349663) ^ (z * 83492791) ^ (seed * 2654435761)
    mixed = (mixed ^ (mixed >> 13)) * 1274126177
    return ((mixed ^ (mixed >> 16)) & 0xFFFF).to(torch.float32) / 65536.0


def value_noise(point: Float[Tensor, "P 3"], seed: int) -> Float[Tensor, "P"]:
    """Return smooth noise in [0, 1) with one lattice cell a unit."""
    base = point.floor()
    weight = point - base
    weight = weight * weight * (3 - 2 * weight)
    cell = base.to(torch.int64)
    total = torch.zeros_like(point[:, 0])
    for corner in range(8):
        offset = torch.tensor([corner & 1, corner >> 1 & 1, corner >> 2 & 1], device=point.device)
        share = torch.where(offset.bool(), weight, 1 - weight).prod(-1)
        total = total + share * _lattice(cell + offset, seed)
    return total


def _albedo(texture: Texture, point: Tensor) -> Tensor:
    """Colour a solid texture at object-space points."""
    scaled = point * texture.frequency
    octaves = [value_noise(scaled * 2**k, texture.seed + k) * 0.6**k for k in range(5)]
    noise = sum(octaves[1:], octaves[0]) / sum(0.6**k for k in range(5))
    mix = ((noise - 0.5) * 2.4 + 0.5).clamp(0, 1)[:, None]
    colour = texture.palette[0] * (1 - mix) + texture.palette[1] * mix
    if texture.checks > 0:
        check = (point * texture.checks).floor().sum(-1).remainder(2) > 0
        colour = torch.where(check[:, None], colour, 0.5 * colour + 0.5 * texture.palette[2])
    fine = value_noise(scaled * 13.0, texture.seed + 17)[:, None]
    return (colour * (0.85 + 0.3 * fine)).clamp(0, 1)


def _trace(
    scene: ProceduralScene, origin: Tensor, ray: Tensor
) -> tuple[Float[Tensor, "P 3"], Float[Tensor, "P"]]:
    """Return colours and ray parameters (z-depth, since rays have z = 1) of the nearest hits."""
    everything = (scene.room, *scene.solids)
    hits = [_hit_box(scene.room, origin, ray, from_inside=True)]
    hits += [_hit(solid, origin, ray) for solid in scene.solids]
    depth, which = torch.stack(hits).min(0)
    point = origin + depth[:, None] * ray
    colour = torch.zeros_like(point)
    for index, solid in enumerate(everything):
        chosen = torch.nonzero(which == index).flatten()
        if chosen.numel() == 0:
            continue
        surface = point[chosen]
        normal = _normal(solid, surface) * (-1.0 if index == 0 else 1.0)
        lit = (normal @ scene.light).clamp_min(0) * _visible(scene, surface + 1e-3 * normal)
        shade = 0.55 + 0.45 * lit
        local = _local(solid, surface - solid.centre)
        colour[chosen] = _albedo(solid.texture, local) * shade[:, None]
    return colour, depth


def _visible(scene: ProceduralScene, point: Tensor) -> Tensor:
    """Return 1 where no solid stands between a point and the light, else 0."""
    light = scene.light.expand_as(point)
    blocked = torch.zeros_like(point[:, 0], dtype=torch.bool)
    for solid in scene.solids:
        blocked |= _hit(solid, point, light) < _FAR
    return (~blocked).to(point.dtype)


def render_procedural(
    scene: ProceduralScene, cameras: Cameras, *, supersample: int = 2
) -> ProceduralRender:
    """Photograph a procedural scene.

    Args:
        scene: What to photograph.
        cameras: V cameras inside the room.
        supersample: Rays a pixel side; colours are averaged, depth is taken at pixel centres.
    """
    images, depths = [], []
    for camera in cameras:
        fine = camera.resize(camera.height * supersample, camera.width * supersample)
        colour, _ = _photograph(scene, fine)
        images.append(F.avg_pool2d(colour[None], supersample)[0])
        depths.append(_photograph(scene, camera)[1])
    return ProceduralRender(images=torch.stack(images), depth=torch.stack(depths))


def _photograph(scene: ProceduralScene, camera: Cameras) -> tuple[Tensor, Tensor]:
    rays = camera_rays(camera).reshape(-1, 3)
    colour, depth = _trace(scene, camera.position.expand_as(rays), rays)
    size = (camera.height, camera.width)
    return colour.T.reshape(3, *size), depth.reshape(size)


def random_scene(seed: int, *, num_solids: int = 10) -> ProceduralScene:
    """Make a random room of about 8 x 4 x 8 units with solids near its centre, y down."""
    rng = torch.Generator().manual_seed(seed)
    solids = tuple(_random_solid(rng, _palette(rng)) for _ in range(num_solids))
    room = Solid(
        is_sphere=False,
        centre=torch.zeros(3),
        rotation=torch.eye(3),
        size=torch.tensor([4.0, 2.0, 4.0]),
        texture=_random_texture(rng, _palette(rng), 0.5, 2.5),
    )
    light = torch.tensor([0.5, -1.0, -0.4]) + 0.6 * (torch.rand(3, generator=rng) - 0.5)
    return ProceduralScene(room=room, solids=solids, light=normalise(light))


def _palette(rng: torch.Generator) -> Tensor:
    """Draw three colours of different brightness."""
    level = torch.tensor([[0.25], [0.6], [0.85]])[torch.randperm(3, generator=rng)]
    return (level + 0.5 * (torch.rand(3, 3, generator=rng) - 0.5)).clamp(0.02, 0.98)


def _uniform(rng: torch.Generator, low: float, high: float) -> float:
    return low + (high - low) * float(torch.rand((), generator=rng))


def _random_texture(rng: torch.Generator, palette: Tensor, low: float, high: float) -> Texture:
    checks = _uniform(rng, 0.8, 3.0) if _uniform(rng, 0.0, 1.0) < 0.4 else 0.0
    seed = int(torch.randint(1 << 20, (), generator=rng))
    return Texture(palette=palette, frequency=_uniform(rng, low, high), checks=checks, seed=seed)


def _random_solid(rng: torch.Generator, palette: Tensor) -> Solid:
    yaw = _uniform(rng, 0.0, math.pi)
    rotation = torch.tensor(
        [[math.cos(yaw), 0, math.sin(yaw)], [0, 1, 0], [-math.sin(yaw), 0, math.cos(yaw)]]
    )
    is_sphere = _uniform(rng, 0.0, 1.0) < 0.4
    size = torch.rand(3, generator=rng) * 0.45 + 0.2
    if is_sphere:
        size = size[0].expand(3).clone()
    position = (torch.rand(3, generator=rng) - 0.5) * torch.tensor([3.6, 0.0, 3.6])
    position[1] = 2.0 - float(size[1]) - _uniform(rng, 0.0, 1.0) * (_uniform(rng, 0.0, 1.0) < 0.3)
    return Solid(
        is_sphere=is_sphere,
        centre=position,
        rotation=rotation,
        size=size,
        texture=_random_texture(rng, palette, 1.0, 5.0),
    )


def arc_cameras(
    azimuths_deg: Sequence[float], *, radius: float, height: int, width: int, fov_deg: float = 60.0
) -> Cameras:
    """Place cameras on an arc around the room's centre, a little above the solids."""
    angle = torch.deg2rad(torch.tensor(list(azimuths_deg), dtype=torch.float32))
    lift = 0.25 * torch.sin(2 * angle)
    position = torch.stack([radius * angle.sin(), lift, -radius * angle.cos()], dim=-1)
    target = torch.tensor([0.0, 1.1, 0.0]).expand_as(position)
    c2w = look_at(position, target, torch.tensor([0.0, -1.0, 0.0]))
    focal = 0.5 * width / math.tan(math.radians(fov_deg) / 2)
    K = torch.tensor([[focal, 0, width / 2], [0, focal, height / 2], [0, 0, 1.0]])
    return Cameras(c2w=c2w, K=K.expand(len(angle), 3, 3).clone(), height=height, width=width)
