"""Images in and out."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image, ImageOps
from torch import Tensor

from fvgen_recon.errors import InputError
from fvgen_recon.io.file import atomic_path

JPEG_QUALITY = 95
_ORIENTATION = 0x0112


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """Open an image; whatever Pillow finds wrong with it becomes one sentence."""
    try:
        with Image.open(path) as image:
            yield image
    except FileNotFoundError as error:
        raise InputError(f"The image {path} was expected and is not there.") from error
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        raise InputError(
            f"The image {path} cannot be read ({error}): it is truncated or not an image; replace "
            "it or leave it out."
        ) from error


def read_image(path: Path, *, is_upright: bool = True) -> Float[Tensor, "3 H W"]:
    """Read an image as RGB in [0, 1].

    Transparency is dropped, greyscale is repeated, 16 bits are kept.

    Args:
        path: Any format that Pillow reads.
        is_upright: Turn the image by its EXIF orientation; else keep the pixels as stored.

    Raises:
        InputError: The file is missing, truncated or not an image.
    """
    with _opened(path) as image:
        turned = ImageOps.exif_transpose(image) if is_upright else image
        if turned.mode.startswith("I"):
            grey = np.array(turned).astype(np.float32) / 65535
            return torch.from_numpy(grey).clamp(0, 1).expand(3, -1, -1).contiguous()
        pixels = np.array(turned.convert("RGB"))
    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous().float() / 255


def image_size(path: Path, *, is_upright: bool = True) -> tuple[int, int]:
    """Return height and width without decoding pixels, as `read_image` would give them.

    Raises:
        InputError: The file is missing or not an image.
    """
    with _opened(path) as image:
        width, height = image.size
        is_turned = is_upright and image.getexif().get(_ORIENTATION, 1) >= 5
    return (width, height) if is_turned else (height, width)


def is_turned(path: Path) -> bool:
    """Return whether an image has an EXIF orientation other than upright.

    Raises:
        InputError: The file is missing or not an image.
    """
    with _opened(path) as image:
        return image.getexif().get(_ORIENTATION, 1) != 1


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
