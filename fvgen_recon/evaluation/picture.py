"""Pictures that live inside a page: error maps, JPEGs and short animations as data URIs."""

import base64
import io
from collections.abc import Sequence

import matplotlib
import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor
from torch.nn import functional

_LARGEST_ERROR = 0.5
"""Mean absolute error over channels that has the brightest colour of an error map."""


def shrink(image: Float[Tensor, "3 H W"], long_side: int) -> Float[Tensor, "3 h w"]:
    """Return an image whose longer side is at most `long_side` pixels."""
    scale = long_side / max(image.shape[-2:])
    if scale >= 1:
        return image
    size = [max(1, round(side * scale)) for side in image.shape[-2:]]
    return functional.interpolate(image[None], size, mode="bilinear", antialias=True)[0]


def error_map(
    image: Float[Tensor, "3 H W"], truth: Float[Tensor, "3 H W"]
) -> Float[Tensor, "3 H W"]:
    """Return the mean absolute error of each pixel as a colour: black is none, yellow is 0.5."""
    error = (image - truth).abs().mean(dim=0).clamp_max(_LARGEST_ERROR) / _LARGEST_ERROR
    colours = matplotlib.colormaps["inferno"](error.cpu().numpy())[..., :3]
    return torch.from_numpy(colours.astype(np.float32)).permute(2, 0, 1)


def _to_pillow(image: Float[Tensor, "3 H W"]) -> Image.Image:
    pixels = (image.detach().clamp(0, 1) * 255).round().byte().permute(1, 2, 0).cpu().numpy()
    return Image.fromarray(np.ascontiguousarray(pixels))


def _data_uri(kind: str, data: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def jpeg_uri(image: Float[Tensor, "3 H W"], *, quality: int = 80) -> str:
    """Return an image as a JPEG data URI."""
    buffer = io.BytesIO()
    _to_pillow(image).save(buffer, "JPEG", quality=quality)
    return _data_uri("jpeg", buffer.getvalue())


def animation_uri(
    frames: Sequence[Float[Tensor, "3 H W"]], *, milliseconds: int = 700, quality: int = 70
) -> str:
    """Return frames of one size as an endless animated WebP data URI."""
    first, *rest = [_to_pillow(frame) for frame in frames]
    buffer = io.BytesIO()
    first.save(
        buffer,
        "WEBP",
        save_all=True,
        append_images=rest,
        duration=milliseconds,
        loop=0,
        quality=quality,
    )
    return _data_uri("webp", buffer.getvalue())
