"""What is wrong with the files of a run that nerfstudio's tools could not open.

The tools open a run in one function of nerfstudio's, `eval_setup`, which reads the configuration
and the checkpoint itself. Where it fails, the files are looked at again.
"""

import traceback
from pathlib import Path
from types import FrameType
from typing import Any

from nerfstudio.engine.trainer import TrainerConfig

from fvgen_nerfstudio.checkpoint import find_checkpoint, read_checkpoint
from fvgen_nerfstudio.method import METHODS
from fvgen_recon.errors import FvgenError, InputError, WeightsError

_READER = "nerfstudio.utils.eval_utils"
_PACKAGE = __name__.split(".", maxsplit=1)[0]


def find_damage(error: Exception) -> FvgenError | None:
    """Return what is wrong with a run of this package that a tool failed to open.

    Args:
        error: What ended the tool.

    Returns:
        None where the tool did not fail in opening a run, the run is another method's, or its files
        are as they should be.
    """
    frames = {
        frame.f_code.co_name: frame
        for frame, _ in traceback.walk_tb(error.__traceback__)
        if frame.f_globals.get("__name__") == _READER
    }
    if "eval_setup" not in frames:
        return None
    path, config = _read_so_far(frames["eval_setup"])
    if not isinstance(config, TrainerConfig):
        return _damage_of_config(path, error) if _is_ours(path) else None
    if "eval_load_checkpoint" not in frames or not type(config).__module__.startswith(_PACKAGE):
        return None
    assert config.load_dir is not None, "It is set before a checkpoint is read."
    return _damage_of_checkpoint(config.load_dir, config.load_step)


def _read_so_far(frame: FrameType) -> tuple[Path, Any]:
    """Return the path of the configuration, and what was read from it."""
    return Path(frame.f_locals["config_path"]), frame.f_locals.get("config")


def _is_ours(path: Path) -> bool:
    """Return whether a configuration that cannot be read is one of this package's methods."""
    if METHODS.keys() & set(path.absolute().parts):
        return True
    return path.is_file() and _PACKAGE.encode() in path.read_bytes()


def _damage_of_config(path: Path, error: Exception) -> InputError:
    if not path.is_file():
        return InputError(f"There is no file {path}: give the config.yml of a training run.")
    reason = " ".join(str(error).split()) or "it describes no training run"
    return InputError(
        f"{path} is damaged or not the config.yml of a run ({reason}): put it back as training "
        "wrote it, or go on from the checkpoints beside it in a new run (ns-train ... --load-dir)."
    )


def _damage_of_checkpoint(folder: Path, step: int | None) -> FvgenError | None:
    foreign = [] if step is not None else [p for p in folder.iterdir() if not _names_a_step(p)]
    if foreign:
        return WeightsError(
            f"nerfstudio takes every file in {folder} for a checkpoint and cannot read a step out "
            f"of {foreign[0].name}: move it elsewhere."
        )
    try:
        read_checkpoint(find_checkpoint(folder, step))
    except FvgenError as damage:
        return damage
    return None


def _names_a_step(path: Path) -> bool:
    digits = path.name.removeprefix("step-").removesuffix(".ckpt")
    return path.name == f"step-{digits}.ckpt" and digits.isdecimal()
