"""Which photos are inputs: a user's choice, or those that a run was trained on.

A choice by number follows from all photos that are there, so that one photo more or less changes
it. A run therefore keeps the names of its inputs, in its `config.yml` for the tools that open it
and in its checkpoints for training that goes on.
"""

from typing import Any

from fvgen_nerfstudio.checkpoint import EXTRA_KEY
from fvgen_recon.errors import InputError
from fvgen_recon.io.scenes import Capture, ViewSelection, ViewSplit, select_views

INPUTS_KEY = "inputs"
"""Where a checkpoint keeps the names of the photos that it was trained on."""


def choose_views(capture: Capture, selection: ViewSelection, trained: tuple[str, ...]) -> ViewSplit:
    """Choose the input views of a capture; all others are held out.

    Args:
        capture: Names and files of all frames.
        selection: What a user has chosen.
        trained: Names of the photos that a run was trained on; none for a new run.

    Raises:
        InputError: A photo that the run was trained on is gone, or as in `select_views`.
    """
    if not stands_in(trained, selection):
        return select_views(capture, selection)
    index = {name: i for i, name in enumerate(capture.names) if capture.has_photo(i)}
    gone = [name for name in trained if name not in index]
    if gone:
        rest = f" (nor are {len(gone) - 1} more)" if len(gone) > 1 else ""
        raise InputError(
            f"The photo {gone[0]}, which this run was trained on, is not in {capture.folder} any "
            f"more{rest}: put it back, or train again without it."
        )
    return select_views(capture, ViewSelection(indices=tuple(index[name] for name in trained)))


def stands_in(trained: tuple[str, ...], selection: ViewSelection) -> bool:
    """Return whether a run's own photos stand in for a user's choice: by that number, or of all."""
    by_name = selection.names or selection.indices or selection.split
    return bool(trained) and not by_name and selection.count in {None, len(trained)}


def trained_views(state: dict[str, Any]) -> tuple[str, ...]:
    """Return the names that a checkpoint holds; none of one from before they were kept."""
    return tuple(state.get(EXTRA_KEY, {}).get(INPUTS_KEY, ()))
