"""Smooth camera walks through worlds, in free space, with the gap between the ends as asked."""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from fvgen_recon.geometry.rigid import look_at
from fvgen_recon.render.world.pattern import chance, uniform
from fvgen_recon.render.world.shape import inside_any
from fvgen_recon.render.world.tracer import trace_depth
from fvgen_recon.render.world.world import UP, World
from fvgen_recon.types import Cameras

_TRIES = 60
_CLEAR = 0.08
"""Metres that cameras keep from solids."""
_PREVIEW = (20, 32)


@dataclass(frozen=True, kw_only=True, slots=True)
class Walk:
    """A smooth row of cameras, and further ones that look at the same part."""

    cameras: Cameras
    """The walk's frames, then the extra views."""
    num_frames: int
    """How many of them are the walk."""
    gap_deg: float
    """Angle between the first and the last frame at the pivot."""


def plan_walk(
    world: World,
    rng: torch.Generator,
    *,
    num_frames: int,
    num_extras: int,
    size: tuple[int, int],
    gap_deg: float | None = None,
) -> Walk | None:
    """Plan a walk: an arc round a pivot, sideways or forwards, with the shake of a hand.

    Args:
        world: Where to walk.
        rng: Decides everything else.
        num_frames: Cameras along the walk.
        num_extras: Cameras around it.
        size: Height and width of the images.
        gap_deg: Angle between the ends; drawn from 4 to 42 by default.

    Returns:
        The walk, or none where no free space was found.
    """
    field = uniform(rng, 42.0, 72.0)
    for _ in range(_TRIES):
        gap = gap_deg if gap_deg is not None else uniform(rng, 4.0, 42.0)
        position, target, pivot = _draw(world, rng, num_frames, num_extras, gap)
        if not _is_free(world, position):
            continue
        roll = _shake(num_frames, rng, 0.02)
        roll = torch.cat([roll, 0.03 * torch.randn(num_extras, generator=rng)])
        c2w = _tilt(look_at(position, target, torch.tensor(UP)), roll)
        cameras = _lens(c2w, size, field)
        if _is_worth_it(world, cameras, target):
            ends = position[[0, num_frames - 1]] - pivot
            cosine = F.cosine_similarity(ends[0], ends[1], dim=0).clamp(-1, 1)
            angle = math.degrees(float(torch.arccos(cosine)))
            return Walk(cameras=cameras, num_frames=num_frames, gap_deg=angle)
    return None


def _draw(
    world: World, rng: torch.Generator, num_frames: int, num_extras: int, gap: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Positions and targets of a walk and of its extra views, and the pivot."""
    pivot = world.focus + 0.25 * world.distance[0] * torch.randn(3, generator=rng)
    pivot[1] = world.focus[1] + 0.1 * float(torch.randn((), generator=rng))
    distance = math.exp(uniform(rng, *(math.log(d) for d in world.distance)))
    height = uniform(rng, *world.height)
    azimuth = uniform(rng, 0.0, 2 * math.pi)
    # Seen from above, a turn about the vertical axis is a smaller angle at the pivot.
    slant = math.hypot(1.0, (height + float(pivot[1])) / distance)
    spread = 2 * math.asin(min(1.0, slant * math.sin(math.radians(gap) / 2)))
    share = torch.linspace(0, 1, num_frames)
    if chance(rng, 0.3):
        share = (share + uniform(rng, -0.15, 0.15) * torch.sin(2 * math.pi * share)).clamp(0, 1)
    around = azimuth + spread * share
    radius = distance * (1 + uniform(rng, -0.25, 0.25) * share)
    rise = height + uniform(rng, -0.2, 0.2) * distance * share
    if chance(rng, 0.35):  # Sideways along the chord instead of the arc.
        ends = _ring(pivot, around[[0, -1]], radius[[0, -1]], rise[[0, -1]])
        position = torch.lerp(ends[0], ends[1], share[:, None])
    else:
        position = _ring(pivot, around, radius, rise)
    steady = 0.012 * distance * uniform(rng, 0.0, 1.0)
    position = position + torch.stack([_shake(num_frames, rng, steady) for _ in range(3)], -1)
    extra_around = azimuth + spread * torch.empty(num_extras).uniform_(-0.7, 1.7, generator=rng)
    extra_around = extra_around + 0.12 * torch.randn(num_extras, generator=rng)
    extra_radius = distance * torch.empty(num_extras).uniform_(0.8, 1.25, generator=rng)
    extra_rise = height + 0.2 * distance * torch.randn(num_extras, generator=rng)
    extras = _ring(pivot, extra_around, extra_radius, extra_rise)
    aim = pivot + 0.12 * distance * torch.randn(3, generator=rng)
    drift = 0.1 * distance * torch.randn(3, generator=rng)
    target = aim + share[:, None] * drift
    target = target + torch.stack([_shake(num_frames, rng, steady) for _ in range(3)], -1)
    off = aim + 0.12 * distance * torch.randn(num_extras, 3, generator=rng)
    return torch.cat([position, extras]), torch.cat([target, off]), pivot


def _ring(pivot: Tensor, around: Tensor, radius: Tensor, rise: Tensor) -> Float[Tensor, "N 3"]:
    """Positions at a horizontal distance from the pivot and a height over the floor."""
    x = pivot[0] + radius * around.sin()
    z = pivot[2] + radius * around.cos()
    return torch.stack([x, -rise.clamp_min(0.05), z], -1)


def _shake(count: int, rng: torch.Generator, amount: float) -> Float[Tensor, "N"]:
    """Smooth noise over a walk."""
    knots = torch.randn(1, 1, max(2, count // 3), generator=rng)
    return amount * F.interpolate(knots, count, mode="linear", align_corners=True)[0, 0]


def _tilt(c2w: Tensor, roll: Tensor) -> Tensor:
    """Turn cameras about their axes."""
    c, s = roll.cos()[:, None], roll.sin()[:, None]
    x, y = c2w[:, :3, 0].clone(), c2w[:, :3, 1].clone()
    c2w = c2w.clone()
    c2w[:, :3, 0], c2w[:, :3, 1] = c * x + s * y, c * y - s * x
    return c2w


def _lens(c2w: Tensor, size: tuple[int, int], field_deg: float) -> Cameras:
    height, width = size
    focal = 0.5 * max(size) / math.tan(math.radians(field_deg) / 2)
    K = torch.tensor([[focal, 0, width / 2], [0, focal, height / 2], [0, 0, 1.0]])
    return Cameras(c2w=c2w, K=K.expand(len(c2w), 3, 3).clone(), height=height, width=width)


def _is_free(world: World, position: Tensor) -> bool:
    """Whether all cameras are within bounds and outside of solids."""
    low, high = world.bounds
    if bool(((position < low) | (position > high)).any()):
        return False
    return not bool(inside_any(world.shapes, position.to(world.shapes.centre.device), _CLEAR).any())


def _is_worth_it(world: World, cameras: Cameras, target: Tensor) -> bool:
    """Whether the ends, the middle and the extra views see something, and not from too near."""
    picks = sorted({0, len(cameras) // 3, 2 * len(cameras) // 3, len(cameras) - 1})
    for camera, aim in zip(cameras[picks].resize(*_PREVIEW), target[picks], strict=True):
        depth = trace_depth(world, camera)
        wanted = float((aim - camera.position).norm())
        seen = depth[depth > 0]
        if seen.numel() < 0.4 * depth.numel():
            return False
        if float(seen.quantile(0.05)) < 0.2 * wanted or float(seen.median()) < 0.5 * wanted:
            return False
    return True
