"""Copy the photos that a benchmark will use, and nothing else, to carry them to another machine.

Photos are copied byte by byte; frames that no case uses keep their pose and lose their photo, so
splits stay the same.

Usage:
    python benchmarks/pack.py folder --data scenes/ --views 3,6,9 --out .pack/val
"""

import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from case import numbers, plan_cases

from fvgen_recon.errors import FvgenError, InputError

_SIDE_FILES = ("transforms.json", "tracks.npz", "sparse_pc.ply")


@dataclass(frozen=True)
class Options:
    """What to pack."""

    suite: Annotated[str, tyro.conf.Positional]
    """Name of the suite whose splits decide what is needed."""
    data: Path
    """Folder with one sub-folder a scene, each with a transforms.json."""
    out: Path
    """Folder to write, of the same form."""
    views: str = "3,6,9"
    """Numbers of input views, separated by commas."""
    scenes: str = ""
    """Names of scenes, separated by commas; all where empty."""


def pack(options: Options) -> int:
    """Copy the needed files and return their size in bytes."""
    cases = plan_cases(
        options.suite,
        options.data,
        views=numbers(options.views),
        scenes=tuple(filter(None, options.scenes.split(","))),
        long_side=0,
        work=options.out,
    )
    needed: dict[Path, set[Path]] = {}
    for case in cases:
        source = case.capture.folder
        if not (source / "transforms.json").is_file():
            raise InputError(
                f"Only scenes with a transforms.json can be packed: {source} has none."
            )
        files = needed.setdefault(source, set())
        files.update(case.capture.paths[i] for i in (*case.split.inputs, *case.split.test))
        files.update(source / name for name in _SIDE_FILES if (source / name).is_file())
    total = 0
    for source, files in needed.items():
        target = options.out / source.name
        shutil.rmtree(target, ignore_errors=True)
        for path in sorted(files):
            copy = target / path.relative_to(source)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, copy)
            total += copy.stat().st_size
    return total


def main(options: Options) -> int:
    """Pack, and say how large it came out."""
    try:
        size = pack(options)
    except FvgenError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{options.out}: {size / 2**20:.1f} MiB")
    return 0


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Options, description=__doc__)))
