"""Text and image towers of the conditioning, and how an image reaches the image tower.

Both are OpenCLIP ViT-H/14 towers in transformers' classes. The text tower lacks the last layer (the
original reads the one before it, then normalises); the image tower gives all tokens of the last
layer, class token first, without the final norm and projection.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPVisionConfig, CLIPVisionModel

MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)

NUM_TEXT_TOKENS = 77
"""Tokens of every prompt, padded with zeros."""

PROMPT_IDS = (49406, 32265, 1093, 539, 320, 3562, 49407)
"""Token ids of "Rotating view of a scene", the one prompt that the original uses."""

NULL_PROMPT_IDS = (49406, 49407)
"""Token ids of the empty prompt."""


def text_config(
    *,
    width: int = 1024,
    layers: int = 23,
    heads: int = 16,
    vocab_size: int = 49408,
    num_tokens: int = NUM_TEXT_TOKENS,
) -> CLIPTextConfig:
    """Return the config of a text tower; `layers` counts those that are read."""
    return CLIPTextConfig(
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        max_position_embeddings=num_tokens,
        vocab_size=vocab_size,
        hidden_act="gelu",
        bos_token_id=vocab_size - 2,
        eos_token_id=vocab_size - 1,
        pad_token_id=0,
    )


def vision_config(
    *,
    width: int = 1280,
    layers: int = 32,
    heads: int = 16,
    patch_size: int = 14,
    image_size: int = 224,
    mlp_ratio: float = 4.0,
) -> CLIPVisionConfig:
    """Return the config of an image tower."""
    return CLIPVisionConfig(
        hidden_size=width,
        intermediate_size=int(mlp_ratio * width),
        num_hidden_layers=layers,
        num_attention_heads=heads,
        patch_size=patch_size,
        image_size=image_size,
        hidden_act="gelu",
    )


def text_tokens(tower: CLIPTextModel, ids: Int[Tensor, "B L"]) -> Float[Tensor, "B L D"]:
    """Return the text tokens of prompts given as token ids."""
    return tower(input_ids=ids).last_hidden_state


def image_tokens(
    tower: CLIPVisionModel, images: Float[Tensor, "B 3 H W"]
) -> Float[Tensor, "B N E"]:
    """Return the image tokens of images in [-1, 1] of any size."""
    size = tower.config.image_size
    assert isinstance(size, int)
    pixels = preprocess(images, size)
    return tower(pixel_values=pixels.to(tower.dtype)).last_hidden_state


def preprocess(images: Float[Tensor, "B 3 H W"], size: int = 224) -> Float[Tensor, "B 3 S S"]:
    """Squash images in [-1, 1] to a square and normalise them as CLIP was trained.

    The aspect ratio is not kept. Resizing is bicubic with aligned corners after a Gaussian blur
    whose width follows the reduction; the area filter of `antialias=True` gives other values.
    """
    images = _antialias(images.float(), size)
    images = F.interpolate(images, (size, size), mode="bicubic", align_corners=True)
    mean = torch.tensor(MEAN, device=images.device)[:, None, None]
    std = torch.tensor(STD, device=images.device)[:, None, None]
    return ((images + 1) / 2 - mean) / std


def _antialias(images: Tensor, size: int) -> Tensor:
    factors = [length / size for length in images.shape[-2:]]
    if max(factors) <= 1:
        return images
    for axis, factor in zip((2, 3), factors, strict=True):
        if factor > 1:
            images = _blur(images, axis, (factor - 1) / 2)
    return images


def _blur(images: Tensor, axis: int, sigma: float) -> Tensor:
    """Blur along one axis (2 rows, 3 columns) with a Gaussian, reflecting at the borders."""
    taps = int(max(4 * sigma, 3)) | 1
    radius = taps // 2
    x = torch.arange(-radius, radius + 1, device=images.device, dtype=images.dtype)
    kernel = torch.exp(-(x**2) / (2 * max(sigma, 1e-3) ** 2))
    kernel = kernel / kernel.sum()
    shape, pad = ((1, 1, taps, 1), (0, 0, radius, radius))
    if axis == 3:
        shape, pad = (1, 1, 1, taps), (radius, radius, 0, 0)
    channels = images.shape[1]
    padded = F.pad(images, pad, mode="reflect")
    weight = kernel.reshape(shape).expand(channels, -1, -1, -1)
    return F.conv2d(padded, weight, groups=channels)
