r"""Convert an original ViewCrafter checkpoint to a folder in diffusers' manner, or back.

Usage:
    python scripts/convert_viewcrafter.py to-folder model_sparse.ckpt weights/teacher \
        --image-context shared
    python scripts/convert_viewcrafter.py to-checkpoint weights/teacher model_sparse.ckpt
"""

import resource
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from fvgen_recon.diffusion.viewcrafter.checkpoint import (
    convert_checkpoint,
    export_checkpoint,
)
from fvgen_recon.errors import FvgenError


@dataclass(frozen=True)
class ToFolder:
    """Convert an original checkpoint to a folder of safetensors and JSON."""

    source: tyro.conf.Positional[Path]
    """The original .ckpt file."""
    folder: tyro.conf.Positional[Path]
    """A new folder."""
    image_context: Literal["shared", "per_frame"]
    """Which image tokens a frame sees. Released models of 25 frames: shared; of 16: per_frame."""


@dataclass(frozen=True)
class ToCheckpoint:
    """Convert a folder back to an original checkpoint."""

    folder: tyro.conf.Positional[Path]
    """A converted folder, or a student saved from one."""
    target: tyro.conf.Positional[Path]
    """The .ckpt file to write."""
    leftover: Path | None = None
    """For a student: the converted folder of the teacher that it came from."""


def run(options: ToFolder | ToCheckpoint) -> None:
    """Convert and say what was done."""
    if isinstance(options, ToCheckpoint):
        count = export_checkpoint(options.folder, options.target, leftover=options.leftover)
        print(f"{options.target}: {count} tensors")
        return
    done = convert_checkpoint(options.source, options.folder, image_context=options.image_context)
    print(
        f"{done.folder}: {done.num_tensors} tensors, base scale {done.base_scale:g}, image "
        f"context {done.image_context}"
    )
    for name, checksum in done.sha256.items():
        print(f"{checksum}  {name}")


def main(options: ToFolder | ToCheckpoint) -> int:
    """Convert; return the exit code."""
    try:
        run(options)
    except FvgenError as error:
        print(error, file=sys.stderr)
        return 2
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"peak memory {peak:.2f} GiB")
    return 0


if __name__ == "__main__":
    sys.exit(main(tyro.cli(ToFolder | ToCheckpoint, description=__doc__)))
