"""Scenes that cannot be trained on, each with words of the sentence that a user should read."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from room_folder import write_room
from scene_folder import read_meta, write_meta


@dataclass(frozen=True)
class BadScene:
    """A way to spoil a good scene."""

    spoil: Callable[[Path], None]
    """Spoils the scene in a folder."""
    sentence: str
    """Words that the error must hold."""

    def write(self, folder: Path) -> None:
        """Write a good room of five photos and spoil it."""
        write_room(folder, num_photos=5)
        self.spoil(folder)


def _photos(folder: Path) -> list[Path]:
    return sorted((folder / "images").iterdir())


def _remove_photos(folder: Path) -> None:
    for path in _photos(folder):
        path.unlink()


def _remove_everything(folder: Path) -> None:
    _remove_photos(folder)
    (folder / "transforms.json").unlink()


def _keep_one(folder: Path) -> None:
    meta = read_meta(folder)
    write_meta(folder, {**meta, "frames": meta["frames"][:1]})


def _change_poses(folder: Path, change: Callable[[int, np.ndarray], np.ndarray]) -> None:
    meta = read_meta(folder)
    for index, frame in enumerate(meta["frames"]):
        pose = change(index, np.array(frame["transform_matrix"]))
        frame["transform_matrix"] = pose.tolist()
    write_meta(folder, meta)


def _look_apart(index: int, pose: np.ndarray) -> np.ndarray:
    """Put cameras on a circle, each with its back to the middle."""
    angle = 2 * np.pi * index / 5
    sine, cosine = np.sin(angle), np.cos(angle)
    pose[:3, :3] = [[cosine, 0, -sine], [0, 1, 0], [sine, 0, cosine]]  # OpenGL: z points backward.
    pose[:3, 3] = -3.0 * pose[:3, 2]
    return pose


def _stretch(_: int, pose: np.ndarray) -> np.ndarray:
    pose[:3, 0] *= 1.5
    return pose


def _lose(index: int, pose: np.ndarray) -> np.ndarray:
    pose[0, 3] = np.nan if index == 2 else pose[0, 3]
    return pose


def _resize(folder: Path) -> None:
    for path in _photos(folder):
        Image.open(path).resize((48, 48)).save(path)


def _truncate(folder: Path) -> None:
    for path in _photos(folder):
        path.write_bytes(path.read_bytes()[:300])


def _drop(*keys: str) -> Callable[[Path], None]:
    def drop(folder: Path) -> None:
        meta: dict[str, Any] = read_meta(folder)
        frames = [{k: v for k, v in f.items() if k not in keys} for f in meta["frames"]]
        write_meta(folder, {**meta, "frames": frames})

    return drop


BAD_SCENES = {
    "no images": BadScene(_remove_photos, "No images were found"),
    "nothing at all": BadScene(_remove_everything, "is not a scene"),
    "one view": BadScene(_keep_one, "1 photo"),
    "no overlap": BadScene(lambda f: _change_poses(f, _look_apart), "do not overlap"),
    "poses that stretch": BadScene(lambda f: _change_poses(f, _stretch), "must be rigid"),
    "poses that are not finite": BadScene(lambda f: _change_poses(f, _lose), "must be finite"),
    "photos of another size": BadScene(_resize, "48x48"),
    "truncated photos": BadScene(_truncate, "cannot be read"),
    "no intrinsics": BadScene(_drop("fl_x", "fl_y"), "has no intrinsics"),
}
"""By name, what is wrong."""
