"""Sizes of all parts of a model, and how to build them."""

from collections.abc import Sequence
from typing import Any


def vae_config(
    *,
    block_out_channels: Sequence[int] = (128, 256, 512, 512),
    layers_per_block: int = 2,
    latent_channels: int = 4,
    in_channels: int = 3,
    out_channels: int = 3,
) -> dict[str, Any]:
    """Return the config of diffusers' `AutoencoderKL` for Stable Diffusion's autoencoder."""
    num_levels = len(block_out_channels)
    return {
        "block_out_channels": tuple(block_out_channels),
        "down_block_types": ("DownEncoderBlock2D",) * num_levels,
        "up_block_types": ("UpDecoderBlock2D",) * num_levels,
        "layers_per_block": layers_per_block,
        "latent_channels": latent_channels,
        "in_channels": in_channels,
        "out_channels": out_channels,
        "sample_size": 512,
        "scaling_factor": 0.18215,
    }
