"""Files that are either wholly there or not there at all."""

import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from fvgen_recon.errors import InputError


@contextmanager
def atomic_path(
    path: Path, *, folder: Path | None = None, is_durable: bool = False
) -> Iterator[Path]:
    """Give a temporary path; it takes the place of `path` on success.

    Parent folders are made. On an error nothing is left behind and `path` stays as it was. Only a
    process that is killed leaves the temporary file.

    Args:
        path: The file to write.
        folder: Where the temporary file lies, an existing folder of the same file system; that of
            `path` by default.
        is_durable: Whether the file is on the disk before this ends, so that what it replaces may
            be deleted: else a power cut can leave neither. It costs a wait for the disk.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(
        dir=folder or path.parent, prefix=f".{path.stem}.", suffix=path.suffix or ".tmp"
    )
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(0o644)
        if is_durable:
            sync_file(temporary)
        os.replace(temporary, path)
        if is_durable:
            sync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def sync_file(path: Path) -> None:
    """Wait until the content of a file is on the disk."""
    _sync(path, os.O_RDWR)


def sync_folder(path: Path) -> None:
    """Wait until the names in a folder are on the disk, where the file system can tell."""
    with suppress(OSError):  # Windows opens no folders, and some network drives sync none.
        _sync(path, os.O_RDONLY)


def _sync(path: Path, flags: int) -> None:
    handle = os.open(path, flags)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def require_folder(path: Path) -> None:
    """Check that a folder can be written, before the work that is to be kept there; make nothing.

    Raises:
        InputError: The folder, or the nearest folder above it that exists, is a file or is
            protected.
    """
    path = Path(path).absolute()
    existing = next(place for place in (path, *path.parents) if place.exists())
    if not existing.is_dir():
        raise InputError(f"The folder {path} cannot be made: {existing} is a file; name another.")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise InputError(
            f"The folder {path} cannot be written: {existing} is protected; name another."
        )


def file_sha256(path: Path) -> str:
    """Return a file's SHA-256, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 24):
            digest.update(block)
    return digest.hexdigest()


def write_json(path: Path, content: Any) -> None:
    """Write JSON atomically, indented by one space."""
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def read_json(path: Path) -> Any:
    """Read JSON; the byte order mark that some editors put first is skipped.

    Raises:
        InputError: The file is missing or is not JSON.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8-sig"))
    except FileNotFoundError as error:
        raise InputError(f"{path} was expected and is not there.") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(
            f"{path} is not valid JSON ({error}): repair or export it again."
        ) from error


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read a safetensors file.

    Raises:
        InputError: The file is missing or damaged.
    """
    try:
        return load_file(path)
    except OSError as error:
        raise InputError(f"{path} was expected and cannot be read: {error}.") from error
    except (SafetensorError, ValueError) as error:
        raise InputError(f"{path} cannot be read as safetensors: {error}.") from error
