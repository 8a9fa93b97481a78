"""COLMAP models, binary and text, of every camera model that can be undistorted."""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from fvgen_recon.errors import InputError
from fvgen_recon.io.scenes.capture import NO_DISTORTION, Capture, Lens, Tracks
from fvgen_recon.types import Cameras, PointCloud

_MODEL_FOLDERS = ("colmap/sparse/0", "sparse/0", "sparse", "dense/0/sparse", "0", ".")
_IMAGE_FOLDERS = ("images", "../images", "../../images", "../../../images", ".")
_MODEL_FILES = (
    ("cameras.bin", "images.bin", "points3D.bin"),
    ("cameras.txt", "images.txt", "points3D.txt"),
)


def detect(folder: Path) -> bool:
    """Return whether the folder holds a COLMAP model in one of the usual places."""
    return _model_folder(folder) is not None


def _model_folder(folder: Path) -> Path | None:
    for name in _MODEL_FOLDERS:
        candidate = folder / name
        if any(all((candidate / f).is_file() for f in files) for files in _MODEL_FILES):
            return candidate
    return None


def load(folder: Path) -> Capture:
    """Read a COLMAP model with its images.

    Raises:
        InputError: There is no model, an image is missing or a camera model is unknown.
    """
    import pycolmap

    model = _model_folder(folder)
    if model is None:
        raise InputError(
            f"{folder} holds no COLMAP model: cameras, images and points3D (.bin or .txt) were "
            f"expected in one of {', '.join(_MODEL_FOLDERS)}."
        )
    try:
        reconstruction = pycolmap.Reconstruction(str(model))
    except (ValueError, RuntimeError, IndexError) as error:
        raise InputError(f"The COLMAP model in {model} cannot be read: {error}") from error
    return capture_from_reconstruction(reconstruction, folder, _image_folder(folder, model))


def _image_folder(folder: Path, model: Path) -> Path:
    for base in (folder, model):
        for name in _IMAGE_FOLDERS[:-1] if base == model else ("images",):
            if (base / name).is_dir():
                return (base / name).resolve()
    return folder


def capture_from_reconstruction(
    reconstruction: Any, folder: Path, images: Path, format_name: str = "colmap"
) -> Capture:
    """Turn a pycolmap reconstruction into a capture; `images` is the folder of the photos."""
    registered = [im for im in reconstruction.images.values() if im.has_pose]
    registered.sort(key=lambda image: image.name)
    missing = [image.name for image in registered if not (images / image.name).is_file()]
    if missing:
        raise InputError(
            f"The COLMAP model names {len(missing)} images that are not in {images}, the first is "
            f"{missing[0]}."
        )
    cameras = [_camera(reconstruction.cameras[im.camera_id], im) for im in registered]
    points, tracks = _points(reconstruction, [image.image_id for image in registered])
    return Capture(
        names=tuple(image.name for image in registered),
        paths=tuple(images / image.name for image in registered),
        cameras=tuple(cameras),
        lenses=tuple(_lens(reconstruction.cameras[im.camera_id]) for im in registered),
        points=points,
        tracks=tracks,
        format=format_name,
        folder=folder,
    )


def _pose(image: Any) -> np.ndarray:
    """Return the camera-to-world pose; the accessor is a method in newer pycolmap."""
    stored = image.cam_from_world
    rigid: Any = stored() if callable(stored) else stored
    w2c = np.eye(4)
    w2c[:3] = rigid.matrix()
    return np.linalg.inv(w2c)


def _camera(camera: Any, image: Any) -> Cameras:
    return Cameras(
        c2w=torch.from_numpy(_pose(image)).float(),
        K=torch.from_numpy(np.array(camera.calibration_matrix())).float(),
        height=int(camera.height),
        width=int(camera.width),
    )


def _lens(camera: Any) -> Lens:
    """Map COLMAP's camera models to OpenCV's two families of coefficients."""
    model = camera.model_name
    p = [float(value) for value in camera.params]
    perspective = {
        "SIMPLE_PINHOLE": lambda: NO_DISTORTION,
        "PINHOLE": lambda: NO_DISTORTION,
        "SIMPLE_RADIAL": lambda: (p[3], 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0),
        "RADIAL": lambda: (p[3], p[4], 0.0, 0.0, 0.0, 0.0, 0.0, 0.0),
        "OPENCV": lambda: (*p[4:8], 0.0, 0.0, 0.0, 0.0),
        "FULL_OPENCV": lambda: tuple(p[4:12]),
    }
    fisheye = {
        "OPENCV_FISHEYE": lambda: tuple(p[4:8]),
        "SIMPLE_RADIAL_FISHEYE": lambda: (p[3], 0.0, 0.0, 0.0),
        "RADIAL_FISHEYE": lambda: (p[3], p[4], 0.0, 0.0),
    }
    if model in perspective:
        return Lens(coefficients=perspective[model]())
    if model in fisheye:
        return Lens(is_fisheye=True, coefficients=fisheye[model]())
    raise InputError(
        f"The COLMAP camera model {model} cannot be undistorted here: run COLMAP's "
        f"image_undistorter first, or use one of {', '.join([*perspective, *fisheye])}."
    )


def _points(reconstruction: Any, image_ids: list[int]) -> tuple[PointCloud | None, Tracks | None]:
    """Return the model's points and which frames see them."""
    frame_of = {image_id: frame for frame, image_id in enumerate(image_ids)}
    points = list(reconstruction.points3D.values())
    if not points:
        return None, None
    observations = [
        (index, frame_of[element.image_id], *_uv(reconstruction, element))
        for index, point in enumerate(points)
        for element in point.track.elements
        if element.image_id in frame_of
    ]
    table = np.array(observations, dtype=np.float64).reshape(-1, 4)
    cloud = PointCloud(
        xyz=torch.from_numpy(np.array([p.xyz for p in points])).float(),
        rgb=torch.from_numpy(np.array([p.color for p in points], dtype=np.float32) / 255),
        confidence=torch.ones(len(points)),
        view=torch.full((len(points),), -1, dtype=torch.long),
    )
    tracks = Tracks(
        point=torch.from_numpy(table[:, 0].astype(np.int64)),
        frame=torch.from_numpy(table[:, 1].astype(np.int64)),
        uv=torch.from_numpy(table[:, 2:]).float(),
    )
    return cloud, tracks


def _uv(reconstruction: Any, element: Any) -> tuple[float, float]:
    x, y = reconstruction.images[element.image_id].points2D[element.point2D_idx].xy
    return float(x), float(y)
