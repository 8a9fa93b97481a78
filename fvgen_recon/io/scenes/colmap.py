"""COLMAP models, binary and text, of every camera model that can be undistorted."""

import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from fvgen_recon.errors import InputError
from fvgen_recon.io.scenes.capture import (
    NO_DISTORTION,
    REDUCED_FOLDERS,
    Capture,
    Lens,
    Tracks,
    require_precision,
)
from fvgen_recon.io.scenes.colmap_model import (
    Model,
    ModelCamera,
    ModelImage,
    has_model,
    read_model,
)
from fvgen_recon.types import Cameras, PointCloud

_LOG = logging.getLogger(__name__)
_MODEL_FOLDERS = (
    "colmap/sparse/0",
    "sparse/0",
    "sparse",
    "dense/0/sparse",
    "dense/sparse",
    "0",
    ".",
)
_NUMBERED = ("colmap/sparse", "sparse")
_IMAGE_FOLDERS = ("images", "../images", "../../images", "../../../images")

# After the focal lengths and the principal point, COLMAP's parameters come in OpenCV's order.
_PERSPECTIVE: dict[str, Callable[[tuple[float, ...]], tuple[float, ...]]] = {
    "SIMPLE_PINHOLE": lambda p: NO_DISTORTION,
    "PINHOLE": lambda p: NO_DISTORTION,
    "SIMPLE_RADIAL": lambda p: (p[3], *NO_DISTORTION[1:]),
    "RADIAL": lambda p: (p[3], p[4], *NO_DISTORTION[2:]),
    "OPENCV": lambda p: (*p[4:8], *NO_DISTORTION[4:]),
    "FULL_OPENCV": lambda p: p[4:12],
}
_FISHEYE: dict[str, Callable[[tuple[float, ...]], tuple[float, ...]]] = {
    "SIMPLE_FISHEYE": lambda p: (0.0, 0.0, 0.0, 0.0),
    "FISHEYE": lambda p: (0.0, 0.0, 0.0, 0.0),
    "SIMPLE_RADIAL_FISHEYE": lambda p: (p[3], 0.0, 0.0, 0.0),
    "RADIAL_FISHEYE": lambda p: (p[3], p[4], 0.0, 0.0),
    "OPENCV_FISHEYE": lambda p: p[4:8],
}

_SINGLE_FOCAL = {
    "SIMPLE_PINHOLE",
    "SIMPLE_RADIAL",
    "RADIAL",
    "SIMPLE_FISHEYE",
    "SIMPLE_RADIAL_FISHEYE",
    "RADIAL_FISHEYE",
}


def detect(folder: Path) -> bool:
    """Return whether the folder holds a COLMAP model in one of the usual places."""
    return _model_folder(folder) is not None


def _model_folder(folder: Path) -> Path | None:
    """Return where the model is; of several numbered ones the first."""
    usual = (folder / name for name in _MODEL_FOLDERS)
    numbered = (place for name in _NUMBERED for place in sorted((folder / name).glob("[1-9]*")))
    return next((place for place in (*usual, *numbered) if has_model(place)), None)


def _warn_other_models(model: Path, num_images: int) -> None:
    """Say that the scene was reconstructed in several pieces, of which one is read."""
    others = [place.name for place in sorted(model.parent.glob("[0-9]*")) if place != model]
    if model.name.isdigit() and others:
        _LOG.warning(
            "COLMAP left several models in %s, in worlds of their own: number %s with %d images is "
            "read; to use another (%s), give its folder as the scene.",
            model.parent,
            model.name,
            num_images,
            ", ".join(others),
        )


def load(folder: Path, cache: Path) -> Capture:
    """Read a COLMAP model with its images; frames are sorted by image name.

    Args:
        folder: Scene folder, or the folder of the model.
        cache: Not used.

    Raises:
        InputError: There is no model, it is damaged, no image is there or a lens is unknown.
    """
    model = _model_folder(folder)
    if model is None:
        raise InputError(
            f"{folder} holds no COLMAP model: cameras and images (.bin or .txt) were "
            f"expected in one of {', '.join(_MODEL_FOLDERS)}."
        )
    content = read_model(model)
    _warn_other_models(model, len(content.images))
    images = _image_folder(folder, model, [image.name for image in content.images])
    return capture_from_model(content, folder=folder, images=images, format_name="colmap")


