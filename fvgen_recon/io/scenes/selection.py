"""Which frames are inputs; everything not chosen is held out."""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fvgen_recon.errors import InputError
from fvgen_recon.io.file import read_json
from fvgen_recon.io.scenes.capture import Capture

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class ViewSelection:
    """How to choose the input views; at most one of the ways may be given."""

    count: int | None = None
    """This many views: farthest-point over position and viewing direction, or `evenly`."""
    evenly: bool = False
    """With `count`: spread evenly over the frames in file order."""
    names: tuple[str, ...] = ()
    """These frames, by name or by file name."""
    indices: tuple[int, ...] = ()
    """These frames, by index in the capture."""
    split: Path | None = None
    """A `train_test_split_N.json` with `train_ids` and `test_ids`; a relative path may start at the
    scene folder."""
    held_out: tuple[int, ...] = ()
    """Frames that `count` must not choose, by index; the rest of the unchosen are held out too."""
    seed: int = 0
    """Seed of the first view of the farthest-point choice."""

    def __post_init__(self) -> None:
        """Check that the ways do not contradict each other."""
        ways = sum([self.count is not None, bool(self.names), bool(self.indices), bool(self.split)])
        if ways > 1:
            raise InputError(
                "Choose input views by one of count, names, indices or a split file, not by "
                f"{ways} of them at once."
            )
        if self.count is not None and self.count < 2:
            raise InputError(f"At least two input views are needed: {self.count} came.")


@dataclass(frozen=True, kw_only=True, slots=True)
class ViewSplit:
    """The input frames and the held-out frames of a capture."""

    inputs: tuple[int, ...]
    """Indices of the input frames, ascending."""
    held_out: tuple[int, ...]
    """Indices of the frames that only evaluation may open, ascending."""


def select_views(capture: Capture, selection: ViewSelection) -> ViewSplit:
    """Choose the input views of a capture; all of them where the selection names none.

    Frames without a photo are neither chosen nor held out. Frames that the scene's own files hold
    out are chosen only by name, index or split.

    Raises:
        InputError: A name or an id is unknown, a chosen frame has no photo, more views are asked
            for than there are, or fewer than two come of it.
    """
    with_photo = tuple(i for i in range(len(capture)) if capture.has_photo(i))
    test = with_photo
    if selection.split is not None:
        chosen, test = _read_split(capture, selection.split)
    elif selection.names:
        chosen = tuple(_index_of(capture, name) for name in selection.names)
    elif selection.indices:
        chosen = _checked(selection.indices, len(capture), "The indices")
    elif selection.count is not None:
        _warn_missing(capture, with_photo)
        chosen = _choose(capture, selection, _free(capture, selection, with_photo))
    else:
        _warn_missing(capture, with_photo)
        chosen = _free(capture, selection, with_photo)
    inputs = tuple(sorted(set(chosen)))
    _require_photos(capture, inputs)
    return ViewSplit(inputs=inputs, held_out=_held_out(capture, inputs, test))


def _warn_missing(capture: Capture, with_photo: tuple[int, ...]) -> None:
    """Say which frames cannot take part."""
    missing = sorted(set(range(len(capture))) - set(with_photo))
    if missing:
        _LOG.warning(
            "%d of %d frames have no photo and are left out; the first was expected at %s.",
            len(missing),
            len(capture),
            capture.paths[missing[0]],
        )


def _require_photos(capture: Capture, inputs: tuple[int, ...]) -> None:
    missing = [capture.paths[i] for i in inputs if not capture.has_photo(i)]
    if missing:
        raise InputError(f"The chosen photo {missing[0]} is not there: choose others or copy it.")
    if len(inputs) < 2:
        listed = len(capture.held_out)
        reason = f", whose own lists hold out {listed} of {len(capture)} frames" if listed else ""
        raise InputError(
            f"At least two input views are needed: {len(inputs)} came from {capture.folder}"
            f"{reason}: add photos that show the same things, or choose more."
        )


