"""ffmpeg for ns-render on machines that have none: the one that comes with imageio."""

import os
import shutil
import tempfile
from pathlib import Path

_FOLDERS: list[tempfile.TemporaryDirectory] = []
"""Folders that live as long as the process."""


def lend_ffmpeg() -> None:
    """Put imageio's ffmpeg at the end of this process's PATH where `ffmpeg` is not on it.

    ns-render asks for a program of that very name and imageio's has another. Where imageio has none
    either, nothing is lent: only videos need it, and ns-render says so itself when asked for one.
    """
    if shutil.which("ffmpeg") is not None or os.name != "posix":
        return
    program = _find_program()
    if program is None:
        return
    folder = tempfile.TemporaryDirectory(prefix="fvgen-ffmpeg-")
    (Path(folder.name) / "ffmpeg").symlink_to(program)
    os.environ["PATH"] = os.environ.get("PATH", os.defpath) + os.pathsep + folder.name
    _FOLDERS.append(folder)


def _find_program() -> str | None:
    """Return the path of imageio's ffmpeg, or none."""
    try:
        import imageio_ffmpeg

        return imageio_ffmpeg.get_ffmpeg_exe()
    except (ImportError, RuntimeError):  # No package, or one without a program for this machine.
        return None
