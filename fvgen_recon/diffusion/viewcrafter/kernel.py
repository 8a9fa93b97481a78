"""Compiled kernels kept in a file, so that a later run need not compile again.

The file holds code that runs when it is loaded, like every cache of compiled kernels: load only
files that you or someone you trust has made.
"""

import hashlib
import warnings
from pathlib import Path

import torch

from fvgen_recon.errors import InputError
from fvgen_recon.io.file import atomic_path, read_json, write_json


def save_kernels(path: Path) -> int:
    """Write everything that `torch.compile` has made in this process.

    Args:
        path: The file; facts about it go beside it with the ending `.json`.

    Returns:
        Bytes written.

    Raises:
        InputError: Nothing has been compiled yet.
    """
    artifacts = torch.compiler.save_cache_artifacts()
    if artifacts is None:
        raise InputError(
            "There are no compiled kernels to save: call enable_compilation and make one clip of "
            "the wanted size first."
        )
    content = artifacts[0]
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)
    facts = _environment() | {"sha256": hashlib.sha256(content).hexdigest()}
    write_json(_facts_path(path), facts)
    return len(content)


def load_kernels(path: Path) -> bool:
    """Make the kernels of a file known to `torch.compile`.

    Args:
        path: What `save_kernels` wrote.

    Returns:
        Whether they suit this release of torch and this device; if not, a warning says why and
        compilation starts afresh.

    Raises:
        InputError: The file or its facts are missing, or its content is not what was written.
    """
    facts = read_json(_facts_path(path))
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise InputError(f"{path} was expected to hold compiled kernels: {error}.") from error
    if hashlib.sha256(content).hexdigest() != facts.get("sha256"):
        raise InputError(f"{path} is not the file that was written: compile and save it again.")
    here = _environment()
    for name, value in here.items():
        if facts.get(name) != value:
            warnings.warn(
                f"{path} was made with {name} {facts.get(name)} and this is {value}: "
                "kernels are compiled anew.",
                stacklevel=2,
            )
            return False
    return torch.compiler.load_cache_artifacts(content) is not None


def _facts_path(path: Path) -> Path:
    return Path(path).with_suffix(".json")


def _environment() -> dict[str, str]:
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    return {"torch": torch.__version__, "device": device}
