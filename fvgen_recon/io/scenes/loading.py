"""From chosen frames to a `Scene`: open, undistort, bring to one size."""

from dataclasses import replace

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from fvgen_recon.errors import InputError
from fvgen_recon.io.image import read_image
from fvgen_recon.io.scenes.capture import Capture, Lens, points_for
from fvgen_recon.types import Cameras, Scene


def load_frame(capture: Capture, index: int) -> tuple[Float[Tensor, "3 H W"], Cameras]:
    """Open one frame and undistort it; nothing is resized or cropped.

    Raises:
        InputError: The photo is missing, truncated or of a size that its intrinsics do not fit.
    """
    image = read_image(capture.paths[index])
    camera = _fit_camera(capture, index, *image.shape[-2:])
    lens = capture.lenses[index]
    if lens.is_pinhole:
        return image, camera
    return _undistort(image, camera, lens), camera


def _fit_camera(capture: Capture, index: int, height: int, width: int) -> Cameras:
    """Scale intrinsics to a uniformly resized photo, or refuse."""
    camera = capture.cameras[index]
    if (camera.height, camera.width) == (height, width):
        return camera
    if abs(height - camera.height * width / camera.width) <= 1:
        return camera.resize(height, width)
    raise InputError(
        f"The photo {capture.paths[index]} is {height}x{width} (height x width) and its intrinsics "
        f"are for {camera.height}x{camera.width}: the aspect ratios differ, so export them again."
    )


def _undistort(image: Tensor, camera: Cameras, lens: Lens) -> Float[Tensor, "3 H W"]:
    """Resample a distorted photo to the pinhole camera of the same K.

    OpenCV puts pixel centres at integers, so the principal point moves by half a pixel.
    """
    K = camera.K.double().numpy().copy()
    K[:2, 2] -= 0.5
    size = (camera.width, camera.height)
    coefficients = np.array(lens.coefficients)
    if lens.is_fisheye:
        maps = cv2.fisheye.initUndistortRectifyMap(
            K, coefficients, np.eye(3), K, size, cv2.CV_32FC1
        )
    else:
        maps = cv2.initUndistortRectifyMap(K, coefficients, np.eye(3), K, size, cv2.CV_32FC1)
    pixels = image.permute(1, 2, 0).contiguous().numpy()
    straight = cv2.remap(
        pixels, *maps, interpolation=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT
    )
    return torch.from_numpy(straight).permute(2, 0, 1).contiguous()


def cover_crop(
    image: Float[Tensor, "3 h w"], camera: Cameras, height: int, width: int
) -> tuple[Float[Tensor, "3 H W"], Cameras]:
    """Resize without squashing until the size is covered, then crop the centre."""
    old_height, old_width = image.shape[-2:]
    if (old_height, old_width) == (height, width):
        return image, camera
    scale = max(height / old_height, width / old_width)
    cover = (max(height, round(old_height * scale)), max(width, round(old_width * scale)))
    resized = F.interpolate(image[None], cover, mode="bicubic", antialias=True)[0].clamp(0, 1)
    top, left = (cover[0] - height) // 2, (cover[1] - width) // 2
    camera = camera.resize(*cover)
    shift = torch.zeros_like(camera.K)
    shift[..., 0, 2], shift[..., 1, 2] = left, top
    cropped = resized[..., top : top + height, left : left + width].contiguous()
    return cropped, replace(camera, K=camera.K - shift, height=height, width=width)


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
    frames = [load_frame(capture, index) for index in indices]
    height = height or min(image.shape[-2] for image, _ in frames)
    width = width or min(image.shape[-1] for image, _ in frames)
    fitted = [cover_crop(image, camera, height, width) for image, camera in frames]
    cameras = replace(
        fitted[0][1],
        c2w=torch.stack([camera.c2w for _, camera in fitted]),
        K=torch.stack([camera.K for _, camera in fitted]),
    )
    return Scene(
        images=torch.stack([image for image, _ in fitted]),
        cameras=cameras,
        names=tuple(capture.names[index] for index in indices),
        points=points_for(capture, tuple(indices)),
    )
