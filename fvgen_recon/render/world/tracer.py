"""Photographs worlds: one ray for depth, several for colour, shadow and the light of corners.

Surfaces are diffuse with a weak highlight. Lamps have a size: each of a pixel's rays looks towards
another part of the lamp and into another direction of the half space, so that shadows are soft and
corners dark, without noise that would differ between views.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from fvgen_recon.geometry.projection import pixel_centres
from fvgen_recon.geometry.rigid import normalise
from fvgen_recon.render.procedural import ProceduralRender
from fvgen_recon.render.world.shape import (
    FAR,
    Shapes,
    first_hit,
    in_cone,
    near_segment,
    surface_at,
)
from fvgen_recon.render.world.texture import sample_atlas
from fvgen_recon.render.world.world import World
from fvgen_recon.types import Cameras

_LIFT = 1e-3
"""How far above a surface shadow rays start, in metres."""
_REACH = 0.9
"""Distance within which solids darken a corner."""
_GOLDEN = math.pi * (3 - math.sqrt(5))


@dataclass(frozen=True, kw_only=True, slots=True)
class TraceConfig:
    """Effort and look of the photographs."""

    supersample: int = 2
    """Rays a pixel side."""
    tile: int | None = None
    """Side in pixels of the squares that are traced at once; by default 256 on a GPU,
    where launches count, and 32 on a CPU, where solids out of sight do."""
    shadows: bool = True
    corners: bool = True
    """Whether solids near a surface take light from all round away."""
    exposure: float | None = None
    """Factor of all light; by default such that the first image has a mean brightness of 0.45."""


class _Hits(NamedTuple):
    """Rays that met solids: from where, whither, how far, which solid, which of a pixel's rays."""

    origin: Float[Tensor, "3"]
    rays: Float[Tensor, "P 3"]
    distance: Float[Tensor, "P"]
    which: Int[Tensor, "P"]
    phase: Int[Tensor, "P"]


def camera_directions(camera: Cameras) -> Float[Tensor, "H W 3"]:
    """Return world ray directions with z = 1 in the camera, without a matrix product."""
    points = pixel_centres(camera.height, camera.width, camera.K)
    y = (points[..., 1] - camera.K[1, 2]) / camera.K[1, 1]
    x = (points[..., 0] - camera.K[0, 2] - camera.K[0, 1] * y) / camera.K[0, 0]
    local = torch.stack([x, y, torch.ones_like(x)], -1)
    return (camera.c2w[:3, :3] * local[..., None, :]).sum(-1)


def render_world(
    world: World, cameras: Cameras, config: TraceConfig | None = None
) -> ProceduralRender:
    """Photograph a world.

    Args:
        world: What to photograph; images lie on its device.
        cameras: V cameras.
        config: Effort and look.

    Returns:
        Images and z-depth at pixel centres; depth is 0 where the sky is seen.
    """
    config = config or TraceConfig()
    cameras = cameras.to(world.shapes.centre.device)
    light, exposure = [], config.exposure
    for camera in cameras:
        light.append(_photograph(world, camera, config))
        if exposure is None:
            exposure = _expose(light[0])
    assert exposure is not None
    images = torch.stack([_develop(image * exposure) for image in light])
    depth = torch.stack([trace_depth(world, camera) for camera in cameras])
    return ProceduralRender(images=images, depth=depth)


def _expose(light: Tensor) -> float:
    """Find the factor that brings the mean brightness to 0.45, by bisection."""
    low, high = 1e-3, 1e3
    for _ in range(24):
        middle = math.sqrt(low * high)
        if float(_develop(light * middle).mean()) < 0.45:
            low = middle
        else:
            high = middle
    return math.sqrt(low * high)


def _develop(light: Tensor) -> Tensor:
    """Compress highlights, then gamma."""
    return (light * (1 + light / 9) / (1 + light)).clamp(0, 1) ** (1 / 2.2)


