"""Seconds to the first clip in a fresh process; prints JSON.

Usage:
    python benchmarks/video_start.py --kind kernels
    python benchmarks/video_start.py --kind compiled --saved kernels.bin
"""

import json
import os
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import tyro
from video_rig import Rig, Shape, timed


@dataclass(frozen=True)
class Options:
    """What to start with."""

    kind: Literal["plain", "kernels", "compiled"] = "kernels"
    """Plain layers, this project's kernels or compiled networks."""
    saved: Path | None = None
    """Compiled networks that `save_kernels` wrote."""
    frames: int = 16
    """Frames of the clip."""
    height: int = 320
    """Image height in pixels."""
    width: int = 512
    """Image width in pixels."""
    small: bool = False
    """A narrow network."""


def start(options: Options, cache: Path, limit: float) -> dict[str, Any]:
    """Start a process and return what it measured.

    Args:
        options: What it starts with.
        cache: Folder where it finds and leaves what compilers made.
        limit: Seconds after which it is given up.

    Raises:
        RuntimeError: It failed.
    """
    command = [sys.executable, __file__]
    for name, value in asdict(options).items():
        if value is True:
            command.append(f"--{name}")
        elif value not in (None, False):
            command += [f"--{name}", str(value)]
    caches = {"TORCHINDUCTOR_CACHE_DIR": str(cache / "i"), "TRITON_CACHE_DIR": str(cache / "t")}
    began = time.perf_counter()
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | caches,
        timeout=limit,
    )
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    whole = time.perf_counter() - began
    return json.loads(done.stdout.splitlines()[-1]) | {"whole_process_s": whole}


def main(options: Options) -> None:
    """Make clips and print how long the first one took."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    shape = Shape(frames=options.frames, height=options.height, width=options.width)
    rig = Rig(shape, device, small=options.small)
    rig.pipeline.to(torch.bfloat16)
    began = time.perf_counter()
    if options.kind == "kernels":
        rig.pipeline.enable_kernels()
    elif options.kind == "compiled":
        rig.pipeline.enable_compilation(kernels=options.saved)
    enabled = time.perf_counter()
    result = timed(rig.student, 3)
    facts = {
        "enable_s": enabled - began,
        "first_clip_s": result["first_s"],
        "later_clip_s": result["median_s"],
    }
    print(json.dumps(facts))


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
