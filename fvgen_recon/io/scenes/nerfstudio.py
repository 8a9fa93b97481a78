"""nerfstudio's `transforms.json`: OpenGL poses, shared or per-frame intrinsics."""

import logging
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fvgen_recon.errors import InputError
from fvgen_recon.geometry.conventions import opengl_to_opencv
from fvgen_recon.io.file import read_json
from fvgen_recon.io.image import image_size
from fvgen_recon.io.ply import read_points
from fvgen_recon.io.scenes.capture import (
    REDUCED_FOLDERS,
    Capture,
    Lens,
    Tracks,
    require_precision,
)
from fvgen_recon.io.scenes.tracks import TRACKS, read_tracks
from fvgen_recon.types import Cameras, PointCloud

_LOG = logging.getLogger(__name__)
TRANSFORMS = "transforms.json"
_IMAGE_ENDINGS = ("", ".png", ".jpg", ".jpeg", ".PNG", ".JPG", ".JPEG")
_SPLITS = ("train_filenames", "val_filenames", "test_filenames")
_FISHEYE = {"OPENCV_FISHEYE"}
_RATIONAL = {"FULL_OPENCV"}
_BROWN = {"OPENCV", "PINHOLE", "SIMPLE_PINHOLE", "SIMPLE_RADIAL", "RADIAL"}


def detect(folder: Path) -> bool:
    """Return whether the folder holds a `transforms.json` (or is one)."""
    return transforms_path(folder).is_file()


def transforms_path(folder: Path) -> Path:
    """Return the `transforms.json` of a scene folder, or the file itself where it is given."""
    return folder if folder.suffix == ".json" else folder / TRANSFORMS


def load(folder: Path, cache: Path) -> Capture:
    """Read a `transforms.json` scene; frames are sorted by file path, as nerfstudio does.

    Args:
        folder: Scene folder, or the JSON file.
        cache: Not used.

    Raises:
        InputError: Frames, poses or intrinsics are missing or malformed.
    """
    return read_transforms(folder, is_sorted=True, format_name="nerfstudio")


def read_transforms(folder: Path, *, is_sorted: bool, format_name: str) -> Capture:
    """Read a `transforms.json` scene.

    Args:
        folder: Scene folder, or the JSON file.
        is_sorted: Sort frames by file path; else keep the order of the file.
        format_name: Name of the format for the capture.

    Raises:
        InputError: Frames, poses or intrinsics are missing or malformed.
    """
    path = transforms_path(folder)
    meta, rows = read_meta(path)
    order = list(range(len(rows)))
    if is_sorted:
        order.sort(key=lambda index: _name(rows[index], index))
    frames = [{**meta, **rows[index]} for index in order]
    capture = capture_frames(path, frames, order, format_name)
    points, tracks = _points(path.parent, meta, [order.index(i) for i in range(len(rows))])
    held_out = _held_out(path, meta, capture.names)
    return replace(capture, points=points, tracks=tracks, held_out=held_out)


def capture_frames(
    path: Path, frames: list[dict[str, Any]], numbers: list[int], format_name: str
) -> Capture:
    """Return the capture of frames with all their values, without points.

    Args:
        path: The file that they come from; photos are sought relative to its folder.
        frames: Values of each frame, the shared ones included.
        numbers: Place of each in its file, which names a pose without a photo.
        format_name: Name of the format for the capture.

    Raises:
        InputError: Poses or intrinsics are missing or malformed.
    """
    names = tuple(_name(frame, number) for frame, number in zip(frames, numbers, strict=True))
    paths = tuple(_photo(path.parent, name) for name in names)
    _warn_masks(path, frames)
    default = _default_size(path, frames, paths)
    places = [f"Frame {name} in {path}" for name in names]
    cameras = tuple(_camera(p, f, default) for p, f in zip(places, frames, strict=True))
    poses = np.stack([_pose(p, f) for p, f in zip(places, frames, strict=True)])
    require_precision(path.parent, poses[:, :3, 3])
    return Capture(
        names=names,
        paths=paths,
        cameras=cameras,
        lenses=tuple(_lens(p, f) for p, f in zip(places, frames, strict=True)),
        points=None,
        tracks=None,
        format=format_name,
        folder=path.parent,
    )