def trace_depth(world: World, camera: Cameras) -> Float[Tensor, "H W"]:
    """Return z-depth at pixel centres; 0 where nothing is hit."""
    device = world.shapes.centre.device
    rays = camera_directions(camera.to(device))
    side = _tile_side(None, rays.device)
    rows = []
    for row in rays.split(side, 0):
        parts = [_depth_of(world, camera.position.to(device), p) for p in row.split(side, 1)]
        rows.append(torch.cat(parts, 1))
    return torch.cat(rows)


def _depth_of(world: World, origin: Tensor, rays: Tensor) -> Tensor:
    flat = rays.reshape(-1, 3)
    distance, _ = first_hit(_seen(world.shapes, origin, flat), origin[None], flat)
    return torch.where(distance < FAR, distance, 0).reshape(rays.shape[:2])


def _tile_side(tile: int | None, device: torch.device) -> int:
    return tile or (256 if device.type == "cuda" else 32)


def _photograph(world: World, camera: Cameras, config: TraceConfig) -> Float[Tensor, "3 H W"]:
    """Return linear light."""
    fine = config.supersample
    rays = camera_directions(camera.resize(camera.height * fine, camera.width * fine))
    grid = torch.arange(fine, device=rays.device)
    phase = (grid[:, None] * fine + grid).repeat(camera.height, camera.width)
    side = _tile_side(config.tile, rays.device) * fine
    width = float(camera.K[0, 0].reciprocal()) / fine
    rows = []
    for strip, phases in zip(rays.split(side, 0), phase.split(side, 0), strict=True):
        parts = [
            _shade_tile(world, camera.position, r, p, config, width)
            for r, p in zip(strip.split(side, 1), phases.split(side, 1), strict=True)
        ]
        rows.append(torch.cat(parts, 1))
    return F.avg_pool2d(torch.cat(rows).permute(2, 0, 1), fine)


def _seen(shapes: Shapes, origin: Tensor, rays: Tensor) -> Shapes:
    """Drop solids outside the cone of some rays."""
    unit = normalise(rays)
    axis = normalise(unit.mean(0))
    half_angle = float(torch.arccos((unit * axis).sum(-1).amin().clamp(-1, 1)))
    return shapes[in_cone(shapes, origin, axis, half_angle + 1e-3)]


def _shade_tile(
    world: World, origin: Tensor, rays: Tensor, phase: Tensor, config: TraceConfig, width: float
) -> Float[Tensor, "h w 3"]:
    flat = rays.reshape(-1, 3)
    shapes = _seen(world.shapes, origin, flat)
    sky = _sky(world, flat)
    if len(shapes) == 0:
        return sky.reshape(rays.shape)
    distance, which = first_hit(shapes, origin[None], flat)
    hit = torch.nonzero(distance < FAR)[:, 0]
    if len(hit):
        hits = _Hits(origin, flat[hit], distance[hit], which[hit], phase.flatten()[hit])
        colour = _shade(world, shapes, hits, config, width)
        clear = torch.exp(-world.haze * distance[hit])[:, None]
        sky[hit] = torch.lerp(sky[hit], colour, clear)
    return sky.reshape(rays.shape)


def _sky(world: World, rays: Tensor) -> Tensor:
    """Look up the sky, the map of directions from the zenith (top row) to the horizon."""
    unit = normalise(rays)
    around = torch.atan2(unit[:, 0], unit[:, 2]) / math.pi
    down = 1 - torch.asin((-unit[:, 1]).clamp(0, 1)) / (math.pi / 2)
    uv = torch.stack([2 * around, down.clamp(0.01, 0.99)], -1)
    texture = torch.full_like(around, world.sky_texture, dtype=torch.long)
    return sample_atlas(world.atlas, texture, uv, torch.full_like(around, 1 / 256))


