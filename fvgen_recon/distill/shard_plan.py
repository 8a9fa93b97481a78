"""Which clips to prepare and into which shards: decided once, before any photo is opened."""

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path, PurePosixPath

import torch

from fvgen_recon.errors import InputError
from fvgen_recon.io.file import read_json, write_json
from fvgen_recon.io.scenes import LOADERS, Capture, load_capture
from fvgen_recon.pointcloud import make_estimator

PLAN = "plan.json"
_SCHEMA = 1
_POSED = ("seva", "nerfstudio", "colmap")
_DEPTH = 4


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardSettings:
    """What a prepared data set is made of; part of its plan, so it cannot change midway."""

    num_frames: int = 16
    """Frames of a clip."""
    height: int = 320
    """Height of the frames; photos are scaled to cover the size and cropped at the centre."""
    width: int = 512
    """Width of the frames."""
    strides: tuple[int, ...] = (1,)
    """Distances between consecutive frames of a clip, in photos; each gives clips of its own."""
    hop: int | None = None
    """Photos between the starts of two clips of one stride; by default a clip's own extent."""
    clips_per_scene: int | None = 2
    """Clips drawn from a scene's possible ones; none takes them all."""
    max_clips: int | None = None
    """Clips altogether; none takes them all."""
    clips_per_shard: int = 16
    """Clips in one tar."""
    num_views: int = 2
    """Frames of a clip that its cloud is made from, spread evenly, first and last included."""
    estimator: str = "plane-sweep"
    """Point-cloud source: plane-sweep, mvs, stereo, dataset, dust3r or random."""
    min_confidence: float = 0.5
    """Confidence from which a point is rendered."""
    is_raw: bool = False
    """Bare renders in the teacher's manner, instead of opaque surfaces."""
    photos: str | None = None
    """Folder of photos to use instead of the one that a scene's files name, such as `images_4`."""
    quality: int = 95
    """JPEG quality of photos and renders."""
    codec: str | None = None
    """Kind of model whose codec encodes latents, `viewcrafter` or `compact`; none stores none."""
    codec_folder: str | None = None
    """Its folder of weights."""
    seed: int = 0
    """Draws scenes' order and their clips."""

    def __post_init__(self) -> None:
        """Check that the numbers make sense."""
        counts = (self.num_frames - 1, self.num_views - 1, self.clips_per_shard, *self.strides)
        limits = [n for n in (self.hop, self.clips_per_scene, self.max_clips) if n is not None]
        if min((*counts, *limits)) < 1 or not self.strides:
            raise InputError(
                "A clip needs at least two frames and two views, and strides, hop and numbers of "
                "clips must be 1 or more."
            )
        if self.num_views > self.num_frames:
            raise InputError(
                f"A cloud of {self.num_views} views was asked for from clips of "
                f"{self.num_frames} frames: ask for fewer views."
            )
        make_estimator(self.estimator)  # Its name is known.
        if (self.codec is None) != (self.codec_folder is None):
            raise InputError("Latents need both the codec's kind and its folder: one came.")

    @property
    def views(self) -> tuple[int, ...]:
        """Frames of a clip that its cloud is made from."""
        places = torch.linspace(0, self.num_frames - 1, self.num_views)
        return tuple(places.round().long().tolist())


