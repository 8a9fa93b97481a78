"""A world photographed along a walk: what training takes from this package."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from fvgen_recon.errors import InputError
from fvgen_recon.render.world.recipe import random_world
from fvgen_recon.render.world.tracer import TraceConfig, render_world
from fvgen_recon.render.world.walk import plan_walk
from fvgen_recon.types import Cameras

_WORLDS = 5


@dataclass(frozen=True, kw_only=True, slots=True)
class Capture:
    """Photos along a smooth walk and some views around it, with exact cameras and depth."""

    images: Float[Tensor, "V 3 H W"]
    """Colours in [0, 1]: the walk's frames, then the extra views."""
    cameras: Cameras
    """One camera a photo; metres, y down."""
    depth: Float[Tensor, "V H W"]
    """Z-depth at pixel centres; 0 where the sky is seen."""
    num_frames: int
    """How many of the photos are the walk."""
    gap_deg: float
    """Angle between the first and the last frame at the pivot."""
    kind: str
    """Kind of world."""


def procedural_capture(  # noqa: PLR0913 - each of them is wanted by some caller
    seed: int,
    *,
    num_frames: int = 16,
    num_extras: int = 3,
    height: int = 224,
    width: int = 352,
    gap_deg: float | None = None,
    kind: str | None = None,
    photos: Float[Tensor, "N 3 S S"] | None = None,
    texture_size: int = 512,
    device: torch.device | str = "cpu",
    config: TraceConfig | None = None,
) -> Capture:
    """Photograph a random world along a random walk.

    Args:
        seed: Decides everything.
        num_frames: Photos along the walk.
        num_extras: Photos around it.
        height: In pixels.
        width: In pixels.
        gap_deg: Angle between the walk's ends; drawn from 4 to 42 by default.
        kind: `room`, `table` or `yard`; drawn by default.
        photos: Square crops of photos, for some of the surfaces.
        texture_size: Texels along a texture's side; a power of two.
        device: Where to compute.
        config: Effort and look.

    Raises:
        InputError: There is no such kind of world, or several in a row had no room for a walk.
    """
    for turn in range(_WORLDS):
        inner = seed * _WORLDS + turn
        world = random_world(
            inner, kind=kind, photos=photos, texture_size=texture_size, device=device
        )
        rng = torch.Generator().manual_seed(inner + 1_000_003)
        walk = plan_walk(
            world,
            rng,
            num_frames=num_frames,
            num_extras=num_extras,
            size=(height, width),
            gap_deg=gap_deg,
        )
        if walk is None:
            continue
        render = render_world(world, walk.cameras, config)
        return Capture(
            images=render.images,
            cameras=walk.cameras.to(device),
            depth=render.depth,
            num_frames=num_frames,
            gap_deg=walk.gap_deg,
            kind=world.kind,
        )
    raise InputError(
        f"No room for a camera walk was found in {_WORLDS} worlds of seed {seed}: take another."
    )
