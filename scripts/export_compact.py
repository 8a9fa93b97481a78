"""Write a trained compact model as the package ships it.

Usage:
    python scripts/export_compact.py --weights runs/compact/dmd --role student --out weights/student
"""

import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import tyro

from fvgen_recon.diffusion.compact.backbone import CompactBackbone
from fvgen_recon.diffusion.compact.checkpoint import (
    add_change,
    average_compact,
    load_compact,
    read_card,
    save_compact,
    widen,
)
from fvgen_recon.diffusion.sampler import FewStepKind
from fvgen_recon.errors import FvgenError
from fvgen_recon.io.weights import Storage


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Write a trained compact model as the package ships it."""

    weights: Path
    """Folder that the training left."""
    out: Path
    """Folder to write."""
    role: Literal["student", "teacher", "regression"]
    """What it is used as."""
    num_steps: int | None = None
    """Steps that it is used with by default; those it was kept with otherwise."""
    sampler: FewStepKind | None = None
    """How it is sampled; as it was kept otherwise."""
    fine_power: float | None = None
    """How firmly detail is mixed (`CompactConfig.fine_power`); as in training otherwise."""
    fine_nearest: bool | None = None
    """Whether detail is read at single pixels (`CompactConfig.fine_nearest`); likewise."""
    storage: Storage = "int8"
    """How weights are kept; eight bits halve the size."""
    average: tuple[Path, ...] = ()
    """Folders of further trainings that began at the same weights: the mean of all is written."""
    change: tuple[Path, Path] | None = None
    """Start and end of another training of a relative, whose change is added to the weights."""


def _backbone(path: Path) -> CompactBackbone:
    backbone = load_compact(path)[0].backbone
    assert isinstance(backbone, CompactBackbone)
    return backbone


def main(args: Arguments) -> None:
    """Load, check, write."""
    card = read_card(args.weights)
    backbone = _backbone(args.weights)
    if args.average:
        backbone = average_compact([backbone, *(_backbone(path) for path in args.average)])
    if args.change is not None:
        backbone = add_change(backbone, *(_backbone(path) for path in args.change))
    config = backbone.config
    blend = replace(
        config,
        fine_power=config.fine_power if args.fine_power is None else args.fine_power,
        fine_nearest=config.fine_nearest if args.fine_nearest is None else args.fine_nearest,
    )
    backbone = widen(
        backbone,
        gate=config.gate,
        num_alternatives=config.num_alternatives,
        hints=config.hints,
        blend=blend,
    )
    written = save_compact(
        args.out,
        backbone,
        role=args.role,
        num_steps=args.num_steps or card.num_steps,
        sampler=args.sampler or card.sampler,
        storage=args.storage,
    )
    size = sum((args.out / part).stat().st_size for part in written.parts)
    print(f"{args.out}: {written.role}, {size / 2**20:.1f} MiB, sha256 {written.sha256}")


if __name__ == "__main__":
    try:
        main(tyro.cli(Arguments, description=__doc__))
    except FvgenError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
