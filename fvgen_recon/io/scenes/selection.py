"""Which frames are inputs; everything not chosen is held out."""

from dataclasses import dataclass
from pathlib import Path

import torch

from fvgen_recon.errors import InputError
from fvgen_recon.io.file import read_json
from fvgen_recon.io.scenes.capture import Capture


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
    """These frames, by index in file-name order."""
    split: Path | None = None
    """A `train_test_split_N.json` with `train_ids` and `test_ids`."""
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
        if self.count is not None and self.count < 1:
            raise InputError(f"At least one input view is needed: {self.count} were asked for.")


@dataclass(frozen=True, kw_only=True, slots=True)
class ViewSplit:
    """The input frames and the held-out frames of a capture."""

    inputs: tuple[int, ...]
    """Indices of the input frames, ascending."""
    held_out: tuple[int, ...]
    """Indices of the frames that only evaluation may open, ascending."""


def select_views(capture: Capture, selection: ViewSelection) -> ViewSplit:
    """Choose the input views of a capture; all of them where the selection names none.

    Raises:
        InputError: A name or an id is unknown, or more views are asked for than there are.
    """
    total = len(capture)
    test: tuple[int, ...] | None = None
    if selection.split is not None:
        chosen, test = _read_split(capture, selection.split)
    elif selection.names:
        chosen = tuple(_index_of(capture, name) for name in selection.names)
    elif selection.indices:
        chosen = _checked(selection.indices, total, "The indices")
    elif selection.count is not None:
        chosen = _choose(capture, selection)
    else:
        chosen = tuple(i for i in range(total) if i not in set(selection.held_out))
    inputs = tuple(sorted(set(chosen)))
    rest = tuple(i for i in range(total) if i not in set(inputs))
    return ViewSplit(inputs=inputs, held_out=rest if test is None else test)


def _checked(ids: tuple[int, ...], total: int, what: str) -> tuple[int, ...]:
    unknown = [i for i in ids if not 0 <= i < total]
    if unknown:
        raise InputError(f"{what} name frame {unknown[0]}; this scene has frames 0 to {total - 1}.")
    return ids


def _index_of(capture: Capture, name: str) -> int:
    matches = [i for i, n in enumerate(capture.names) if name in {n, Path(n).name, Path(n).stem}]
    if len(matches) != 1:
        found = "no frame" if not matches else f"{len(matches)} frames"
        raise InputError(f"The name {name} matches {found} of this scene: give one full file name.")
    return matches[0]


def _read_split(capture: Capture, path: Path) -> tuple[tuple[int, ...], tuple[int, ...]]:
    file = path if path.is_absolute() or path.is_file() else capture.folder / path
    content = read_json(file)
    if not isinstance(content, dict) or not {"train_ids", "test_ids"} <= set(content):
        raise InputError(f"{file} needs `train_ids` and `test_ids`: it is not a view split.")
    train, test = (
        _checked(tuple(int(i) for i in content[key]), len(capture), f"The {key} in {file}")
        for key in ("train_ids", "test_ids")
    )
    overlap = sorted(set(train) & set(test))
    if overlap:
        raise InputError(f"{file} lists frame {overlap[0]} both for training and for testing.")
    return train, tuple(sorted(test))


def _choose(capture: Capture, selection: ViewSelection) -> tuple[int, ...]:
    excluded = set(_checked(selection.held_out, len(capture), "The held-out indices"))
    free = [i for i in range(len(capture)) if i not in excluded]
    count = selection.count or 0
    if count > len(free):
        raise InputError(
            f"{count} input views were asked for and the scene has {len(free)} to choose from."
        )
    if selection.evenly:
        places = torch.linspace(0, len(free) - 1, count).round().long().tolist()
        return tuple(free[place] for place in places)
    return _farthest_points(capture, free, count, selection.seed)


def _farthest_points(capture: Capture, free: list[int], count: int, seed: int) -> tuple[int, ...]:
    """Choose views that cover positions and viewing directions."""
    position = torch.stack([capture.cameras[i].position for i in free])
    direction = torch.stack([capture.cameras[i].direction for i in free])
    spread = (position - position.mean(0)).norm(dim=-1).mean().clamp_min(1e-9)
    feature = torch.cat([position / spread, direction], dim=-1).double()
    rng = torch.Generator().manual_seed(seed)
    chosen = [int(torch.randint(len(free), (), generator=rng))]
    distance = torch.full((len(free),), torch.inf, dtype=torch.float64)
    while len(chosen) < count:
        distance = torch.minimum(distance, (feature - feature[chosen[-1]]).norm(dim=-1))
        chosen.append(int(distance.argmax()))
    return tuple(free[i] for i in chosen)
