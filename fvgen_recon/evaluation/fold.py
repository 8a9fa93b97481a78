"""The part of a scene that a method may see: input photos, and test poses without their photos.

A method is trained on a folder in which the held-out photos do not exist, so that one which tries
to open them fails. Every method gets the same pixels: undistorted, of one size.
"""

import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from fvgen_recon.evaluation.protocol import Split
from fvgen_recon.geometry.projection import project_points
from fvgen_recon.io.file import atomic_path, read_json, write_json
from fvgen_recon.io.image import is_turned, write_image
from fvgen_recon.io.scenes import (
    Capture,
    load_scene,
    photo_size,
    points_for,
    view_camera,
    write_transforms,
)
from fvgen_recon.io.scenes.tracks import TRACKS
from fvgen_recon.types import Cameras, Scene

_NOTE = "fold.json"
SPLIT = "split.json"
"""The split file of a fold, as view selection reads it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Fold:
    """A scene cut for one trial; it can be made again from the capture and the split."""

    folder: Path
    """Scene folder: `transforms.json`, `split.json` and the photos of the inputs."""
    inputs: tuple[int, ...]
    """Ids of the input views in the capture."""
    test: tuple[int, ...]
    """Ids of the test views in the capture; their poses are in the folder, their photos are not."""
    height: int
    """Height of all images in pixels."""
    width: int
    """Width of all images in pixels."""

    @property
    def split(self) -> Path:
        """File with the ids of inputs and test views, counted within the fold."""
        return self.folder / SPLIT


def fold_size(capture: Capture, split: Split, long_side: int) -> tuple[int, int]:
    """Return the height and width that all images of a fold get.

    Args:
        capture: The whole scene.
        split: Which views are inputs; only the headers of their photos are read.
        long_side: Longest side allowed in pixels; 0 keeps the photos' size.
    """
    sizes = [photo_size(capture, index) for index in split.inputs]
    height, width = min(h for h, _ in sizes), min(w for _, w in sizes)
    scale = min(1.0, long_side / max(height, width)) if long_side else 1.0
    return max(1, round(height * scale)), max(1, round(width * scale))


def write_fold(capture: Capture, split: Split, folder: Path, *, long_side: int = 0) -> Fold:
    """Write the scene as a method may see it; no held-out photo is opened.

    A photo that needs no change is copied as it is, others are written without loss. Of the points
    that came with the scene, those that two inputs see are kept: they were still made with every
    photo, so a trial that starts from them says so.

    Args:
        capture: The whole scene.
        split: Inputs and test views.
        folder: Where to write; what was there is replaced.
        long_side: Longest image side in pixels; 0 keeps the photos' size.

    Raises:
        InputError: An input photo cannot be used.
    """
    shutil.rmtree(folder, ignore_errors=True)
    height, width = fold_size(capture, split, long_side)
    scene = load_scene(capture, split.inputs, height=height, width=width)
    names = tuple(
        _write_photo(capture, index, scene, place, folder)
        for place, index in enumerate(split.inputs)
    )
    tests = held_out_cameras(capture, split, height, width)
    cameras = Cameras(
        c2w=torch.cat([scene.cameras.c2w, tests.c2w]),
        K=torch.cat([scene.cameras.K, tests.K]),
        height=height,
        width=width,
    )
    all_names = names + tuple(_name(index, ".png") for index in split.test)
    order = sorted(range(len(all_names)), key=lambda place: all_names[place])
    write_transforms(folder, cameras[order], tuple(all_names[place] for place in order))
    rank = {place: index for index, place in enumerate(order)}
    train_ids = [rank[place] for place in range(len(names))]
    test_ids = [rank[place] for place in range(len(names), len(all_names))]
    write_json(folder / SPLIT, {"train_ids": train_ids, "test_ids": test_ids})
    _write_tracks(folder / TRACKS, capture, split.inputs, scene.cameras, train_ids)
    note = {"inputs": split.inputs, "test": split.test, "height": height, "width": width}
    write_json(folder / _NOTE, note)
    return read_fold(folder)


def read_fold(folder: Path) -> Fold:
    """Read what `write_fold` wrote.

    Raises:
        InputError: There is no fold.
    """
    note = read_json(folder / _NOTE)
    return Fold(
        folder=folder,
        inputs=tuple(note["inputs"]),
        test=tuple(note["test"]),
        height=note["height"],
        width=note["width"],
    )


def held_out_scene(capture: Capture, fold: Fold) -> Scene:
    """Open the held-out photos at the fold's size, for scoring and for nothing else."""
    return load_scene(capture, fold.test, height=fold.height, width=fold.width)


def held_out_cameras(capture: Capture, split: Split, height: int, width: int) -> Cameras:
    """Return the cameras of the test views at an image size; no photo is opened.

    A held-out photo is taken to be as much smaller than its intrinsics say as the first input is.
    """
    first = split.inputs[0]
    ratio = photo_size(capture, first)[0] / capture.cameras[first].height
    rows = []
    for index in split.test:
        camera = capture.cameras[index]
        on_disk = (round(camera.height * ratio), round(camera.width * ratio))
        rows.append(view_camera(capture, index, on_disk, height=height, width=width))
    return Cameras(
        c2w=torch.stack([camera.c2w for camera in rows]),
        K=torch.stack([camera.K for camera in rows]),
        height=height,
        width=width,
    )


def _name(index: int, ending: str) -> str:
    return f"images/{index:05d}{ending}"


def _write_photo(capture: Capture, index: int, scene: Scene, place: int, folder: Path) -> str:
    """Write one input photo and return its name."""
    source, ending = capture.paths[index], capture.paths[index].suffix.lower()
    size = (scene.cameras.height, scene.cameras.width)
    is_same = capture.lenses[index].is_pinhole and photo_size(capture, index) == size
    if is_same and ending in {".png", ".jpg", ".jpeg"} and not is_turned(source):
        name = _name(index, ending)
        with atomic_path(folder / name) as temporary:
            shutil.copyfile(source, temporary)
        return name
    write_image(folder / _name(index, ".png"), scene.images[place])
    return _name(index, ".png")


def _write_tracks(
    path: Path, capture: Capture, inputs: tuple[int, ...], cameras: Cameras, frames: list[int]
) -> None:
    """Write the points that two inputs see, with what these inputs see of them and nothing else."""
    points, tracks = points_for(capture, inputs), capture.tracks
    if points is None or tracks is None:
        return
    chosen = torch.isin(tracks.frame, torch.tensor(inputs))
    pairs = torch.stack([tracks.point[chosen], tracks.frame[chosen]], dim=-1).unique(dim=0)
    kept, counts = pairs[:, 0].unique(return_counts=True)
    kept = kept[counts >= 2]
    pairs = pairs[torch.isin(pairs[:, 0], kept)]
    point = torch.searchsorted(kept, pairs[:, 0].contiguous())
    place = torch.tensor([inputs.index(int(frame)) for frame in pairs[:, 1]], dtype=torch.long)
    uv = torch.stack([project_points(points.xyz, camera)[0] for camera in cameras])
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        np.savez(
            file,
            xyz=points.xyz.numpy(),
            rgb=points.rgb.numpy(),
            obs_point=point.numpy(),
            obs_frame=torch.tensor(frames)[place].numpy(),
            obs_uv=uv[place, point].numpy(),
        )