@dataclass(frozen=True, kw_only=True, slots=True)
class ClipWindow:
    """Consecutive photos of one scene."""

    scene: str
    """Path of the scene below the data folder."""
    frames: tuple[int, ...]
    """Indices of the photos in the scene's capture."""

    @property
    def key(self) -> str:
        """Unique name of the clip."""
        readable = re.sub(r"[^A-Za-z0-9_-]+", "-", self.scene)[-40:]
        digest = hashlib.sha256(json.dumps([self.scene, self.frames]).encode()).hexdigest()
        return f"{readable}_{self.frames[0]:05d}_{digest[:8]}"


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardPlan:
    """Everything that a data set will hold."""

    settings: ShardSettings
    """How its clips are made."""
    shards: tuple[tuple[ClipWindow, ...], ...]
    """The clips of each shard."""

    @property
    def fingerprint(self) -> str:
        """Digest of the whole plan; each shard carries it."""
        content = json.dumps(_content(self), sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()[:16]

    @property
    def num_clips(self) -> int:
        """Clips in all shards."""
        return sum(len(shard) for shard in self.shards)


def find_scenes(root: Path) -> list[str]:
    """Return the paths, below a folder, of the posed scenes in it, sorted.

    A folder with a `nerfstudio` folder inside (as in DL3DV's benchmark) counts as that one scene.

    Raises:
        InputError: The folder is missing or holds no posed scene.
    """
    if not root.is_dir():
        raise InputError(f"The data folder {root} was expected and is not there.")
    found = sorted(p.relative_to(root).as_posix() for p in _scenes_below(root, _DEPTH))
    if not found:
        raise InputError(
            f"{root} holds no posed scene: folders with a transforms.json or a COLMAP model were "
            "expected."
        )
    return found


def _scenes_below(folder: Path, depth: int) -> Iterator[Path]:
    inner = folder / "nerfstudio"
    if inner.is_dir() and _is_posed(inner):
        yield inner
    elif _is_posed(folder):
        yield folder
    elif depth > 0:
        for child in sorted(folder.iterdir()):
            if child.is_dir() and not child.name.startswith("."):
                yield from _scenes_below(child, depth - 1)


def _is_posed(folder: Path) -> bool:
    return any(LOADERS[name].detect(folder) for name in _POSED)


def drop_excluded(scenes: Sequence[str], excluded: Sequence[str]) -> list[str]:
    """Leave out scenes on a list: by their path, that of a folder above them, or a name on it."""
    names = {PurePosixPath(name.strip()).as_posix() for name in excluded if name.strip()}
    return [scene for scene in scenes if not names & _ways_to_name(PurePosixPath(scene))]


def _ways_to_name(scene: PurePosixPath) -> set[str]:
    """Return a scene's path, those of the folders above it, and the names of all of them."""
    above = [path.as_posix() for path in scene.parents if path.parts]
    return {scene.as_posix(), *above, *scene.parts}


def open_capture(root: Path, scene: str, settings: ShardSettings) -> Capture:
    """Read a scene's cameras, with the folder of photos that the settings name.

    Raises:
        InputError: The scene cannot be read, or has no such folder of photos.
    """
    folder = root / scene
    posed = next((name for name in _POSED if LOADERS[name].detect(folder)), None)
    if posed is None:
        raise InputError(f"The scene {folder} is in the plan and is not there any more.")
    capture = load_capture(folder, format=posed)
    if settings.photos is None:
        return capture
    paths = tuple(capture.folder / settings.photos / path.name for path in capture.paths)
    if not any(path.is_file() for path in paths):
        raise InputError(f"{folder} has no photos in {settings.photos}: name another folder.")
    return replace(capture, paths=paths)


def scene_windows(capture: Capture, scene: str, settings: ShardSettings) -> list[ClipWindow]:
    """Return all clips of a scene, its photos in the order of their names.

    Frames without a photo are left out.
    """
    order = sorted(range(len(capture)), key=lambda i: _natural(capture.names[i]))
    order = [i for i in order if capture.has_photo(i)]
    windows = []
    for stride in settings.strides:
        extent = (settings.num_frames - 1) * stride + 1
        for start in range(0, len(order) - extent + 1, settings.hop or extent):
            windows.append(
                ClipWindow(scene=scene, frames=tuple(order[start : start + extent : stride]))
            )
    return windows


def _natural(name: str) -> tuple[tuple[str, int], ...]:
    return tuple((text, int(digits or 0)) for text, digits in re.findall(r"(\D*)(\d*)", name))


def make_plan(
    root: Path, settings: ShardSettings, *, excluded: Sequence[str] = ()
) -> tuple[ShardPlan, tuple[str, ...]]:
    """Decide on all clips; returns the plan and a sentence for each scene that gives none.

    Scenes are in random order, so that any first part of the data is a fair sample.

    Raises:
        InputError: No scene gives a clip.
    """
    scenes = drop_excluded(find_scenes(root), excluded)
    rng = torch.Generator().manual_seed(settings.seed)
    windows: list[ClipWindow] = []
    problems: list[str] = []
    for index in torch.randperm(len(scenes), generator=rng).tolist():
        try:
            capture = open_capture(root, scenes[index], settings)
            found = scene_windows(capture, scenes[index], settings)
        except InputError as error:
            problems.append(f"{scenes[index]}: {error}")
            continue
        if not found:
            problems.append(f"{scenes[index]}: too few photos for a clip.")
        chosen = torch.randperm(len(found), generator=rng)[: settings.clips_per_scene]
        windows.extend(found[i] for i in sorted(chosen.tolist()))
    windows = windows[: settings.max_clips]
    if not windows:
        first = f" ({problems[0]})" if problems else ""
        raise InputError(f"No scene in {root} gives a clip of {settings.num_frames} photos{first}")
    size = settings.clips_per_shard
    shards = tuple(tuple(windows[i : i + size]) for i in range(0, len(windows), size))
    return ShardPlan(settings=settings, shards=shards), tuple(problems)


def write_plan(folder: Path, plan: ShardPlan) -> None:
    """Write a plan into the folder of the data set."""
    write_json(folder / PLAN, _content(plan))


def is_prepared(folder: Path) -> bool:
    """Tell whether a folder is a prepared data set, finished or not."""
    return (folder / PLAN).is_file()


def read_plan(folder: Path) -> ShardPlan:
    """Read the plan of a data set.

    Raises:
        InputError: There is none, or it is of another version.
    """
    path = folder / PLAN
    content = read_json(path)
    if not isinstance(content, dict) or content.get("schema") != _SCHEMA:
        raise InputError(f"{path} is not a plan of schema {_SCHEMA}: prepare into a new folder.")
    values = content["settings"]
    if set(values) != {f.name for f in fields(ShardSettings)}:
        raise InputError(f"{path} was written by another version: prepare into a new folder.")
    values["strides"] = tuple(values["strides"])
    shards = tuple(
        tuple(ClipWindow(scene=w["scene"], frames=tuple(w["frames"])) for w in shard)
        for shard in content["shards"]
    )
    return ShardPlan(settings=ShardSettings(**values), shards=shards)


def _content(plan: ShardPlan) -> dict[str, object]:
    shards = [[{"scene": w.scene, "frames": list(w.frames)} for w in s] for s in plan.shards]
    settings = asdict(plan.settings)
    settings["strides"] = list(plan.settings.strides)
    return {"schema": _SCHEMA, "settings": settings, "shards": shards}
