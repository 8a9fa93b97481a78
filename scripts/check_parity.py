"""Compare this project with the original by a numeric fixture.

Usage:
    python scripts/check_parity.py KIND FIXTURE

KIND is one of unet, resampler, ddim, vae, clip, camera, render. FIXTURE is a safetensors file with
a JSON of the same name beside it; sizes and settings are read from there. Prints the largest
absolute difference of each output. Exit code 1: one is above its tolerance; 2: bad input.
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
import tyro

from fvgen_recon.diffusion.viewcrafter.parity import COMPARISONS
from fvgen_recon.errors import FvgenError
from fvgen_recon.render.parity import compare_render
from fvgen_recon.trajectory.parity import compare_camera
from fvgen_recon.types import Difference

_MISFITS = (RuntimeError, ValueError, TypeError, KeyError, IndexError, AssertionError)

ALL = COMPARISONS | {"camera": compare_camera, "render": compare_render}


@dataclass(frozen=True)
class Options:
    """Compare this project with the original by a numeric fixture."""

    kind: tyro.conf.Positional[
        Literal["unet", "resampler", "ddim", "vae", "clip", "camera", "render"]
    ]
    """What the fixture holds."""
    fixture: tyro.conf.Positional[Path]
    """The safetensors file; its JSON lies beside it."""


def report(rows: tuple[Difference, ...]) -> bool:
    """Print one line for each comparison; return whether all are within tolerance."""
    width = max(len(row.name) for row in rows)
    for row in rows:
        verdict = "ok" if row.is_accepted else "FAIL"
        print(f"{row.name:<{width}}  {row.value:.3e}  (tolerance {row.tolerance:.0e})  {verdict}")
    failed = sum(not row.is_accepted for row in rows)
    worst = max(rows, key=lambda row: (not row.is_accepted, row.value / row.tolerance))
    print(f"{len(rows)} outputs, {failed} above tolerance; closest to it: {worst.name}")
    return failed == 0


def main(options: Options) -> int:
    """Compare and report."""
    try:
        with torch.no_grad():
            rows = ALL[options.kind](options.fixture)
    except FvgenError as error:
        print(error, file=sys.stderr)
        return 2
    except _MISFITS as error:
        # Sizes that do not belong together surface deep inside a network.
        first = str(error).partition("\n")[0]
        print(f"{options.fixture} has sizes that do not fit together: {first}", file=sys.stderr)
        return 2
    return 0 if report(rows) else 1


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Options, description=__doc__)))
