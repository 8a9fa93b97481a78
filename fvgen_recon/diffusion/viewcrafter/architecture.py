"""Sizes of all parts of a model, and how to build them.

Defaults are ViewCrafter's. Parts can be built on torch's meta device, without memory, to learn the
names and shapes of their parameters.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from diffusers import AutoencoderKL
from torch import nn
from transformers import CLIPTextModel, CLIPVisionModel

from fvgen_recon.diffusion.viewcrafter.clip import text_config, vision_config
from fvgen_recon.diffusion.viewcrafter.resampler import ImageResampler
from fvgen_recon.diffusion.viewcrafter.unet import ImageContext, ViewCrafterUNet


@dataclass(frozen=True, kw_only=True, slots=True)
class UNetShape:
    """Sizes of the UNet; see `ViewCrafterUNet`."""

    block_out_channels: tuple[int, ...] = (320, 640, 1280, 1280)
    layers_per_block: int = 2
    attention_levels: tuple[bool, ...] = (True, True, True, False)
    attention_head_dim: int = 64
    default_fps: int = 10


@dataclass(frozen=True, kw_only=True, slots=True)
class ResamplerShape:
    """Sizes of the resampler; see `ImageResampler`."""

    dim: int = 1024
    depth: int = 4
    dim_head: int = 64
    heads: int = 12
    num_tokens: int = 256
    ff_mult: int = 4


@dataclass(frozen=True, kw_only=True, slots=True)
class VaeShape:
    """Sizes of the autoencoder."""

    block_out_channels: tuple[int, ...] = (128, 256, 512, 512)
    layers_per_block: int = 2


@dataclass(frozen=True, kw_only=True, slots=True)
class TextShape:
    """Sizes of the text tower."""

    width: int = 1024
    layers: int = 23
    """Layers that are read; the checkpoint holds one more."""
    heads: int = 16
    vocab_size: int = 49408
    embed_dim: int = 1024
    """Width of the projections that the checkpoint holds and nothing reads."""


@dataclass(frozen=True, kw_only=True, slots=True)
class VisionShape:
    """Sizes of the image tower."""

    width: int = 1280
    layers: int = 32
    heads: int = 16
    patch_size: int = 14
    image_size: int = 224


@dataclass(frozen=True, kw_only=True, slots=True)
class Architecture:
    """Sizes of a whole model."""

    unet: UNetShape = field(default_factory=UNetShape)
    resampler: ResamplerShape = field(default_factory=ResamplerShape)
    vae: VaeShape = field(default_factory=VaeShape)
    text: TextShape = field(default_factory=TextShape)
    vision: VisionShape = field(default_factory=VisionShape)
    num_timesteps: int = 1000


@dataclass(frozen=True, kw_only=True, slots=True)
class Parts:
    """The networks of a model."""

    unet: ViewCrafterUNet
    image_projector: ImageResampler
    vae: AutoencoderKL
    text_encoder: CLIPTextModel
    image_encoder: CLIPVisionModel


def build_parts(
    architecture: Architecture, image_context: ImageContext, device: str = "meta"
) -> Parts:
    """Build all networks with fresh weights, or without any on the meta device."""
    text, vision, unet = architecture.text, architecture.vision, architecture.unet
    resampler = architecture.resampler
    with torch.device(device):
        parts = Parts(
            unet=ViewCrafterUNet(
                image_context=image_context,
                block_out_channels=unet.block_out_channels,
                layers_per_block=unet.layers_per_block,
                attention_levels=unet.attention_levels,
                attention_head_dim=unet.attention_head_dim,
                cross_attention_dim=text.width,
                default_fps=unet.default_fps,
            ),
            image_projector=ImageResampler(
                dim=resampler.dim,
                depth=resampler.depth,
                dim_head=resampler.dim_head,
                heads=resampler.heads,
                num_tokens=resampler.num_tokens,
                embedding_dim=vision.width,
                output_dim=text.width,
                ff_mult=resampler.ff_mult,
            ),
            vae=AutoencoderKL(
                **vae_config(
                    block_out_channels=architecture.vae.block_out_channels,
                    layers_per_block=architecture.vae.layers_per_block,
                )
            ),
            text_encoder=CLIPTextModel(
                text_config(
                    width=text.width,
                    layers=text.layers,
                    heads=text.heads,
                    vocab_size=text.vocab_size,
                )
            ),
            image_encoder=CLIPVisionModel(
                vision_config(
                    width=vision.width,
                    layers=vision.layers,
                    heads=vision.heads,
                    patch_size=vision.patch_size,
                    image_size=vision.image_size,
                )
            ),
        )
    modules: list[nn.Module] = [parts.unet, parts.image_projector, parts.vae]
    for module in [*modules, parts.text_encoder, parts.image_encoder]:
        module.eval()
    return parts


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
