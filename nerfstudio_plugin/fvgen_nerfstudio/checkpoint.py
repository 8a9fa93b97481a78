"""Checkpoints that stock tools can load on today's torch, and clear words for those that cannot."""

import pickle
from pathlib import Path
from typing import Any
from zipfile import BadZipFile, ZipFile, is_zipfile

import numpy as np
import torch

from fvgen_recon.errors import InputError, WeightsError
from fvgen_recon.io.file import atomic_path
from fvgen_recon.types import Cameras

EXTRA_KEY = "fvgen"
"""Where a checkpoint keeps what stock nerfstudio does not: statistics and names of photos."""


def allow_numpy_scalars() -> None:
    """Let `torch.load(weights_only=True)` read the learning rates of stock nerfstudio checkpoints.

    nerfstudio's schedulers leave numpy scalars in their state, which torch refuses from 2.6 on.
    Numbers are harmless, so they are allowed; torch before 2.5 neither needs nor knows this.
    """
    serialization = torch.serialization
    if "add_safe_globals" not in dir(serialization):
        return
    rebuild: Any = np.float64(0.0).__reduce__()[0]
    serialization.add_safe_globals([rebuild, np.dtype, type(np.dtype(np.float64))])


def plain_numbers(state: Any) -> Any:
    """Return nested state with numpy scalars turned into Python numbers."""
    if isinstance(state, dict):
        return {key: plain_numbers(value) for key, value in state.items()}
    if isinstance(state, (list, tuple)):
        return type(state)(plain_numbers(value) for value in state)
    return state.item() if isinstance(state, np.generic) else state


def write_checkpoint(state: dict[str, Any], path: Path) -> None:
    """Write a checkpoint so that a reader sees all of it or nothing, after a power cut too.

    Until it is whole it lies in the folder above: nerfstudio's tools read a step out of every name
    beside it and fail at any other, which a run that was killed would leave.
    """
    with atomic_path(path, folder=path.parent.parent, is_durable=True) as partial:
        torch.save(plain_numbers(state), partial)


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint of a splat.

    Raises:
        WeightsError: The file is missing, damaged or not a checkpoint.
    """
    if not path.is_file():
        raise WeightsError(f"There is no checkpoint {path}: give the file that training wrote.")
    allow_numpy_scalars()
    try:
        _check_parts(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, OSError, EOFError, BadZipFile, pickle.UnpicklingError) as error:
        raise WeightsError(
            f"{path} is damaged or not a checkpoint of nerfstudio: give a file that training wrote."
        ) from error
    if not isinstance(state, dict) or not {"step", "pipeline", "optimizers"} <= state.keys():
        raise WeightsError(
            f"{path} is not a training checkpoint of nerfstudio: it holds no step, pipeline and "
            "optimizers. Give a file that training wrote."
        )
    return state


def _check_parts(path: Path) -> None:
    """Compare the parts of a checkpoint with the checksums that torch writes and never reads.

    Raises:
        BadZipFile: They differ.
    """
    if not is_zipfile(path):  # torch says it better.
        return
    with ZipFile(path) as parts:
        name = parts.testzip()
    if name is not None:
        raise BadZipFile(f"{name} differs from its checksum")


def find_checkpoint(folder: Path, step: int | None) -> Path:
    """Return the checkpoint of a step, or the latest one, in a `nerfstudio_models` folder.

    Raises:
        InputError: The folder holds none.
    """
    if step is not None:
        return folder / f"step-{step:09d}.ckpt"
    found = sorted(folder.glob("step-*.ckpt"))
    if not found:
        raise InputError(
            f"There are no checkpoints (step-*.ckpt) in {folder}: give the nerfstudio_models "
            "folder of a run."
        )
    return found[-1]


def check_inputs(known: torch.Tensor | None, cameras: Cameras, *, same_names: bool) -> None:
    """Refuse a checkpoint of other input photos: it may know those that are held out now.

    The world of a splat follows from the input cameras, so that it would lie elsewhere too.

    Args:
        known: Where the photos of the checkpoint were taken, `V 3`, in the splat's world; none in
            one from before that was kept.
        cameras: The input cameras of the run that it is loaded into.
        same_names: Whether these photos have the names of those.

    Raises:
        WeightsError: They differ.
    """
    if known is None:
        return
    position = cameras.position.to(known)
    if position.shape == known.shape and torch.allclose(position, known, atol=1e-3):
        return
    if same_names:
        raise WeightsError(
            "The photos that the checkpoint was trained on have other poses now than they had then "
            "(photos without poses get new ones whenever one is added or removed): give the scene "
            "as it was."
        )
    raise WeightsError(
        f"The checkpoint was trained on other photos than the {len(position)} that are chosen now: "
        "give the scene and the choice of views that it was trained with."
    )