def _held_out(capture: Capture, inputs: tuple[int, ...], test: tuple[int, ...]) -> tuple[int, ...]:
    """Return the test frames that are no inputs and have a photo, and say how many have none."""
    wanted = sorted(set(test) - set(inputs))
    kept = tuple(i for i in wanted if capture.has_photo(i))
    if len(kept) < len(wanted):
        _LOG.warning(
            "%d of %d held-out frames have no photo: they are not evaluated, and numbers differ "
            "from those on all frames.",
            len(wanted) - len(kept),
            len(wanted),
        )
    return kept


def _free(
    capture: Capture, selection: ViewSelection, with_photo: tuple[int, ...]
) -> tuple[int, ...]:
    """Return the frames that may be chosen."""
    excluded = set(_checked(selection.held_out, len(capture), "The held-out indices"))
    excluded |= set(capture.held_out)
    return tuple(i for i in with_photo if i not in excluded)


def _checked(ids: tuple[int, ...], total: int, what: str) -> tuple[int, ...]:
    unknown = [i for i in ids if not 0 <= i < total]
    if unknown:
        raise InputError(f"{what} name frame {unknown[0]}; this scene has frames 0 to {total - 1}.")
    return ids


def _index_of(capture: Capture, name: str) -> int:
    if name in capture.names:
        return capture.names.index(name)  # Even where it is the file name of another frame, too.
    matches = [i for i, n in enumerate(capture.names) if name in {Path(n).name, Path(n).stem}]
    if len(matches) != 1:
        found = "no frame" if not matches else f"{len(matches)} frames"
        raise InputError(f"The name {name} matches {found} of this scene: give one full file name.")
    return matches[0]


def _read_split(capture: Capture, path: Path) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the training and the test frames of a split file."""
    file = path if path.is_absolute() or path.is_file() else capture.folder / path
    content = read_json(file)
    train, test = (
        _checked(_ids(file, content, key), len(capture), f"The {key} of {file}")
        for key in ("train_ids", "test_ids")
    )
    overlap = sorted(set(train) & set(test))
    if overlap:
        raise InputError(f"{file} lists frame {overlap[0]} both for training and for testing.")
    return train, test


def _ids(file: Path, content: Any, key: str) -> tuple[int, ...]:
    ids = content.get(key) if isinstance(content, dict) else None
    if not isinstance(ids, list) or not all(type(i) is int for i in ids):
        raise InputError(f"{file} needs a list of whole numbers `{key}`: it is not a view split.")
    return tuple(ids)


def _choose(capture: Capture, selection: ViewSelection, free: tuple[int, ...]) -> tuple[int, ...]:
    count = selection.count or 0
    if count > len(free):
        raise InputError(
            f"{count} input views were asked for and {capture.folder} has {len(free)} photos to "
            "choose from."
        )
    if selection.evenly:
        places = torch.linspace(0, len(free) - 1, count).round().long().tolist()
        return tuple(free[place] for place in places)
    return _farthest_points(capture, free, count, selection.seed)


def _farthest_points(
    capture: Capture, free: tuple[int, ...], count: int, seed: int
) -> tuple[int, ...]:
    """Choose views that cover positions and viewing directions.

    The distance is Euclidean over position (in units of the mean distance from the mean position,
    so the world's scale does not matter) and unit viewing direction; the first view is drawn.
    """
    position = torch.stack([capture.cameras[i].position for i in free]).double()
    direction = torch.stack([capture.cameras[i].direction for i in free]).double()
    spread = (position - position.mean(0)).norm(dim=-1).mean().clamp_min(1e-9)
    feature = torch.cat([position / spread, direction], dim=-1)
    rng = torch.Generator().manual_seed(seed)
    chosen = [int(torch.randint(len(free), (), generator=rng))]
    distance = torch.full((len(free),), torch.inf, dtype=torch.float64)
    while len(chosen) < count:
        distance = torch.minimum(distance, (feature - feature[chosen[-1]]).norm(dim=-1))
        distance[chosen] = -1.0
        chosen.append(int(distance.argmax()))
    return tuple(free[i] for i in chosen)
