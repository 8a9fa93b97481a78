"""What a scene's files say before any pixel is opened."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from fvgen_recon.errors import InputError
from fvgen_recon.types import Cameras, PointCloud

NO_DISTORTION = (0.0,) * 8
REDUCED_FOLDERS = ("images_2", "images_4", "images_8")
"""Where data sets keep reduced photos, beside `images` or instead of it."""
_ROUNDING = 2.0**-24
"""Relative error of a number in single precision."""
_LEAST_SPREAD = 500.0
"""Fewest roundings of a position that the cameras must be apart."""
_SAME_PLACE = 1e-9
"""Relative difference below which positions are one place written twice."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Lens:
    """How a photo departs from a pinhole camera."""

    is_fisheye: bool = False
    """Equidistant fisheye with four coefficients; else OpenCV's rational model."""
    coefficients: tuple[float, ...] = NO_DISTORTION
    """Fisheye: k1 k2 k3 k4. Else: k1 k2 p1 p2 k3 k4 k5 k6."""

    def __post_init__(self) -> None:
        """Check that there are as many coefficients as the model has."""
        assert len(self.coefficients) == (4 if self.is_fisheye else 8)

    @property
    def is_pinhole(self) -> bool:
        """True where there is nothing to undistort."""
        return not self.is_fisheye and not any(self.coefficients)


@dataclass(frozen=True, kw_only=True, slots=True)
class Tracks:
    """Which frames see which of a capture's points."""

    point: Int[Tensor, "O"]
    """Index of the point of each observation."""
    frame: Int[Tensor, "O"]
    """Index of the frame of each observation."""
    uv: Float[Tensor, "O 2"]
    """Where the frame sees it, in pixels of the photo that the frame's camera belongs to."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Capture:
    """A scene's frames: names, files and native cameras, with no pixel opened.

    The world is kept as the files have it: no re-orientation, no scaling.
    """

    names: tuple[str, ...]
    """Names of the frames, as the scene's files give them; each occurs once."""
    paths: tuple[Path, ...]
    """Where the photos are. A frame without a photo names a file that does not exist."""
    cameras: tuple[Cameras, ...]
    """Native pinhole part of each frame's camera."""
    lenses: tuple[Lens, ...]
    """Distortion of each frame."""
    points: PointCloud | None
    """Points that came with the scene (usually made from every frame), or none."""
    tracks: Tracks | None
    """Which frames see which point, or none where the files do not say."""
    format: str
    """Name of the format that was read."""
    folder: Path
    """The scene folder."""
    is_upright: bool = False
    """True where the cameras belong to photos turned upright by their EXIF orientation; else they
    belong to the pixels as they are stored."""
    held_out: tuple[int, ...] = ()
    """Indices of frames that the scene's own files keep from training."""

    def __post_init__(self) -> None:
        """Check that there is something, that names are unique and that lengths agree."""
        assert len(self.names) == len(self.paths) == len(self.cameras) == len(self.lenses)
        if len(set(self.names)) < len(self.names):
            twice = next(name for name in self.names if self.names.count(name) > 1)
            raise InputError(
                f"The scene {self.folder} names the frame {twice} more than once: keep one of them."
            )
        if not any(self.has_photo(index) for index in range(len(self))):
            raise InputError(
                f"No images were found for the {len(self)} frames of {self.folder}: a scene needs "
                f"at least two photos on disk; the first was expected at {self.paths[0]}."
            )

    def __len__(self) -> int:
        """Number of frames, those without a photo included."""
        return len(self.names)

    def has_photo(self, index: int) -> bool:
        """Return whether the photo of a frame is on disk; it is not opened."""
        return self.paths[index].is_file()


def require_precision(folder: Path, position: Float[np.ndarray, "N 3"]) -> None:
    """Check that single precision can tell the places of cameras apart.

    Map coordinates, millions of metres from their origin, are rounded to half a metre.

    Args:
        folder: The scene, for the sentence.
        position: Camera centres in double precision, in world units.

    Raises:
        InputError: The cameras are too far from the origin for how near they are to each other.
    """
    reach = float(np.abs(position).max())
    spread = float(np.ptp(position, axis=0).max())
    if _SAME_PLACE * reach < spread < _LEAST_SPREAD * _ROUNDING * reach:
        raise InputError(
            f"The cameras of {folder} stand within {spread:.3g} units of each other and "
            f"{reach:.3g} from the origin, which single precision cannot tell apart: move the "
            "origin of poses and points to the cameras."
        )


def points_for(capture: Capture, frames: tuple[int, ...]) -> PointCloud | None:
    """Keep only the points that at least two of the given frames see.

    Even these were triangulated with every frame of the capture, held-out ones included. Returns
    none where the files hold no points, do not say which frames see them, or none are left.
    """
    if capture.points is None or capture.tracks is None:
        return None
    chosen = torch.isin(capture.tracks.frame, torch.tensor(frames, dtype=torch.long))
    pairs = torch.stack([capture.tracks.point[chosen], capture.tracks.frame[chosen]], dim=-1)
    seen = torch.bincount(pairs.unique(dim=0)[:, 0], minlength=len(capture.points))
    kept = seen >= 2
    return capture.points[kept] if bool(kept.any()) else None
