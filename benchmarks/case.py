"""A case: one scene with one number of inputs. Its trials share the fold and the held-out views."""

import shutil
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from fvgen_recon.errors import InputError
from fvgen_recon.evaluation.covisibility import seen_by_inputs
from fvgen_recon.evaluation.fold import (
    Fold,
    fold_size,
    held_out_cameras,
    held_out_scene,
    read_fold,
    write_fold,
)
from fvgen_recon.evaluation.protocol import Split
from fvgen_recon.evaluation.score import HeldOut
from fvgen_recon.evaluation.suite import SUITES, choose_split, find_scenes, open_scene
from fvgen_recon.io.file import atomic_path
from fvgen_recon.io.scenes import Capture, load_scene
from fvgen_recon.pointcloud import make_estimator

FROZEN = Path(__file__).resolve().parent / "splits"
"""Lists of suites that freeze their splits."""
_FOLD = "fold"
SEEN_ESTIMATOR = "plane-sweep"
"""Finds the points that say what the inputs see, for all methods alike."""


def numbers(text: str) -> tuple[int, ...]:
    """Return whole numbers above 0 that commas separate.

    Raises:
        InputError: One is none.
    """
    words = [word.strip() for word in text.split(",")]
    if not all(word.isdecimal() and int(word) for word in words):
        raise InputError(f"Whole numbers with commas between them were expected: {text} came.")
    return tuple(map(int, words))


@dataclass(frozen=True, kw_only=True)
class Case:
    """One scene with one number of inputs."""

    scene: str
    num_views: int
    """Number of inputs that were asked for; a small scene may have fewer."""
    capture: Capture
    split: Split
    long_side: int
    """Longest image side in pixels; 0 keeps the photos' size."""
    folder: Path
    """Where its fold, masks and trials are kept."""

    @property
    def test_names(self) -> tuple[str, ...]:
        """Names of the test photos."""
        return tuple(self.capture.names[index] for index in self.split.test)

    def fold(self) -> Fold:
        """Return the fold; it is written where it is missing or of another split or size."""
        kept = self._read_fold()
        if kept is not None and self._fits(kept):
            return kept
        if kept is not None:  # Trials of another fold say nothing about this one.
            shutil.rmtree(self.folder)
        return write_fold(self.capture, self.split, self.folder / _FOLD, long_side=self.long_side)

    @property
    def has_fold(self) -> bool:
        """Whether the fold is there already, so that finished trials beside it count."""
        kept = self._read_fold()
        return kept is not None and self._fits(kept)

    def _read_fold(self) -> Fold | None:
        try:
            return read_fold(self.folder / _FOLD)
        except InputError:
            return None

    def _fits(self, fold: Fold) -> bool:
        """Whether a fold has the split and the size that are asked for."""
        size = fold_size(self.capture, self.split, self.long_side)
        same = (fold.inputs, fold.test) == (self.split.inputs, self.split.test)
        return same and (fold.height, fold.width) == size

    def held_out(self, fold: Fold, device: str) -> HeldOut:
        """Open the held-out photos, for scoring."""
        return HeldOut(
            views=fold.test,
            photos=held_out_scene(self.capture, fold).images,
            seen=self._seen(fold, device),
        )

    def _seen(self, fold: Fold, device: str) -> torch.Tensor:
        """Return where the inputs see what test views show; kept, as it costs a point cloud."""
        path = self.folder / "seen.safetensors"
        if not path.is_file():
            size = (fold.height, fold.width)
            scene = load_scene(self.capture, fold.inputs, height=size[0], width=size[1])
            cameras = held_out_cameras(self.capture, self.split, *size)
            mask = seen_by_inputs(scene.to(device), cameras, make_estimator(SEEN_ESTIMATOR))
            with atomic_path(path) as temporary:
                save_file({"seen": mask}, temporary)
        return load_file(path)["seen"]


def plan_cases(
    suite_name: str,
    data: Path,
    *,
    views: tuple[int, ...],
    scenes: tuple[str, ...],
    long_side: int,
    work: Path,
    frozen: Path = FROZEN,
) -> list[Case]:
    """List the cases of a suite.

    Args:
        suite_name: One of `SUITES`.
        data: Folder with one folder a scene.
        views: Numbers of inputs.
        scenes: Names of scenes; all where empty.
        long_side: Longest image side in pixels; 0 keeps the photos' size.
        work: Where cases are kept.
        frozen: Folder of frozen lists.

    Raises:
        InputError: The suite or a scene is unknown, or the data are missing or do not suffice.
    """
    if suite_name not in SUITES:
        raise InputError(f"There is no suite `{suite_name}`: choose one of {', '.join(SUITES)}.")
    suite = SUITES[suite_name]
    lists = frozen / f"{suite_name.replace('-', '_')}.json"
    cases = []
    for folder in find_scenes(suite, data, scenes):
        capture = open_scene(suite, folder)
        for count in views:
            cases.append(
                Case(
                    scene=folder.name,
                    num_views=count,
                    capture=capture,
                    split=choose_split(suite, folder.name, capture, count, lists),
                    long_side=long_side,
                    folder=work / suite_name / f"{folder.name}_{count}",
                )
            )
    return sorted(cases, key=lambda case: case.num_views)
