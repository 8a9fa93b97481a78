"""COLMAP models, binary and text, of every camera model that can be undistorted."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fvgen_recon.errors import InputError
from fvgen_recon.io.scenes.capture import NO_DISTORTION, Capture, Lens, Tracks
from fvgen_recon.types import Cameras, PointCloud

_MODEL_FOLDERS = (
    "colmap/sparse/0",
    "sparse/0",
    "sparse",
    "dense/0/sparse",
    "dense/sparse",
    "0",
    ".",
)
_MODEL_FILES = (
    ("cameras.bin", "images.bin", "points3D.bin"),
    ("cameras.txt", "images.txt", "points3D.txt"),
)
_IMAGE_FOLDERS = ("images", "../images", "../../images", "../../../images")

# After the focal lengths and the principal point, COLMAP's parameters come in OpenCV's order.
_PERSPECTIVE: dict[str, Callable[[list[float]], tuple[float, ...]]] = {
    "SIMPLE_PINHOLE": lambda p: NO_DISTORTION,
    "PINHOLE": lambda p: NO_DISTORTION,
    "SIMPLE_RADIAL": lambda p: (p[3], *NO_DISTORTION[1:]),
    "RADIAL": lambda p: (p[3], p[4], *NO_DISTORTION[2:]),
    "OPENCV": lambda p: (*p[4:8], *NO_DISTORTION[4:]),
    "FULL_OPENCV": lambda p: tuple(p[4:12]),
}
_FISHEYE: dict[str, Callable[[list[float]], tuple[float, ...]]] = {
    "SIMPLE_FISHEYE": lambda p: (0.0, 0.0, 0.0, 0.0),
    "FISHEYE": lambda p: (0.0, 0.0, 0.0, 0.0),
    "SIMPLE_RADIAL_FISHEYE": lambda p: (p[3], 0.0, 0.0, 0.0),
    "RADIAL_FISHEYE": lambda p: (p[3], p[4], 0.0, 0.0),
    "OPENCV_FISHEYE": lambda p: tuple(p[4:8]),
}


def detect(folder: Path) -> bool:
    """Return whether the folder holds a COLMAP model in one of the usual places."""
    return _model_folder(folder) is not None


def _model_folder(folder: Path) -> Path | None:
    for name in _MODEL_FOLDERS:
        candidate = folder / name
        if any(all((candidate / f).is_file() for f in files) for files in _MODEL_FILES):
            return candidate
    return None


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
            f"{folder} holds no COLMAP model: cameras, images and points3D (.bin or .txt) were "
            f"expected in one of {', '.join(_MODEL_FOLDERS)}."
        )
    reconstruction = read_model(model)
    names = [image.name for image in _registered(reconstruction)]
    images = _image_folder(folder, model, names)
    return capture_from_model(reconstruction, folder=folder, images=images, format_name="colmap")


def read_model(folder: Path) -> Any:
    """Read a COLMAP model as pycolmap's `Reconstruction`.

    Raises:
        InputError: The model is damaged.
    """
    import pycolmap

    try:
        return pycolmap.Reconstruction(str(folder))
    except (ValueError, RuntimeError, IndexError, MemoryError) as error:
        reason = str(error).strip().splitlines()[-1:] or ["it is damaged"]
        raise InputError(
            f"The COLMAP model in {folder} cannot be read ({reason[0]}): export it again."
        ) from error


def _registered(reconstruction: Any) -> list[Any]:
    """Return the images that have a pose, sorted by name."""
    images = [image for image in reconstruction.images.values() if image.has_pose]
    return sorted(images, key=lambda image: image.name)


def _image_folder(folder: Path, model: Path, names: list[str]) -> Path:
    """Return the first of the usual folders that holds any of the model's images."""
    places = [folder / "images", *(model / name for name in _IMAGE_FOLDERS), folder]
    for place in places:
        if any((place / name).is_file() for name in names):
            return place.resolve()
    first = names[0] if names else "none"
    raise InputError(
        f"None of the {len(names)} images of the COLMAP model in {model} was found: put them into "
        f"{places[0]} (the first is named {first})."
    )


def capture_from_model(
    reconstruction: Any, *, folder: Path, images: Path, format_name: str, is_upright: bool = False
) -> Capture:
    """Turn a pycolmap reconstruction into a capture.

    Args:
        reconstruction: A `pycolmap.Reconstruction`.
        folder: The scene folder.
        images: The folder that the model's image names are relative to.
        format_name: Name of the format for the capture.
        is_upright: Whether the cameras belong to photos turned upright by EXIF.

    Raises:
        InputError: A camera is unknown or a pose is not finite.
    """
    registered = _registered(reconstruction)
    native = [reconstruction.cameras[image.camera_id] for image in registered]
    points, tracks = _points(reconstruction, registered)
    return Capture(
        names=tuple(image.name for image in registered),
        paths=tuple(images / image.name for image in registered),
        cameras=tuple(_camera(c, image) for c, image in zip(native, registered, strict=True)),
        lenses=tuple(_lens(camera) for camera in native),
        points=points,
        tracks=tracks,
        format=format_name,
        folder=folder,
        is_upright=is_upright,
    )


def _camera(camera: Any, image: Any) -> Cameras:
    """Return the pinhole part; COLMAP has our axes and pixel centres, and gives world to camera."""
    w2c = np.eye(4)
    w2c[:3] = image.cam_from_world().matrix()
    try:
        return Cameras(
            c2w=torch.from_numpy(np.linalg.inv(w2c)).float(),
            K=torch.from_numpy(np.array(camera.calibration_matrix())).float(),
            height=int(camera.height),
            width=int(camera.width),
        )
    except (InputError, np.linalg.LinAlgError) as error:
        raise InputError(f"Image {image.name} of the COLMAP model: {error}") from error


def _lens(camera: Any) -> Lens:
    """Map COLMAP's camera models to OpenCV's two families of coefficients."""
    model, params = camera.model_name, [float(value) for value in camera.params]
    if model in _PERSPECTIVE:
        return Lens(coefficients=_PERSPECTIVE[model](params))
    if model in _FISHEYE:
        return Lens(is_fisheye=True, coefficients=_FISHEYE[model](params))
    raise InputError(
        f"The COLMAP camera model {model} cannot be undistorted here: run COLMAP's "
        f"image_undistorter first, or use one of {', '.join([*_PERSPECTIVE, *_FISHEYE])}."
    )


def _points(reconstruction: Any, registered: list[Any]) -> tuple[PointCloud | None, Tracks | None]:
    """Return the model's points and which frames see them."""
    points = reconstruction.points3D
    if not points:
        return None, None
    ids = list(points.keys())
    index_of = {point_id: index for index, point_id in enumerate(ids)}
    rows = [
        (index_of[seen.point3D_id], frame, *seen.xy)
        for frame, image in enumerate(registered)
        for seen in image.get_observation_points2D()
    ]
    table = np.array(rows, dtype=np.float64).reshape(-1, 4)
    cloud = PointCloud(
        xyz=torch.from_numpy(np.array([points[i].xyz for i in ids])).float(),
        rgb=torch.from_numpy(np.array([points[i].color for i in ids], dtype=np.float32) / 255),
        confidence=torch.ones(len(ids)),
        view=torch.full((len(ids),), -1, dtype=torch.long),
    )
    tracks = Tracks(
        point=torch.from_numpy(table[:, 0].astype(np.int64)),
        frame=torch.from_numpy(table[:, 1].astype(np.int64)),
        uv=torch.from_numpy(table[:, 2:]).float(),
    )
    return cloud, tracks
