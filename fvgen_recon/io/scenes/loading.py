"""From chosen frames to a `Scene`: open, undistort, bring to one size."""

import logging
from dataclasses import replace

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from fvgen_recon.errors import InputError
from fvgen_recon.io.image import image_size, read_image
from fvgen_recon.io.scenes.capture import Capture, points_for
from fvgen_recon.io.scenes.undistortion import pinhole_camera, undistort
from fvgen_recon.types import Cameras, Scene

_LOG = logging.getLogger(__name__)
_SMALL_SHARE = 0.25
"""Share of the usual photo's pixels below which the common size deserves a word."""


def photo_size(capture: Capture, index: int) -> tuple[int, int]:
    """Return height and width of a frame's photo as `load_frame` gives it; reads its header only.

    Raises:
        InputError: The photo is missing, not an image, or of a size that its intrinsics do not fit.
    """
    return _oriented_size(capture, index)[1]


def smallest_size(capture: Capture, indices: tuple[int, ...]) -> tuple[int, int]:
    """Return the least height and width among photos; reads their headers only.

    Where that is far below what most of them have, a warning names the photo that is the cause.
    """
    sizes = [photo_size(capture, index) for index in indices]
    height, width = min(size[0] for size in sizes), min(size[1] for size in sizes)
    areas = [size[0] * size[1] for size in sizes]
    if height * width < _SMALL_SHARE * sorted(areas)[len(areas) // 2]:
        _LOG.warning(
            "All photos are brought to %dx%d (height x width), as small as %s is: leave it out to "
            "use the others at their size.",
            height,
            width,
            capture.paths[indices[areas.index(min(areas))]],
        )
    return height, width


def _oriented_size(capture: Capture, index: int) -> tuple[bool, tuple[int, int]]:
    """Return whether to turn a photo upright, and its size then.

    Poses and intrinsics belong to the stored pixels (COLMAP and nerfstudio ignore EXIF) unless the
    capture says otherwise or only the upright photo has the shape that the intrinsics ask for.
    """
    path, camera = capture.paths[index], capture.cameras[index]
    for is_upright in (True,) if capture.is_upright else (False, True):
        size = image_size(path, is_upright=is_upright)
        if _fits(camera, *size):
            return is_upright, size
    height, width = image_size(path, is_upright=capture.is_upright)
    raise InputError(
        f"The photo {path} is {height}x{width} (height x width) and its intrinsics are for "
        f"{camera.height}x{camera.width}: give a photo of that size or of that shape scaled down, "
        "or export the intrinsics again."
    )


def _fits(camera: Cameras, height: int, width: int) -> bool:
    """Return whether a photo is the camera's, or it scaled down evenly and rounded to pixels."""
    if height > camera.height or width > camera.width:
        return False
    by_width = abs(height - camera.height * width / camera.width) < 1
    by_height = abs(width - camera.width * height / camera.height) < 1
    return by_width or by_height


def load_frame(capture: Capture, index: int) -> tuple[Float[Tensor, "3 H W"], Cameras]:
    """Open one frame and undistort it; nothing is resized or cropped.

    Raises:
        InputError: The photo is missing, truncated or of a size that its intrinsics do not fit.
    """
    is_upright, (height, width) = _oriented_size(capture, index)
    image = read_image(capture.paths[index], is_upright=is_upright)
    assert tuple(image.shape[-2:]) == (height, width)
    camera, lens = capture.cameras[index].resize(height, width), capture.lenses[index]
    return undistort(image, camera, lens), pinhole_camera(camera, lens)


def view_camera(
    capture: Capture, index: int, photo: tuple[int, int], *, height: int, width: int
) -> Cameras:
    """Return the camera that `load_frame` and `cover_crop` give a frame, without opening it.

    Args:
        capture: Where the frame is.
        index: Which frame.
        photo: Height and width of its photo on disk.
        height: Image height in pixels to bring it to.
        width: Image width in pixels to bring it to.
    """
    camera = capture.cameras[index].resize(*photo)
    return _cover_camera(pinhole_camera(camera, capture.lenses[index]), height, width)


def _cover_size(old: tuple[int, int], height: int, width: int) -> tuple[int, int]:
    """Return the smallest size of the old shape that covers the new one."""
    scale = max(height / old[0], width / old[1])
    return max(height, round(old[0] * scale)), max(width, round(old[1] * scale))


def _cover_camera(camera: Cameras, height: int, width: int) -> Cameras:
    """Resize a camera to cover a size, then crop its centre."""
    cover = _cover_size((camera.height, camera.width), height, width)
    camera = camera.resize(*cover)
    shift = torch.zeros_like(camera.K)
    shift[..., 0, 2], shift[..., 1, 2] = (cover[1] - width) // 2, (cover[0] - height) // 2
    return replace(camera, K=camera.K - shift, height=height, width=width)


def cover_crop(
    image: Float[Tensor, "3 h w"], camera: Cameras, height: int, width: int
) -> tuple[Float[Tensor, "3 H W"], Cameras]:
    """Resize without squashing until the size is covered, then crop the centre.

    Sizes are whole pixels, so the two scales may differ by half a pixel; the camera follows both.
    """
    old = (image.shape[-2], image.shape[-1])
    if old == (height, width):
        return image, camera
    cover = _cover_size(old, height, width)
    resized = F.interpolate(image[None], cover, mode="bicubic", antialias=True)[0].clamp(0, 1)
    top, left = (cover[0] - height) // 2, (cover[1] - width) // 2
    cropped = resized[..., top : top + height, left : left + width].contiguous()
    return cropped, _cover_camera(camera, height, width)


def load_scene(
    capture: Capture,
    indices: tuple[int, ...],
    *,
    height: int | None = None,
    width: int | None = None,
) -> Scene:
    """Open the chosen frames, and no others, as a scene of one image size.

    Args:
        capture: Where the frames are.
        indices: Which frames to open.
        height: Image height in pixels; by default the smallest of the chosen photos.
        width: Image width in pixels; likewise.

    Raises:
        InputError: No frame was chosen, or a photo cannot be used.
    """
    if not indices:
        raise InputError("No input views were chosen: choose at least two.")
    if not (height and width):
        smallest = smallest_size(capture, indices)
        height, width = height or smallest[0], width or smallest[1]
    # One by one: many large photos at once would not fit into memory.
    images = torch.empty(len(indices), 3, height, width)
    fitted = []
    for place, index in enumerate(indices):
        images[place], camera = cover_crop(*load_frame(capture, index), height, width)
        fitted.append(camera)
    cameras = replace(
        fitted[0],
        c2w=torch.stack([camera.c2w for camera in fitted]),
        K=torch.stack([camera.K for camera in fitted]),
    )
    return Scene(
        images=images,
        cameras=cameras,
        names=tuple(capture.names[index] for index in indices),
        points=points_for(capture, tuple(indices)),
    )
