"""Videos out."""

from pathlib import Path

import imageio.v2 as imageio
import torch
from jaxtyping import Float
from torch import Tensor

from fvgen_recon.io.file import atomic_path


def write_video(path: Path, frames: Float[Tensor, "T 3 H W"], fps: float) -> None:
    """Write frames in [0, 1] as an H.264 mp4 of high quality, atomically.

    H.264 needs even sizes: an odd last row or column is cut off.
    """
    height, width = (side - side % 2 for side in frames.shape[-2:])
    pixels = (frames[..., :height, :width].clamp(0, 1) * 255).round().to(torch.uint8)
    pictures = list(pixels.permute(0, 2, 3, 1).cpu().numpy())
    with atomic_path(Path(path)) as temporary:
        imageio.mimwrite(temporary, pictures, fps=fps, quality=8, macro_block_size=1)