def _image_folder(folder: Path, model: Path, names: list[str]) -> Path:
    """Return the first of the usual folders that holds any of the model's images.

    Data sets such as Mip-NeRF 360 are often kept without their large photos, in `images_4` alone.
    """
    whole = [folder / "images", *(model / name for name in _IMAGE_FOLDERS)]
    reduced = [place.with_name(name) for name in REDUCED_FOLDERS for place in whole]
    places = [*whole, folder, *reduced]
    for place in places:
        if any((place / name).is_file() for name in names):
            return place.resolve()
    first = names[0] if names else "none"
    raise InputError(
        f"None of the {len(names)} images of the COLMAP model in {model} was found: put them into "
        f"{places[0]} (the first is named {first})."
    )


def capture_from_model(
    model: Model, *, folder: Path, images: Path, format_name: str, is_upright: bool = False
) -> Capture:
    """Turn a COLMAP model into a capture.

    Args:
        model: What `read_model` returns.
        folder: The scene folder.
        images: The folder that the model's image names are relative to.
        format_name: Name of the format for the capture.
        is_upright: Whether the cameras belong to photos turned upright by EXIF.

    Raises:
        InputError: A camera model is unknown or a pose is not rigid or not finite.
    """
    native = [model.cameras[image.camera] for image in model.images]
    lenses = tuple(_lens(camera) for camera in native)
    cameras = tuple(_camera(c, image) for c, image in zip(native, model.images, strict=True))
    require_precision(folder, np.stack([_pose(image)[:3, 3] for image in model.images]))
    points, tracks = _points(model)
    return Capture(
        names=tuple(image.name for image in model.images),
        paths=tuple(images / image.name for image in model.images),
        cameras=cameras,
        lenses=lenses,
        points=points,
        tracks=tracks,
        format=format_name,
        folder=folder,
        is_upright=is_upright,
    )


def _rotation(quaternion: np.ndarray) -> np.ndarray:
    """Return the rotation matrix of a quaternion w x y z of any length."""
    w, x, y, z = quaternion / np.linalg.norm(quaternion)
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
            [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
            [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
        ]
    )


def _pose(image: ModelImage) -> np.ndarray:
    """Return the pose, camera to world; COLMAP has our axes and gives world to camera."""
    c2w = np.eye(4)
    c2w[:3, :3] = _rotation(image.rotation).T
    c2w[:3, 3] = -c2w[:3, :3] @ image.translation
    return c2w


def _camera(camera: ModelCamera, image: ModelImage) -> Cameras:
    """Return the pinhole part; COLMAP has our pixel centres."""
    is_single = camera.model in _SINGLE_FOCAL
    fx, fy, cx, cy = camera.params[:1] * is_single + camera.params[: 4 - is_single]
    try:
        return Cameras(
            c2w=torch.from_numpy(_pose(image)).float(),
            K=torch.tensor([[fx, 0.0, cx], [0.0, fy, cy], [0.0, 0.0, 1.0]]),
            height=camera.height,
            width=camera.width,
        )
    except InputError as error:
        raise InputError(f"Image {image.name} of the COLMAP model: {error}") from error


def _lens(camera: ModelCamera) -> Lens:
    """Map COLMAP's camera models to OpenCV's two families of coefficients."""
    if camera.model in _PERSPECTIVE:
        return Lens(coefficients=_PERSPECTIVE[camera.model](camera.params))
    if camera.model in _FISHEYE:
        return Lens(is_fisheye=True, coefficients=_FISHEYE[camera.model](camera.params))
    raise InputError(
        f"The COLMAP camera model {camera.model} cannot be undistorted here: run COLMAP's "
        f"image_undistorter first, or use one of {', '.join([*_PERSPECTIVE, *_FISHEYE])}."
    )


def _points(model: Model) -> tuple[PointCloud | None, Tracks | None]:
    """Return the model's points and which frames see them."""
    points = model.points
    if len(points.ids) == 0:
        return None, None
    order = np.argsort(points.ids)
    seen = np.concatenate([image.seen for image in model.images])
    frame = np.repeat(np.arange(len(model.images)), [len(image.seen) for image in model.images])
    place = np.searchsorted(points.ids[order], seen["point"]).clip(max=len(order) - 1)
    is_known = points.ids[order][place] == seen["point"]
    try:
        cloud = PointCloud(
            xyz=torch.from_numpy(points.xyz[order]).float(),
            rgb=torch.from_numpy(points.rgb[order]).float() / 255,
            confidence=torch.ones(len(order)),
            view=torch.full((len(order),), -1, dtype=torch.long),
        )
    except InputError as error:
        raise InputError(f"Points of the COLMAP model: {error}") from error
    tracks = Tracks(
        point=torch.from_numpy(place[is_known]),
        frame=torch.from_numpy(frame[is_known]),
        uv=torch.from_numpy(seen["xy"][is_known]).float(),
    )
    return cloud, tracks
