"""Comparison with numeric fixtures made by running the original."""

from collections.abc import Callable
from pathlib import Path

from fvgen_recon.diffusion.viewcrafter.parity.clip import compare_clip
from fvgen_recon.diffusion.viewcrafter.parity.ddim import compare_ddim
from fvgen_recon.diffusion.viewcrafter.parity.resampler import compare_resampler
from fvgen_recon.diffusion.viewcrafter.parity.unet import compare_unet
from fvgen_recon.diffusion.viewcrafter.parity.vae import compare_vae
from fvgen_recon.types import Difference

COMPARISONS: dict[str, Callable[[Path], tuple[Difference, ...]]] = {
    "unet": compare_unet,
    "resampler": compare_resampler,
    "ddim": compare_ddim,
    "vae": compare_vae,
    "clip": compare_clip,
}
"""Comparisons by kind of fixture."""
