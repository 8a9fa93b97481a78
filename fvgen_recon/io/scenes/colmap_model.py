"""COLMAP's model files, binary and text.

pycolmap reads them too, but a truncated file can end the whole process there.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from fvgen_recon.errors import InputError

_PARTS = ("cameras", "images")
_POINTS = "points3D"
ENDINGS = (".bin", ".txt")

# Name and number of parameters of each camera model, by its number in binary files.
_CAMERA_MODELS = {
    0: ("SIMPLE_PINHOLE", 3), 1: ("PINHOLE", 4), 2: ("SIMPLE_RADIAL", 4), 3: ("RADIAL", 5),
    4: ("OPENCV", 8), 5: ("OPENCV_FISHEYE", 8), 6: ("FULL_OPENCV", 12), 7: ("FOV", 5),
    8: ("SIMPLE_RADIAL_FISHEYE", 4), 9: ("RADIAL_FISHEYE", 5), 10: ("THIN_PRISM_FISHEYE", 12),
    11: ("RAD_TAN_THIN_PRISM_FISHEYE", 16), 12: ("SIMPLE_DIVISION", 4), 13: ("DIVISION", 5),
    14: ("SIMPLE_FISHEYE", 3), 15: ("FISHEYE", 4), 16: ("EUCM", 6), 17: ("EQUIRECTANGULAR", 2),
}  # fmt: skip
_NUM_PARAMS = dict(_CAMERA_MODELS.values())
_SEEN = np.dtype([("xy", "<f8", (2,)), ("point", "<i8")])
_POINT = np.dtype([("xyz", "<f8", (3,)), ("rgb", "u1", (3,))])


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelCamera:
    """Intrinsics as COLMAP stores them."""

    model: str
    """Name of the camera model."""
    width: int
    """Image width in pixels."""
    height: int
    """Image height in pixels."""
    params: tuple[float, ...]
    """The model's parameters: focal lengths, principal point, distortion."""

    def __post_init__(self) -> None:
        """Check the number of parameters of known models."""
        if len(self.params) != _NUM_PARAMS.get(self.model, len(self.params)):
            raise ValueError(f"{len(self.params)} parameters of a {self.model} camera")


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelImage:
    """An image with its pose and what it sees."""

    name: str
    """Path relative to the image folder."""
    rotation: np.ndarray
    """Quaternion w x y z from world to camera."""
    translation: np.ndarray
    """Translation from world to camera."""
    camera: int
    """Id of its camera."""
    seen: np.ndarray
    """Image points `xy` with the id of their `point`, -1 where they have none."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelPoints:
    """Triangulated points."""

    ids: np.ndarray
    """Ids, N."""
    xyz: np.ndarray
    """World positions, N 3."""
    rgb: np.ndarray
    """Colours as bytes, N 3."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Model:
    """A COLMAP model."""

    cameras: dict[int, ModelCamera]
    """Cameras by id."""
    images: tuple[ModelImage, ...]
    """Images with a pose, sorted by name."""
    points: ModelPoints
    """Points."""


def has_model(folder: Path) -> bool:
    """Return whether a folder holds cameras and images of a model in one of the two forms."""
    return any(all((folder / (part + end)).is_file() for part in _PARTS) for end in ENDINGS)


def read_model(folder: Path) -> Model:
    """Read a model; binary files are preferred where both forms are there.

    A model without a file of points has no points.

    Raises:
        InputError: A file is missing or damaged, or an image names a camera that is not there.
    """
    is_binary = all((folder / f"{part}.bin").is_file() for part in _PARTS)
    ending = ".bin" if is_binary else ".txt"
    *readers, read_points = _BINARY if is_binary else _TEXT
    cameras, images = (
        _read_file(folder / (part + ending), read)
        for part, read in zip(_PARTS, readers, strict=True)
    )
    file = folder / (_POINTS + ending)
    points = _read_file(file, read_points) if file.is_file() else _text_points(b"")
    for image in images:
        if image.camera not in cameras:
            raise InputError(
                f"The COLMAP model in {folder} gives image {image.name} the camera {image.camera}, "
                "which it does not have: export it again."
            )
    ordered = tuple(sorted(images, key=lambda image: image.name))
    return Model(cameras=cameras, images=ordered, points=points)


def _read_file(path: Path, read: Any) -> Any:
    try:
        return read(path.read_bytes())
    except OSError as error:
        raise InputError(f"{path} cannot be opened ({error.strerror}).") from error
    except (struct.error, ValueError, IndexError, OverflowError) as error:
        raise InputError(
            f"{path} is truncated or not a COLMAP file ({error}): export the model again."
        ) from error


