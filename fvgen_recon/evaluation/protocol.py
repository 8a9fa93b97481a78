"""Which views are inputs and which are test views: frozen lists and the rules that make them.

A protocol knows file names and counts, never pixels. Ids index the images of a scene sorted by
file name.
"""

import json
from dataclasses import dataclass
from importlib.resources import files

import numpy as np

from fvgen_recon.errors import InputError


@dataclass(frozen=True, kw_only=True, slots=True)
class Split:
    """The input and test views of one scene."""

    inputs: tuple[int, ...]
    """Ids of the input views, ascending."""
    test: tuple[int, ...]
    """Ids of the test views, ascending; none of them is an input."""
    rule: str
    """How the ids were chosen, in words, for reports."""

    def __post_init__(self) -> None:
        """Check that nothing leaks from the test views."""
        overlap = sorted(set(self.inputs) & set(self.test))
        if overlap:
            raise InputError(f"Views {overlap} are both inputs and test views: choose others.")
        if not self.inputs or not self.test:
            raise InputError("A split needs at least one input view and one test view.")


def every_nth(num_images: int, step: int, first: int = 0) -> tuple[int, ...]:
    """Return ids `first`, `first + step`, ... below `num_images`."""
    return tuple(range(first, num_images, step))


def evenly_spread(
    candidates: tuple[int, ...], count: int, *, rounding: str = "round"
) -> tuple[int, ...]:
    """Choose `count` of the candidates, evenly over their order, both ends included.

    Args:
        candidates: Ids to choose from, ascending.
        count: How many to choose.
        rounding: `round` (FSGS) or `floor` (nerfbaselines): they give different ids.

    Raises:
        InputError: There are fewer candidates than wanted.
    """
    if not 1 <= count <= len(candidates):
        raise InputError(
            f"{count} input views were asked for and {len(candidates)} are left after the test "
            "views: ask for fewer."
        )
    places = np.linspace(0, len(candidates) - 1, count)
    index = np.round(places) if rounding == "round" else np.floor(places)
    return tuple(candidates[int(i)] for i in index)


def hold_out_split(
    num_images: int, num_views: int, *, step: int = 8, first: int = 4, rounding: str = "round"
) -> Split:
    """Hold out every `step`-th view from `first` on; spread the inputs evenly over the rest."""
    test = every_nth(num_images, step, first)
    rest = tuple(i for i in range(num_images) if i not in set(test))
    return Split(
        inputs=evenly_spread(rest, num_views, rounding=rounding),
        test=test,
        rule=f"test every {step}th view from index {first}, inputs evenly spread ({rounding})",
    )


def folder_split(num_images: int, num_views: int) -> Split:
    """Split any posed scene.

    Every 8th view from the 5th is a test view; every 4th from the 3rd where there are fewer than
    16 views.
    """
    if num_images < 16:
        return hold_out_split(num_images, num_views, step=4, first=2)
    return hold_out_split(num_images, num_views)


def fsgs_split(num_images: int, num_views: int, *, rounding: str = "round") -> Split:
    """The FSGS family's 12- and 24-view split: test every 8th from the first."""
    return hold_out_split(num_images, num_views, step=8, first=0, rounding=rounding)


def mipnerf360_split(scene: str, num_images: int, num_views: int) -> Split:
    """ReconFusion's 3-, 6- and 9-view split of a Mip-NeRF 360 scene.

    Raises:
        InputError: The scene or the view count is not in the list, or images are missing.
    """
    scenes = _load_splits("mipnerf360_reconfusion.json")["scenes"]
    if scene not in scenes:
        raise InputError(
            f"`{scene}` is not a scene of the ReconFusion splits: choose one of {sorted(scenes)}."
        )
    entry = scenes[scene]
    if entry["num_images"] != num_images:
        raise InputError(
            f"Mip-NeRF 360's {scene} has {entry['num_images']} images and {num_images} were "
            "found: use the whole public release, since ids count sorted file names."
        )
    if str(num_views) not in entry["train"]:
        raise InputError(
            f"The ReconFusion splits have 3, 6 and 9 views: {num_views} were asked for."
        )
    return Split(
        inputs=tuple(entry["train"][str(num_views)]),
        test=every_nth(num_images, 8),
        rule="ReconFusion ids, test every 8th view",
    )


def _load_splits(name: str) -> dict:
    """Read a list that ships with the package."""
    return json.loads((files("fvgen_recon.evaluation") / "splits" / name).read_text())
