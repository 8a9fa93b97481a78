"""Samples by scene: which are trained on and which are measured."""

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from fvgen_recon.errors import InputError
from fvgen_recon.fusion.sample import FusionSample, read_sample

_READERS = 4


@dataclass(frozen=True, kw_only=True, slots=True)
class Example:
    """One view of a scene to train or to measure on."""

    scene: str
    name: str
    """Its trial and view."""
    sample: FusionSample


def read_examples(folder: Path) -> list[Example]:
    """Read all samples of a folder that has a folder for each scene.

    Raises:
        InputError: There are none, or one is damaged.
    """
    paths = sorted(folder.glob("*/*.npz"))
    if not paths:
        raise InputError(
            f"There are no samples FOLDER/SCENE/NAME.npz in {folder}: write some with "
            "benchmarks/fusion_samples.py."
        )
    with ThreadPoolExecutor(_READERS) as pool:
        samples = list(pool.map(read_sample, paths))
    return [
        Example(scene=path.parent.name, name=path.stem, sample=sample)
        for path, sample in zip(paths, samples, strict=True)
    ]


def choose_held_out(scenes: Sequence[str], count: int) -> tuple[str, ...]:
    """Return some scenes to measure on, by a hash of their names: the same wherever they are.

    Raises:
        InputError: None would be held out, or none left to train on.
    """
    if count < 1:
        raise InputError(f"At least one scene has to be held out to measure on: {count} came.")
    names = sorted(set(scenes), key=lambda name: hashlib.sha256(name.encode()).hexdigest())
    if count >= len(names):
        raise InputError(
            f"Of {len(names)} scenes {count} are to be held out: none is left to train on."
        )
    return tuple(sorted(names[:count]))
