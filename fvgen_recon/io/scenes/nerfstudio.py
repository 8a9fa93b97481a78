"""nerfstudio's `transforms.json`: OpenGL poses, shared or per-frame intrinsics."""

import math
from pathlib import Path

import numpy as np
import torch

from fvgen_recon.errors import InputError
from fvgen_recon.geometry.conventions import opengl_to_opencv
from fvgen_recon.io.file import read_json
from fvgen_recon.io.image import image_size
from fvgen_recon.io.ply import read_points
from fvgen_recon.io.scenes.capture import Capture, Lens, Tracks
from fvgen_recon.types import Cameras, PointCloud

TRANSFORMS = "transforms.json"
_IMAGE_ENDINGS = ("", ".png", ".jpg", ".jpeg")
_FISHEYE = {"OPENCV_FISHEYE", "EQUIDISTANT"}
_KNOWN_MODELS = {"OPENCV", "PINHOLE", "SIMPLE_PINHOLE", "SIMPLE_RADIAL", "RADIAL", *_FISHEYE}


def detect(folder: Path) -> bool:
    """Return whether the folder holds a `transforms.json` (or is one)."""
    return _transforms_path(folder).is_file()


def _transforms_path(folder: Path) -> Path:
    return folder if folder.suffix == ".json" else folder / TRANSFORMS


def load(folder: Path) -> Capture:
    """Read a `transforms.json` scene.

    Raises:
        InputError: Frames, poses or intrinsics are missing or malformed.
    """
    path = _transforms_path(folder)
    meta = read_json(path)
    if not isinstance(meta, dict) or not isinstance(meta.get("frames"), list):
        raise InputError(f"{path} has no list of `frames`: it is not a transforms.json.")
    rows = sorted(meta["frames"], key=lambda row: str(row.get("file_path", "")))
    paths = [_image_path(path, row) for row in rows]
    cameras = [_camera(path, meta, row, file) for row, file in zip(rows, paths, strict=True)]
    points, tracks = _points(path.parent, meta, [str(row["file_path"]) for row in rows])
    return Capture(
        names=tuple(str(row["file_path"]) for row in rows),
        paths=tuple(paths),
        cameras=tuple(cameras),
        lenses=tuple(_lens(path, {**meta, **row}) for row in rows),
        points=points,
        tracks=tracks,
        format="nerfstudio",
        folder=path.parent,
    )


def _image_path(path: Path, row: dict) -> Path:
    if "file_path" not in row:
        raise InputError(f"A frame in {path} has no `file_path`: every frame needs one.")
    base = path.parent / str(row["file_path"])
    for ending in _IMAGE_ENDINGS:
        candidate = base.with_name(base.name + ending)
        if candidate.is_file():
            return candidate
    raise InputError(f"{path} names the image {row['file_path']}, which is not there.")


def _camera(path: Path, meta: dict, row: dict, file: Path) -> Cameras:
    """Return the pinhole part of a frame's camera."""
    try:
        pose = np.array(row["transform_matrix"], dtype=np.float64)
    except (KeyError, ValueError, TypeError) as error:
        raise InputError(
            f"Frame {row['file_path']} in {path} needs a 4x4 `transform_matrix` of numbers."
        ) from error
    if pose.shape not in {(4, 4), (3, 4)}:
        raise InputError(f"Frame {row['file_path']} in {path} has a {pose.shape} pose, not 4x4.")
    full = np.eye(4)
    full[: pose.shape[0]] = pose
    values = {**meta, **row}
    height, width = (int(values[k]) if k in values else None for k in ("h", "w"))
    if height is None or width is None:
        height, width = image_size(file)
    K = _intrinsics(path, values, height, width)
    try:
        c2w = opengl_to_opencv(torch.from_numpy(full).float())
        return Cameras(c2w=c2w, K=K, height=height, width=width)
    except InputError as error:
        raise InputError(f"Frame {row['file_path']} in {path}: {error}") from error


def _intrinsics(path: Path, values: dict, height: int, width: int) -> torch.Tensor:
    """Return K from focal lengths or fields of view."""
    if "fl_x" in values:
        fx = float(values["fl_x"])
        fy = float(values.get("fl_y", fx))
    elif "camera_angle_x" in values:
        fx = 0.5 * width / math.tan(0.5 * float(values["camera_angle_x"]))
        angle_y = values.get("camera_angle_y")
        fy = fx if angle_y is None else 0.5 * height / math.tan(0.5 * float(angle_y))
    else:
        raise InputError(
            f"{path} has no intrinsics: give `fl_x` (and `fl_y`, `cx`, `cy`) or `camera_angle_x`, "
            "for all frames or for each."
        )
    cx, cy = float(values.get("cx", width / 2)), float(values.get("cy", height / 2))
    return torch.tensor([[fx, 0.0, cx], [0.0, fy, cy], [0.0, 0.0, 1.0]])


def _lens(path: Path, values: dict) -> Lens:
    model = str(values.get("camera_model", "OPENCV")).upper()
    if model not in _KNOWN_MODELS:
        raise InputError(
            f"{path} has the camera model {model}; {', '.join(sorted(_KNOWN_MODELS))} can be read."
        )
    is_fisheye = model in _FISHEYE
    keys = (
        ("k1", "k2", "k3", "k4") if is_fisheye else ("k1", "k2", "p1", "p2", "k3", "k4", "k5", "k6")
    )
    return Lens(
        is_fisheye=is_fisheye, coefficients=tuple(float(values.get(key, 0.0)) for key in keys)
    )


def _points(folder: Path, meta: dict, names: list[str]) -> tuple[PointCloud | None, Tracks | None]:
    """Read the scene's points, with tracks where a `tracks.npz` gives them."""
    tracks_path = folder / "tracks.npz"
    if tracks_path.is_file():
        return _read_tracks(tracks_path, meta, names)
    if "ply_file_path" not in meta:
        return None, None
    return read_points(folder / str(meta["ply_file_path"])), None


def _read_tracks(path: Path, meta: dict, names: list[str]) -> tuple[PointCloud, Tracks]:
    """Read `xyz rgb obs_point obs_frame obs_uv`; frames count in the order of the JSON file."""
    with np.load(path) as data:
        xyz = torch.from_numpy(data["xyz"]).float()
        rgb = torch.from_numpy(data["rgb"].astype(np.float32))
        point = torch.from_numpy(data["obs_point"].astype(np.int64))
        frame = torch.from_numpy(data["obs_frame"].astype(np.int64))
        uv = torch.from_numpy(data["obs_uv"]).float()
    order = [names.index(str(row["file_path"])) for row in meta["frames"]]
    scale = 255.0 if float(rgb.max()) > 1 else 1.0
    points = PointCloud(
        xyz=xyz,
        rgb=(rgb / scale).clamp(0, 1),
        confidence=torch.ones(len(xyz)),
        view=torch.full((len(xyz),), -1, dtype=torch.long),
    )
    return points, Tracks(point=point, frame=torch.tensor(order)[frame], uv=uv)
