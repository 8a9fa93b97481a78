"""Scenes in and out. Adding a format is one file with `detect` and `load`, and one line here."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from fvgen_recon.errors import InputError
from fvgen_recon.io.scenes import blender, colmap, nerfstudio, photos, seva
from fvgen_recon.io.scenes.capture import Capture as Capture
from fvgen_recon.io.scenes.capture import Lens as Lens
from fvgen_recon.io.scenes.capture import Tracks as Tracks
from fvgen_recon.io.scenes.capture import points_for as points_for
from fvgen_recon.io.scenes.loading import load_frame as load_frame
from fvgen_recon.io.scenes.loading import load_scene as load_scene
from fvgen_recon.io.scenes.loading import photo_size as photo_size
from fvgen_recon.io.scenes.loading import smallest_size as smallest_size
from fvgen_recon.io.scenes.loading import view_camera as view_camera
from fvgen_recon.io.scenes.selection import ViewSelection as ViewSelection
from fvgen_recon.io.scenes.selection import ViewSplit as ViewSplit
from fvgen_recon.io.scenes.selection import select_views as select_views
from fvgen_recon.io.scenes.writing import write_transforms as write_transforms


@dataclass(frozen=True, kw_only=True, slots=True)
class SceneLoader:
    """A scene format: how to recognise it and how to read it."""

    detect: Callable[[Path], bool]
    """Returns whether a folder holds this format; opens no pixels."""
    load: Callable[[Path, Path], Capture]
    """Reads it; the second folder keeps what was costly to compute."""


LOADERS: dict[str, SceneLoader] = {
    "seva": SceneLoader(detect=seva.detect, load=seva.load),
    "nerfstudio": SceneLoader(detect=nerfstudio.detect, load=nerfstudio.load),
    "colmap": SceneLoader(detect=colmap.detect, load=colmap.load),
    "blender": SceneLoader(detect=blender.detect, load=blender.load),
    "photos": SceneLoader(detect=photos.detect, load=photos.load),
}
"""Formats in the order in which they are tried."""
_POSED = ("seva", "nerfstudio", "colmap", "blender")


def load_capture(path: Path, *, format: str | None = None, cache: Path | None = None) -> Capture:
    """Read what a scene's files say of its frames, without opening pixels.

    Only plain photos are opened, as their poses come from them.

    Args:
        path: Scene folder, or a `transforms.json`.
        format: One of `LOADERS`; recognised from the files where not given.
        cache: Folder that keeps the poses of plain photos; a run folder or, by default, the user's
            cache folder (`$XDG_CACHE_HOME`, `~/.cache`).

    Raises:
        InputError: The folder is missing or holds no scene that can be read.
    """
    if not path.exists():
        raise InputError(f"The scene {path} was expected and is not there.")
    if format is not None and format not in LOADERS:
        raise InputError(
            f"There is no scene format `{format}`: choose one of {', '.join(LOADERS)}."
        )
    names = [format] if format is not None else [n for n in LOADERS if LOADERS[n].detect(path)]
    if not names:
        raise InputError(
            f"{path} is not a scene: a transforms.json, a COLMAP model or a folder of photos was "
            "expected."
        )
    return LOADERS[names[0]].load(path, cache or _cache_folder())


def posed_scenes(folder: Path) -> tuple[Path, ...]:
    """Return the folder if it is a scene with poses, else its sub-folders that are, by name.

    Raises:
        InputError: The folder is missing or holds none.
    """
    if not folder.is_dir():
        raise InputError(f"A folder of scenes was expected: {folder} is not there.")
    if _has_poses(folder):
        return (folder,)
    found = sorted(place for place in folder.iterdir() if place.is_dir() and _has_poses(place))
    if not found:
        raise InputError(
            f"No scene with poses (transforms.json, COLMAP, SEVA or Blender) was found in {folder}."
        )
    return tuple(found)


def _has_poses(folder: Path) -> bool:
    return any(LOADERS[name].detect(folder) for name in _POSED)


def _cache_folder() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "fvgen_recon" / "poses"
