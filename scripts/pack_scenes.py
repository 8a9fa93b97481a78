"""Pack posed scenes, and the feature networks of the metrics, into files small enough to carry."""

import sys
from dataclasses import dataclass
from pathlib import Path

import tyro

from fvgen_recon.distill.pack import pack_scenes
from fvgen_recon.errors import FvgenError, InputError
from fvgen_recon.evaluation.judge import pack_features


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Pack posed scenes, and the feature networks of the metrics, into small files."""

    scenes: Path | None = None
    """Folder whose sub-folders are scenes in any format that fvgen-recon reads."""
    out: Path | None = None
    """File of packed scenes to write."""
    features: Path | None = None
    """File of feature networks to write (needs fvgen-recon[metrics])."""
    long_side: int = 352
    """Photos are shrunk to this many pixels along their longer side."""
    quality: int = 88
    """JPEG quality."""
    tracks: bool = False
    """Pack sparse points too (for scripts/train_mvs.py)."""


def main(args: Arguments) -> None:
    """Write what was asked for."""
    if args.features is not None:
        pack_features(args.features, {"alex": 5, "vgg": 4})
        print(f"{args.features}: {args.features.stat().st_size / 2**20:.1f} MiB")
    if args.scenes is not None:
        if args.out is None:
            raise InputError("A file to write was expected with --scenes: add --out FILE.")
        folders = sorted(p for p in args.scenes.iterdir() if p.is_dir())
        size = pack_scenes(
            folders,
            args.out,
            long_side=args.long_side,
            quality=args.quality,
            with_tracks=args.tracks,
        )
        print(f"{args.out}: {len(folders)} scenes, {size / 2**20:.1f} MiB")


if __name__ == "__main__":
    try:
        main(tyro.cli(Arguments))
    except FvgenError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
