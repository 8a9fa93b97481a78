"""From a photo through a lens to the photo of a pinhole camera, with no pixel invented."""

from dataclasses import replace

import cv2
import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from fvgen_recon.errors import InputError
from fvgen_recon.io.scenes.capture import Lens
from fvgen_recon.types import Cameras

_MOST_ZOOM = 8.0
_BISECTIONS = 40
_RADII = 1024


def distort(points: np.ndarray, lens: Lens) -> np.ndarray:
    """Map pinhole image points (`N 2`, at unit focal length) to where the lens puts them.

    Args:
        points: x and y on the plane z = 1, in 64 bits.
        lens: Equidistant fisheye (Kannala and Brandt 2006, four terms), or the rational model of
            Brown's radial and tangential distortion, as OpenCV defines them.
    """
    x, y = points[:, 0], points[:, 1]
    if lens.is_fisheye:
        radius = np.hypot(x, y)
        theta = np.arctan(radius)
        powers = sum(k * theta ** (2 * i + 2) for i, k in enumerate(lens.coefficients))
        ratio = theta * (1 + powers) / np.maximum(radius, 1e-12)
        return points * np.where(radius < 1e-12, 1.0, ratio)[:, None]
    k1, k2, p1, p2, k3, k4, k5, k6 = lens.coefficients
    r2 = x * x + y * y
    radial = (1 + r2 * (k1 + r2 * (k2 + r2 * k3))) / (1 + r2 * (k4 + r2 * (k5 + r2 * k6)))
    u = x * radial + 2 * p1 * x * y + p2 * (r2 + 2 * x * x)
    v = y * radial + p1 * (r2 + 2 * y * y) + 2 * p2 * x * y
    return np.stack([u, v], axis=-1)


def pinhole_camera(camera: Cameras, lens: Lens) -> Cameras:
    """Return the pinhole camera that a photo is undistorted to.

    It has the photo's size and principal point. Its focal lengths are the lens's own, or longer by
    the least factor at which every pixel lies inside the photo and the lens does not fold over.

    Raises:
        InputError: The coefficients describe no lens.
    """
    if lens.is_pinhole or _is_covered(camera, lens, 1.0):
        return camera
    low, high = 1.0, _MOST_ZOOM
    if not _is_covered(camera, lens, high):
        raise InputError(
            f"The distortion coefficients {lens.coefficients} fold a {camera.height}x{camera.width}"
            " photo over itself: check them, or undistort the photos first."
        )
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        low, high = (low, middle) if _is_covered(camera, lens, middle) else (middle, high)
    return _zoomed(camera, high)


def _zoomed(camera: Cameras, zoom: float) -> Cameras:
    K = camera.K.clone()
    K[[0, 1], [0, 1]] *= zoom
    return replace(camera, K=K)


def _is_covered(camera: Cameras, lens: Lens, zoom: float) -> bool:
    """Return whether the border pixels of the zoomed pinhole lie inside the photo.

    Along any ray from the axis the lens must move points outwards up to the farthest border pixel;
    beyond a fold, image content repeats.
    """
    K = camera.K.double().numpy()
    focal, centre = K[[0, 1], [0, 1]], K[:2, 2]
    points = (_border(camera.height, camera.width) - centre) / (focal * zoom)
    reach = np.linspace(0, np.linalg.norm(points, axis=-1).max(), _RADII)
    radial = replace(lens, coefficients=_without_tangential(lens))
    along = distort(np.stack([reach, 0 * reach], axis=-1), radial)[:, 0]
    if not (np.isfinite(along).all() and (np.diff(along) > 0).all()):
        return False
    pixels = distort(points, lens) * focal + centre
    last = np.array([camera.width - 0.5, camera.height - 0.5])
    return bool((pixels >= 0.5 - 1e-6).all() and (pixels <= last + 1e-6).all())


def _without_tangential(lens: Lens) -> tuple[float, ...]:
    c = lens.coefficients
    return c if lens.is_fisheye else (c[0], c[1], 0.0, 0.0, *c[4:])


def _border(height: int, width: int) -> np.ndarray:
    """Return the centres of the pixels along the four edges, as x and y."""
    x, y = np.arange(width) + 0.5, np.arange(height) + 0.5
    sides = [
        (x, 0 * x + 0.5),
        (x, 0 * x + height - 0.5),
        (0 * y + 0.5, y),
        (0 * y + width - 0.5, y),
    ]
    return np.concatenate([np.stack(side, axis=-1) for side in sides])


def undistort(image: Float[Tensor, "3 H W"], camera: Cameras, lens: Lens) -> Float[Tensor, "3 H W"]:
    """Resample a photo taken by `camera` through `lens` to `pinhole_camera(camera, lens)`.

    OpenCV puts pixel centres at integers, so both principal points move by half a pixel.
    """
    if lens.is_pinhole:
        return image
    target = pinhole_camera(camera, lens)
    half = np.array([[0, 0, 0.5], [0, 0, 0.5], [0, 0, 0]])
    K, new_K = camera.K.double().numpy() - half, target.K.double().numpy() - half
    size, coefficients = (camera.width, camera.height), np.array(lens.coefficients)
    prepare = (
        cv2.fisheye.initUndistortRectifyMap if lens.is_fisheye else cv2.initUndistortRectifyMap
    )
    maps = prepare(K, coefficients, np.eye(3), new_K, size, cv2.CV_32FC1)
    pixels = image.permute(1, 2, 0).contiguous().numpy()
    straight = cv2.remap(pixels, *maps, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    return torch.from_numpy(straight).permute(2, 0, 1).contiguous()