def read_meta(path: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return the shared values and the frames.

    Raises:
        InputError: The file is missing or lists no frames.
    """
    meta = read_json(path)
    if not isinstance(meta, dict) or not isinstance(meta.get("frames"), list):
        raise InputError(f"{path} has no list of `frames`: it is not a transforms.json.")
    rows = meta.pop("frames")
    if not rows:
        raise InputError(f"No images are listed in {path}: a scene needs at least two frames.")
    for row in rows:
        if not isinstance(row, dict) or "file_path" not in row:
            raise InputError(f"A frame in {path} has no `file_path`: every frame needs one.")
    return meta, rows


def _warn_masks(path: Path, frames: list[dict[str, Any]]) -> None:
    """Say that masks are not read: what they hide is part of the scene here."""
    masked = sum(frame.get("mask_path") is not None for frame in frames)
    if masked:
        _LOG.warning(
            "%d frames of %s have masks, which are not read: all of each photo is trained on and "
            "measured, and what moved between photos leaves traces.",
            masked,
            path,
        )


def _name(row: Mapping[str, Any], index: int) -> str:
    """Return a frame's file path; one whose path is null is a pose without a photo."""
    return f"frame_{index:05d}" if row["file_path"] is None else str(row["file_path"])


def _held_out(path: Path, meta: Mapping[str, Any], names: tuple[str, ...]) -> tuple[int, ...]:
    """Return the frames that nerfstudio's lists of names keep from training."""
    listed = {key: _listed(path, meta[key], key, names) for key in _SPLITS if key in meta}
    train = listed.pop(_SPLITS[0], None)
    if train is not None:
        return tuple(index for index in range(len(names)) if index not in train)
    return tuple(sorted(set().union(*listed.values())))


def _listed(path: Path, values: Any, key: str, names: tuple[str, ...]) -> set[int]:
    """Return the frames that a list names by their file paths."""
    if not isinstance(values, list):
        raise InputError(f"{path} needs a list of file paths for `{key}`: {values!r} came.")
    index = {Path(name): place for place, name in enumerate(names)}
    unknown = next((value for value in values if Path(str(value)) not in index), None)
    if unknown is not None:
        raise InputError(f"The `{key}` of {path} name {unknown}, which is no frame's `file_path`.")
    return {index[Path(str(value))] for value in values}


def _photo(folder: Path, name: str) -> Path:
    """Return where a frame's photo is; endings may be left out of its path.

    Data sets such as DL3DV name `images/` and come with reduced photos beside it only.
    """
    base = folder / name
    bases = [base]
    if base.parent.name == "images":
        bases += [base.parent.with_name(reduced) / base.name for reduced in REDUCED_FOLDERS]
    candidates = [b.with_name(b.name + ending) for b in bases for ending in _IMAGE_ENDINGS]
    return next((candidate for candidate in candidates if candidate.is_file()), base)


def _default_size(
    path: Path, frames: list[dict[str, Any]], paths: tuple[Path, ...]
) -> tuple[int, int] | None:
    """Return the size for frames that state none: that of the first photo whose header can be read.

    Returns none where every frame states its own.
    """
    if all("h" in frame and "w" in frame for frame in frames):
        return None
    for photo in paths:
        try:
            return image_size(photo, is_upright=False)
        except InputError:
            continue
    raise InputError(
        f"{path} states no `w` and `h`, and none of its photos can be opened for them."
    )


def _number(place: str, values: Mapping[str, Any], key: str, default: float | None = None) -> float:
    value = values.get(key, default)
    if not isinstance(value, (int, float)) or not math.isfinite(value):
        raise InputError(f"{place} needs a finite number for `{key}`: {value!r} came.")
    return float(value)


def _camera(place: str, values: Mapping[str, Any], default: tuple[int, int] | None) -> Cameras:
    """Return the pinhole part of a frame's camera."""
    if default is not None and not ("h" in values and "w" in values):
        height, width = default
    else:
        height, width = (int(_number(place, values, key)) for key in ("h", "w"))
    c2w = opengl_to_opencv(torch.from_numpy(_pose(place, values)).float())
    K = _intrinsics(place, values, height, width)
    try:
        return Cameras(c2w=c2w, K=K, height=height, width=width)
    except InputError as error:
        raise InputError(f"{place}: {error}") from error


def _pose(place: str, values: Mapping[str, Any]) -> np.ndarray:
    """Return the 4x4 pose; its last row may be left out."""
    try:
        pose = np.array(values["transform_matrix"], dtype=np.float64)
    except (KeyError, ValueError, TypeError) as error:
        raise InputError(f"{place} needs a 4x4 `transform_matrix` of numbers.") from error
    if pose.shape not in {(4, 4), (3, 4)}:
        raise InputError(f"{place} needs a 4x4 `transform_matrix`: shape {pose.shape} came.")
    return np.concatenate([pose[:3], [[0.0, 0.0, 0.0, 1.0]]])


def _intrinsics(place: str, values: Mapping[str, Any], height: int, width: int) -> torch.Tensor:
    """Return K from focal lengths or fields of view."""
    if "fl_x" in values:
        fx = _number(place, values, "fl_x")
        fy = _number(place, values, "fl_y", fx)
    elif "camera_angle_x" in values:
        fx = _focal_length(place, values, "camera_angle_x", width)
        fy = fx
        if "camera_angle_y" in values:
            fy = _focal_length(place, values, "camera_angle_y", height)
    else:
        raise InputError(
            f"{place} has no intrinsics: give `fl_x` (and `fl_y`, `cx`, `cy`) or `camera_angle_x`, "
            "for all frames or for each."
        )
    cx = _number(place, values, "cx", width / 2)
    cy = _number(place, values, "cy", height / 2)
    return torch.tensor([[fx, 0.0, cx], [0.0, fy, cy], [0.0, 0.0, 1.0]])


def _focal_length(place: str, values: Mapping[str, Any], key: str, side: int) -> float:
    """Return the focal length in pixels at which the field of view spans a side of the image."""
    angle = _number(place, values, key)
    if not 0 < angle < math.pi:
        raise InputError(f"{place} needs a `{key}` between 0 and pi radians: {angle:g} came.")
    return 0.5 * side / math.tan(0.5 * angle)


def _lens(place: str, values: Mapping[str, Any]) -> Lens:
    """Return the distortion of a frame, with nerfstudio's meaning of the keys.

    Outside of FULL_OPENCV, nerfstudio's `k4` is a fourth radial term that OpenCV does not have.
    """
    model = str(values.get("camera_model", "OPENCV")).upper()
    known = {*_FISHEYE, *_RATIONAL, *_BROWN}
    if model not in known:
        raise InputError(
            f"{place} has the camera model {model}, which is not a pinhole with a lens: "
            f"{', '.join(sorted(known))} can be read."
        )
    k = {
        key: _number(place, values, key, 0.0)
        for key in ("p1", "p2", *(f"k{i}" for i in range(1, 7)))
    }
    if "distortion_params" in values:
        k.update(_distortion_params(place, values["distortion_params"]))
    if model in _FISHEYE or values.get("is_fisheye") is True:
        return Lens(is_fisheye=True, coefficients=(k["k1"], k["k2"], k["k3"], k["k4"]))
    if model not in _RATIONAL and (k["k4"] or k["k5"] or k["k6"]):
        raise InputError(
            f"{place} has k4, k5 or k6 with the camera model {model}, which has none: if they are "
            "OpenCV's rational terms set camera_model to FULL_OPENCV, else undistort the photos."
        )
    order = ("k1", "k2", "p1", "p2", "k3", "k4", "k5", "k6")
    return Lens(coefficients=tuple(k[key] for key in order))


def _distortion_params(place: str, values: Any) -> dict[str, float]:
    """Return nerfstudio's list of six: k1 k2 k3 k4 p1 p2."""
    if not isinstance(values, list) or len(values) != 6:
        raise InputError(f"{place} needs six `distortion_params` (k1 k2 k3 k4 p1 p2): {values!r}.")
    keys = ("k1", "k2", "k3", "k4", "p1", "p2")
    return {key: _number(place, dict(zip(keys, values, strict=True)), key) for key in keys}


def _points(
    folder: Path, meta: Mapping[str, Any], frame_of: list[int]
) -> tuple[PointCloud | None, Tracks | None]:
    """Read the scene's points, with tracks where a `tracks.npz` gives them."""
    if (folder / TRACKS).is_file():
        return read_tracks(folder / TRACKS, frame_of)
    if meta.get("ply_file_path") is None:
        return None, None
    cloud = folder / str(meta["ply_file_path"])
    if not cloud.is_file():
        raise InputError(
            f"The `ply_file_path` of {folder} names {cloud}, which is not there: copy the points "
            "to it or remove the key."
        )
    return read_points(cloud), None
