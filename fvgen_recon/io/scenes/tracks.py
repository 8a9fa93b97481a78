"""Tracks that came with a `transforms.json`: which frames see which point."""

import zipfile
from pathlib import Path

import numpy as np
import torch

from fvgen_recon.errors import InputError
from fvgen_recon.io.scenes.capture import Tracks
from fvgen_recon.types import PointCloud

TRACKS = "tracks.npz"
_KEYS = ("xyz", "rgb", "obs_point", "obs_frame", "obs_uv")


def read_tracks(path: Path, frame_of: list[int]) -> tuple[PointCloud, Tracks]:
    """Read points and their observations.

    Args:
        path: A `.npz` of `xyz` (N 3), `rgb` (N 3, bytes or floats in [0, 1]), `obs_point`,
            `obs_frame` (O) and `obs_uv` (O 2, pixels).
        frame_of: Index in the capture of each frame that `obs_frame` counts.

    Raises:
        InputError: The file is damaged, lacks an array, or an index points nowhere.
    """
    try:
        with np.load(path) as file:
            arrays = {key: file[key] for key in _KEYS}
    except (KeyError, ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise InputError(
            f"{path} cannot be read as tracks ({error}): it needs {', '.join(_KEYS)}; export it "
            "again or remove it."
        ) from error
    num_points = len(arrays["xyz"])
    point, frame = (torch.from_numpy(arrays[k].astype(np.int64)) for k in _KEYS[2:4])
    if not (_inside(point, num_points) and _inside(frame, len(frame_of))):
        raise InputError(f"{path} has observations of points or frames that do not exist.")
    scale = 255.0 if arrays["rgb"].dtype.kind in "iu" else 1.0
    points = PointCloud(
        xyz=torch.from_numpy(arrays["xyz"].astype(np.float32)),
        rgb=torch.from_numpy(arrays["rgb"].astype(np.float32) / scale),
        confidence=torch.ones(num_points),
        view=torch.full((num_points,), -1, dtype=torch.long),
    )
    uv = torch.from_numpy(arrays["obs_uv"].astype(np.float32))
    frames = torch.tensor(frame_of, dtype=torch.long)[frame]
    return points, Tracks(point=point, frame=frames, uv=uv)


def _inside(index: torch.Tensor, count: int) -> bool:
    return index.numel() == 0 or (int(index.min()) >= 0 and int(index.max()) < count)
