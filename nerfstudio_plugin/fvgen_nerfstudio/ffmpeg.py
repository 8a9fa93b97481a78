"""ffmpeg for ns-render on machines that have none: the one that comes with imageio."""

import os
import shutil
import tempfile
from pathlib import Path

_FOLDERS: list[tempfile.TemporaryDirectory] = []
"""Folders that live as long as the process."""


def lend_ffmpeg() -> None:
    """Put imageio's ffmpeg at the end of this process's PATH where `ffmpeg` is not on it.

    ns-render asks for a program of that very name and imageio's has another.
    """
    if shutil.which("ffmpeg") is not None or os.name != "posix":
        return
    import imageio_ffmpeg

    folder = tempfile.TemporaryDirectory(prefix="fvgen-ffmpeg-")
    (Path(folder.name) / "ffmpeg").symlink_to(imageio_ffmpeg.get_ffmpeg_exe())
    os.environ["PATH"] = os.environ.get("PATH", os.defpath) + os.pathsep + folder.name
    _FOLDERS.append(folder)
