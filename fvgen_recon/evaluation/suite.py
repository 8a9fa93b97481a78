"""Benchmark suites: which scenes, which photos of them, and which of these are inputs."""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from fvgen_recon.errors import InputError
from fvgen_recon.evaluation.protocol import (
    Split,
    every_nth,
    folder_split,
    fsgs_split,
    mipnerf360_split,
)
from fvgen_recon.io.file import read_json, write_json
from fvgen_recon.io.scenes import Capture, ViewSelection, load_capture, select_views

_LOG = logging.getLogger(__name__)

SplitRule = Callable[[str, Capture, int], Split]
"""Takes a scene's name, its capture and a number of input views."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Suite:
    """A set of scenes with a rule for their splits."""

    name: str
    """Name on the command line."""
    rule: SplitRule
    """Chooses inputs and test views."""
    layout: str
    """What the data folder must look like, in words."""
    photos: str | None = None
    """Folder of reduced photos to use where a scene has it, or none for the scene's own."""
    freezes: bool = False
    """Whether a split is kept as a list once it has been made."""


def farthest_point_split(scene: str, capture: Capture, num_views: int) -> Split:
    """Hold out every 8th view from the first; choose inputs by farthest point over the rest.

    The distance is over camera positions and viewing directions, the first view is drawn with seed
    0, and the choices of growing counts are nested.
    """
    del scene
    test = every_nth(len(capture), 8)
    selection = ViewSelection(count=num_views, held_out=test)
    return Split(
        inputs=select_views(capture, selection).inputs,
        test=test,
        rule="test every 8th view from index 0, inputs by farthest point (seed 0)",
    )


def small_folder_split(scene: str, capture: Capture, num_views: int) -> Split:
    """Split any posed scene; a scene with fewer photos than wanted gives all but the test views."""
    del scene
    num_left = len(capture) - len(folder_split(len(capture), 1).test)
    split = folder_split(len(capture), min(num_views, num_left))
    if num_views <= num_left:
        return split
    return replace(split, rule=f"{split.rule}; the scene has only {num_left} for {num_views}")


def _by_count(rule: Callable[..., Split], **fixed: str) -> SplitRule:
    """Make a rule of one that needs no more than the number of photos."""
    return lambda scene, capture, num_views: rule(len(capture), num_views, **fixed)


_COLMAP = "DATA/SCENE/sparse/0/{cameras,images,points3D}.bin and DATA/SCENE/images/"
_MIPNERF360 = (
    "DATA/{bicycle,bonsai,counter,flowers,garden,kitchen,room,stump,treehill}/ of the public "
    "360_v2 release, each with sparse/0/ and images_4/"
)

SUITES: Mapping[str, Suite] = {
    suite.name: suite
    for suite in (
        Suite(
            name="folder",
            rule=small_folder_split,
            layout="DATA/SCENE/ in any format that fvgen-recon reads, such as transforms.json with "
            "images/",
        ),
        Suite(
            name="mipnerf360",
            rule=lambda scene, capture, n: mipnerf360_split(scene, len(capture), n),
            layout=_MIPNERF360,
            photos="images_4",
        ),
        Suite(
            name="mipnerf360-fsgs",
            rule=_by_count(fsgs_split, rounding="round"),
            layout=_MIPNERF360.replace("images_4", "images_8"),
            photos="images_8",
        ),
        Suite(
            name="mipnerf360-floor",
            rule=_by_count(fsgs_split, rounding="floor"),
            layout=_MIPNERF360.replace("images_4", "images_8"),
            photos="images_8",
        ),
        Suite(
            name="llff",
            rule=_by_count(fsgs_split, rounding="round"),
            layout=f"{_COLMAP}, with images_8/ for the published size",
            photos="images_8",
        ),
        Suite(
            name="tanks-and-temples",
            rule=farthest_point_split,
            layout=f"{_COLMAP}, for example `truck` and `train` of 3DGS's tandt archive",
            freezes=True,
        ),
    )
}
"""Suites by name. `mipnerf360-fsgs` rounds evenly spread places to the nearest photo, as FSGS does;
`mipnerf360-floor` rounds them down, as nerfbaselines does: the ids differ."""


def open_scene(suite: Suite, folder: Path) -> Capture:
    """Read a scene of a suite; no photo is opened.

    Raises:
        InputError: The folder holds no scene.
    """
    capture = load_capture(folder)
    if suite.photos is None:
        return capture
    if not (folder / suite.photos).is_dir():
        _LOG.warning(
            "%s has no %s/: its photos' own size is used, with which published tables of %s cannot "
            "be compared.",
            folder,
            suite.photos,
            suite.name,
        )
        return capture
    reduced = folder / suite.photos
    paths = tuple(reduced / path.name for path in capture.paths)
    files = sorted(path for path in reduced.iterdir() if path.is_file())
    if not any(path.is_file() for path in paths) and len(files) == len(paths):
        # LLFF's reduced photos have other names, in the same order.
        order = sorted(range(len(capture)), key=lambda index: capture.names[index])
        paths = tuple(files[order.index(index)] for index in range(len(capture)))
    return replace(capture, paths=paths)


def choose_split(suite: Suite, scene: str, capture: Capture, num_views: int, frozen: Path) -> Split:
    """Return the split of a scene; a suite that freezes keeps and obeys a list.

    Args:
        suite: Whose rule to follow.
        scene: Name of the scene.
        capture: The scene.
        num_views: Number of inputs.
        frozen: JSON file of the lists, for suites that freeze.

    Raises:
        InputError: The views do not suffice, or the list is of another number of photos.
    """
    if not suite.freezes:
        return suite.rule(scene, capture, num_views)
    lists = read_json(frozen) if frozen.is_file() else {}
    entry = lists.setdefault(scene, {"num_images": len(capture), "train": {}})
    if entry["num_images"] != len(capture):
        raise InputError(
            f"The list of {scene} in {frozen} is of {entry['num_images']} photos and "
            f"{len(capture)} were found: use the same photos, or remove the list."
        )
    key = str(num_views)
    if key not in entry["train"]:
        split = suite.rule(scene, capture, num_views)
        entry |= {"test": list(split.test), "rule": split.rule}
        entry["train"][key] = list(split.inputs)
        write_json(frozen, lists)
    return Split(inputs=tuple(entry["train"][key]), test=tuple(entry["test"]), rule=entry["rule"])


def find_scenes(suite: Suite, data: Path, wanted: tuple[str, ...] = ()) -> tuple[Path, ...]:
    """Return the folders of the scenes to run.

    Args:
        suite: Which suite.
        data: Folder with one folder a scene.
        wanted: Names of scenes; all by default.

    Raises:
        InputError: The data or a wanted scene is not there.
    """
    folders = sorted(p for p in data.iterdir() if p.is_dir()) if data.is_dir() else []
    missing = sorted(set(wanted) - {folder.name for folder in folders})
    if not folders or missing:
        what = f"the scenes {', '.join(missing)} are" if missing else "no scene is"
        raise InputError(
            f"The suite {suite.name} expects {suite.layout}; {what} in {data}. "
            "benchmarks/README.md says where to get the data."
        )
    return tuple(folder for folder in folders if not wanted or folder.name in wanted)
