"""Working sizes: generators want small images whose sides are multiples of a number."""

from dataclasses import replace

import torch
import torch.nn.functional as F

from fvgen_recon.errors import InputError
from fvgen_recon.types import Scene


def working_size(height: int, width: int, long_side: int, multiple: int) -> tuple[int, int]:
    """Choose the image size that a generator works at.

    Args:
        height: Height of the photos in pixels.
        width: Width of the photos in pixels.
        long_side: Wanted length of the longer side in pixels; never enlarged beyond the photos by
            more than the rounding to `multiple`.
        multiple: Both sides become multiples of this, at least one of it.

    Returns:
        Height and width whose aspect ratio is as near to the photos' as the rounding allows.

    Raises:
        InputError: The longer side has no pixel.
    """
    if long_side < 1:
        raise InputError(f"Images need at least one pixel: a long_side of {long_side} came.")
    scale = min(1.0, long_side / max(height, width))
    sides = (max(multiple, round(side * scale / multiple) * multiple) for side in (height, width))
    new_height, new_width = sides
    return new_height, new_width


def fit_scene(scene: Scene, height: int, width: int) -> Scene:
    """Resize photos to cover the size, then crop the centre; cameras follow exactly.

    Points that came with the scene are world points and stay as they are.
    """
    old_height, old_width = scene.images.shape[-2:]
    scale = max(height / old_height, width / old_width)
    cover = (max(height, round(old_height * scale)), max(width, round(old_width * scale)))
    images = F.interpolate(
        scene.images, cover, mode="bilinear", antialias=True, align_corners=False
    )
    top, left = (cover[0] - height) // 2, (cover[1] - width) // 2
    resized = scene.cameras.resize(*cover)
    shift = torch.zeros_like(resized.K)
    shift[..., 0, 2], shift[..., 1, 2] = left, top
    cameras = replace(resized, K=resized.K - shift, height=height, width=width)
    cropped = images[..., top : top + height, left : left + width].clamp(0, 1).contiguous()
    return replace(scene, images=cropped, cameras=cameras)
