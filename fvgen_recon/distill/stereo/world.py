"""Procedural worlds to train stereo on: exact depth everywhere, of rooms and what stands in them.

Where one photo alone looks, a network has to know how floors, walls and things go on; photos of
real scenes teach that only where further photos of the same scene measured it.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float, UInt8
from safetensors.torch import load_file, save_file
from torch import Tensor

from fvgen_recon.distill.stereo.bank import RealScene, relate_photos
from fvgen_recon.io.file import atomic_path
from fvgen_recon.render.world import procedural_capture
from fvgen_recon.types import Cameras

_NUM_EXTRAS = 6
_GAPS_DEG = (15.0, 140.0)
_RATIOS = (0.6, 0.75, 1.5)
"""Heights over widths."""


@dataclass(frozen=True, kw_only=True, slots=True)
class WorldPhotos:
    """Photos of a world with what is known of them."""

    photos: UInt8[Tensor, "V 3 H W"]
    cameras: Cameras
    inverse_depth: Float[Tensor, "V H W"]
    """0 where the sky is seen."""


def photograph_world(
    seed: int,
    crops: Float[Tensor, "N 3 S S"] | None,
    *,
    long_side: int,
    num_views: int,
    device: torch.device,
) -> WorldPhotos:
    """Photograph a random world along a wide walk, and from around it.

    Args:
        seed: Decides everything.
        crops: Squares cut out of photos, for some of the surfaces.
        long_side: Of the photos, in pixels.
        num_views: Photos in all.
        device: Where to compute; the result is on the CPU.

    Raises:
        InputError: No room for a walk was found.
    """
    rng = torch.Generator().manual_seed(seed)
    low, high = _GAPS_DEG
    ratio = _RATIOS[seed % len(_RATIOS)]
    height, width = (long_side, long_side / ratio) if ratio > 1 else (long_side * ratio, long_side)
    capture = procedural_capture(
        seed,
        num_frames=num_views - _NUM_EXTRAS,
        num_extras=_NUM_EXTRAS,
        height=16 * round(height / 16),
        width=16 * round(width / 16),
        gap_deg=low + (high - low) * float(torch.rand((), generator=rng)),
        photos=crops,
        texture_size=256,
        device=device,
    )
    depth = capture.depth.cpu()
    return WorldPhotos(
        photos=(capture.images.clamp(0, 1) * 255).round().byte().cpu(),
        cameras=capture.cameras.to("cpu"),
        inverse_depth=torch.where(depth > 0, 1 / depth.clamp_min(1e-6), 0.0),
    )


def save_world(path: Path, world: WorldPhotos) -> None:
    """Write a world; it appears under its name only when complete."""
    tensors = {
        "photos": world.photos,
        "c2w": world.cameras.c2w,
        "K": world.cameras.K,
        "inverse_depth": world.inverse_depth,
    }
    with atomic_path(path) as target:
        save_file({k: v.contiguous() for k, v in tensors.items()}, target)


def load_world(path: Path, device: torch.device) -> RealScene | None:
    """Read what `save_world` wrote; none where no two views fit."""
    content = load_file(path)
    height, width = content["photos"].shape[-2:]
    cameras = Cameras(c2w=content["c2w"], K=content["K"], height=height, width=width)
    return relate_photos(path.stem, content["photos"], cameras, content["inverse_depth"], device)
