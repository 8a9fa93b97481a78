"""Images in and out."""

from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from fvgen_recon.errors import InputError
from fvgen_recon.io.file import atomic_path

JPEG_QUALITY = 95


def read_image(path: Path) -> Float[Tensor, "3 H W"]:
    """Read an image as RGB in [0, 1], turned upright by its EXIF orientation.

    Transparency is dropped, greyscale is repeated.

    Raises:
        InputError: The file is missing, truncated or not an image.
    """
    try:
        with Image.open(path) as image:
            upright = ImageOps.exif_transpose(image).convert("RGB")
            pixels = np.array(upright)
    except FileNotFoundError as error:
        raise InputError(f"The image {path} was expected and is not there.") from error
    except (UnidentifiedImageError, OSError, SyntaxError) as error:
        raise InputError(
            f"The image {path} cannot be read ({error}): it is truncated or not an image; replace "
            "it or leave it out."
        ) from error
    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous().float() / 255


def image_size(path: Path) -> tuple[int, int]:
    """Return height and width without decoding pixels, upright by EXIF orientation.

    Raises:
        InputError: The file is missing or not an image.
    """
    try:
        with Image.open(path) as image:
            width, height = image.size
            turned = image.getexif().get(0x0112, 1) >= 5
    except FileNotFoundError as error:
        raise InputError(f"The image {path} was expected and is not there.") from error
    except (UnidentifiedImageError, OSError, SyntaxError) as error:
        raise InputError(f"The file {path} is not an image ({error}): leave it out.") from error
    return (width, height) if turned else (height, width)


def write_image(path: Path, image: Float[Tensor, "3 H W"]) -> None:
    """Write an image in [0, 1] as PNG or JPEG by its ending, rounded to 8 bits, atomically."""
    pixels = (image.detach().clamp(0, 1) * 255).round().to(torch.uint8).cpu()
    picture = Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy())
    with atomic_path(Path(path)) as temporary:
        if _is_jpeg(path):
            picture.save(temporary, quality=JPEG_QUALITY, subsampling=0)
        else:
            picture.save(temporary)


def _is_jpeg(path: Path) -> bool:
    return Path(path).suffix.lower() in {".jpg", ".jpeg"}
