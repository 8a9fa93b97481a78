"""Pack posed scenes, procedural worlds and the metrics' feature networks into files to carry.

Usage:
    python scripts/pack_scenes.py --scenes TRAIN --worlds 32 --out train.bin
"""

import sys
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import torch
import tyro

from fvgen_recon.distill.pack import PackedScene, pack_folder, read_pack, write_pack
from fvgen_recon.distill.source import pack_world, photo_crops
from fvgen_recon.errors import FvgenError, InputError
from fvgen_recon.evaluation.feature import NUM_SLICES
from fvgen_recon.evaluation.judge import pack_features


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Pack posed scenes, and the feature networks of the metrics, into small files."""

    scenes: Path | None = None
    """Folder whose sub-folders are scenes in any format that fvgen-recon reads."""
    worlds: int = 0
    """Procedural worlds to render beside them, with textures cut out of their photos; about a
    minute each on a CPU core. For training only."""
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
    workers: int = 2
    """Processes that render worlds."""
    seed: int = 1
    """Of the worlds."""


def _render(seed: int, folder: Path, photos: torch.Tensor, args: Arguments) -> Path:
    """Render a world into a file of its own, unless it is there from an earlier try."""
    path = folder / f"{seed}.pack"
    if not path.is_file():
        world = pack_world(seed, photos, long_side=args.long_side, quality=args.quality)
        write_pack([world], path)
    return path


def render_worlds(scenes: list[PackedScene], args: Arguments) -> list[PackedScene]:
    """Render procedural worlds in several processes; run again, it goes on where it stopped."""
    assert args.out is not None
    folder = args.out.with_suffix(".worlds")
    folder.mkdir(parents=True, exist_ok=True)
    photos = photo_crops(scenes, 200, 256, torch.Generator().manual_seed(args.seed))
    work = partial(_render, folder=folder, photos=photos, args=args)
    seeds = range(1000 * args.seed, 1000 * args.seed + args.worlds)
    context = get_context("spawn")
    worlds = []
    with ProcessPoolExecutor(
        args.workers, context, initializer=torch.set_num_threads, initargs=(1,)
    ) as pool:
        for path in pool.map(work, seeds):
            worlds += read_pack(path)
            print(f"{len(worlds)} of {args.worlds}: {worlds[-1].name}", flush=True)
    return worlds


def main(args: Arguments) -> None:
    """Write what was asked for."""
    if args.scenes is None and args.features is None:
        raise InputError("Nothing was asked for: name --scenes and --out, or --features.")
    if args.scenes is not None and not args.scenes.is_dir():
        raise InputError(f"A folder of scenes was expected: {args.scenes} is not there.")
    if args.features is not None:
        pack_features(args.features, {"alex": NUM_SLICES, "vgg": NUM_SLICES})
        print(f"{args.features}: {args.features.stat().st_size / 2**20:.1f} MiB")
    if args.scenes is not None:
        if args.out is None:
            raise InputError("A file to write was expected with --scenes: add --out FILE.")
        folders = sorted(p for p in args.scenes.iterdir() if p.is_dir())
        scenes = [
            pack_folder(
                folder,
                long_side=args.long_side,
                quality=args.quality,
                with_tracks=args.tracks,
            )
            for folder in folders
        ]
        if args.worlds:
            scenes += render_worlds(scenes, args)
        size = write_pack(scenes, args.out)
        print(f"{args.out}: {len(scenes)} scenes, {size / 2**20:.1f} MiB")


if __name__ == "__main__":
    try:
        main(tyro.cli(Arguments, description=__doc__))
    except FvgenError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