def _shade(
    world: World,
    shapes: Shapes,
    hits: _Hits,
    config: TraceConfig,
    width: float,
) -> Float[Tensor, "P 3"]:
    origin, rays, distance, which, phase = hits
    point = origin + distance[:, None] * rays
    normal, uv = surface_at(shapes, which, point)
    view = normalise(-rays)
    facing = (normal * view).sum(-1)
    footprint = width * distance * shapes.uv_scale[which].amax(-1) / facing.clamp_min(0.08).sqrt()
    albedo = sample_atlas(world.atlas, shapes.texture[which], uv, footprint) * shapes.tint[which]
    start = point + _LIFT * normal
    light = world.light
    open_share = _openness(world.shapes, start, normal, phase, config)
    share = (0.5 - 0.5 * normal[:, 1:2]).clamp(0, 1)
    sky, ground = light.sky.to(point.device), light.ground.to(point.device)
    colour = albedo * torch.lerp(ground, sky, share) * open_share[:, None]
    towards = _lamp(world, phase, config).to(point.device) - start
    bright = _brightness(world, shapes, start, towards, normal, config)
    colour = colour + albedo * bright[:, None] * light.colour.to(point.device)
    half = normalise(normalise(towards) + view)
    shine = (normal * half).sum(-1).clamp_min(0) ** 40 * shapes.gloss[which] * bright
    return colour + shine[:, None] + albedo * shapes.glow[which][:, None]


def _lamp(world: World, phase: Tensor, config: TraceConfig) -> Tensor:
    """The part of the lamp that each ray looks at: a sunflower's seeds on a disk."""
    total = config.supersample**2
    seed = torch.arange(total, dtype=torch.float32)
    radius, angle = ((seed + 0.5) / total).sqrt() * world.light.radius, seed * _GOLDEN
    offset = torch.stack([radius * angle.cos(), 0.3 * radius, radius * angle.sin()], -1)
    return (world.light.position + offset).to(phase.device)[phase]


def _brightness(
    world: World,
    shapes: Shapes,
    start: Tensor,
    towards: Tensor,
    normal: Tensor,
    config: TraceConfig,
) -> Float[Tensor, "P"]:
    """Light of the lamp on surface points."""
    reach, distance = world.light.reach, towards.norm(dim=-1)
    bright = (normal * towards).sum(-1).clamp_min(0) / distance
    if math.isfinite(reach):
        bright = bright * (reach / distance.clamp_min(0.3 * reach)) ** 2
    if not config.shadows:
        return bright
    lit = torch.nonzero(bright > 1e-4)[:, 0]
    if len(lit) == 0:
        return bright
    begin, step = start[lit], towards[lit]
    middle, radius = _ball(begin)
    end = (begin + step).mean(0)
    spread = radius + world.light.radius
    blocking = world.shapes[near_segment(world.shapes, middle, end, spread)]
    if len(blocking):
        block, _ = first_hit(blocking, begin, step)
        bright = bright.index_put((lit,), bright[lit] * (block > 1).to(bright.dtype))
    return bright


def _ball(points: Tensor) -> tuple[Tensor, float]:
    low, high = points.amin(0), points.amax(0)
    return (low + high) / 2, float((high - low).norm()) / 2


def _openness(
    shapes: Shapes, start: Tensor, normal: Tensor, phase: Tensor, config: TraceConfig
) -> Float[Tensor, "P"]:
    """Share of the light from all round that arrives: one direction of the half space a ray."""
    if not config.corners:
        return torch.ones_like(start[:, 0])
    total = config.supersample**2
    share, angle = (phase + 0.5) / total, phase * _GOLDEN
    helper = torch.where(normal[:, 1:2].abs() > 0.9, 1.0, 0.0)
    other = torch.cat([helper, 1 - helper, 0 * helper], 1)
    x = normalise(torch.linalg.cross(other, normal))
    y = torch.linalg.cross(normal, x)
    flat = share.sqrt()
    ray = (flat * angle.cos())[:, None] * x + (flat * angle.sin())[:, None] * y
    ray = ray + (1 - share).sqrt()[:, None] * normal
    middle, radius = _ball(start)
    near = shapes[near_segment(shapes, middle, middle, radius + _REACH)]
    if len(near) == 0:
        return torch.ones_like(start[:, 0])
    distance, _ = first_hit(near, start, ray)
    return (distance / _REACH).clamp(0, 1).sqrt() * 0.85 + 0.15