@dataclass(slots=True)
class _Cursor:
    """A place in a binary file; running over its end raises."""

    content: bytes
    offset: int = field(default=0)

    def take(self, form: str) -> tuple[Any, ...]:
        values = struct.unpack_from("<" + form, self.content, self.offset)
        self.offset += struct.calcsize("<" + form)
        return values

    def table(self, dtype: np.dtype, count: int) -> np.ndarray:
        size = dtype.itemsize * count
        if self.offset + size > len(self.content):
            raise ValueError("it ends too early")
        part = self.content[self.offset : self.offset + size]
        self.offset += size
        return np.frombuffer(part, dtype=dtype)

    def word(self) -> str:
        end = self.content.index(b"\0", self.offset)
        text = self.content[self.offset : end].decode("utf-8")
        self.offset = end + 1
        return text


def _binary_cameras(content: bytes) -> dict[int, ModelCamera]:
    cursor, cameras = _Cursor(content), {}
    for _ in range(cursor.take("Q")[0]):
        key, number, width, height = cursor.take("IiQQ")
        if number not in _CAMERA_MODELS:
            raise ValueError(f"camera model number {number} is unknown")
        model, num_params = _CAMERA_MODELS[number]
        params = cursor.take(f"{num_params}d")
        cameras[key] = ModelCamera(model=model, width=width, height=height, params=params)
    return cameras


def _binary_images(content: bytes) -> list[ModelImage]:
    cursor, images = _Cursor(content), []
    for _ in range(cursor.take("Q")[0]):
        _, *pose, camera = cursor.take("I7dI")
        name = cursor.word()
        seen = cursor.table(_SEEN, cursor.take("Q")[0])
        images.append(_image(name, pose, camera, seen))
    return images


def _image(name: str, pose: list[float], camera: int, seen: np.ndarray) -> ModelImage:
    numbers = np.array(pose, dtype=np.float64)
    return ModelImage(
        name=name, rotation=numbers[:4], translation=numbers[4:], camera=camera, seen=seen
    )


def _binary_points(content: bytes) -> ModelPoints:
    cursor = _Cursor(content)
    ids, rows = [], []
    for _ in range(cursor.take("Q")[0]):
        ids.append(cursor.take("Q")[0])
        rows.append(cursor.table(_POINT, 1))
        _, length = cursor.take("dQ")
        cursor.table(np.dtype("<i4"), 2 * length)
    table = np.concatenate(rows) if rows else np.empty(0, dtype=_POINT)
    return ModelPoints(ids=np.array(ids, dtype=np.int64), xyz=table["xyz"], rgb=table["rgb"])


def _lines(content: bytes) -> Iterator[str]:
    """Return the lines of a text file without comments; empty ones are kept."""
    lines = (line.strip() for line in content.decode("utf-8").splitlines())
    return (line for line in lines if not line.startswith("#"))


def _text_cameras(content: bytes) -> dict[int, ModelCamera]:
    cameras = {}
    for words in (line.split() for line in _lines(content) if line):
        params = tuple(float(word) for word in words[4:])
        cameras[int(words[0])] = ModelCamera(
            model=words[1], width=int(words[2]), height=int(words[3]), params=params
        )
    return cameras


def _text_images(content: bytes) -> list[ModelImage]:
    """Read pairs of lines: the pose, then the image points, whose line may be empty."""
    images, lines = [], _lines(content)
    for line in lines:
        if not line:
            continue
        words = line.split(maxsplit=9)
        pose = [float(word) for word in words[1:8]]
        numbers = np.array(next(lines, "").split(), dtype=np.float64).reshape(-1, 3)
        seen = np.empty(len(numbers), dtype=_SEEN)
        seen["xy"], seen["point"] = numbers[:, :2], numbers[:, 2]
        images.append(_image(words[9], pose, int(words[8]), seen))
    return images


def _text_points(content: bytes) -> ModelPoints:
    rows = [line.split()[:7] for line in _lines(content) if line]
    table = np.array(rows, dtype=np.float64).reshape(-1, 7)
    return ModelPoints(
        ids=table[:, 0].astype(np.int64), xyz=table[:, 1:4], rgb=table[:, 4:7].astype(np.uint8)
    )


_BINARY = (_binary_cameras, _binary_images, _binary_points)
_TEXT = (_text_cameras, _text_images, _text_points)
