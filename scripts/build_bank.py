"""Build training clips from packed scenes, procedural worlds and splats of dense captures.

Usage:
    python scripts/build_bank.py --train train.bin --out bank --num-workers 12 --num-plans 1200
"""

import json
import sys
import time
import traceback
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import torch
import torch.multiprocessing as mp
import tyro

from fvgen_recon.distill.clip import ClipBatch, load_clips
from fvgen_recon.distill.pack import read_pack, warn_of_shared
from fvgen_recon.distill.source import BankConfig, SourceShares, Worker, write_mixed_bank
from fvgen_recon.distill.splat import SplatConfig
from fvgen_recon.errors import FvgenError, TrainingError
from fvgen_recon.io.file import write_json
from fvgen_recon.pointcloud import make_estimator
from fvgen_recon.recipes.compact import make_recipe, write_validation_clips


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Build training clips from packed scenes, procedural worlds and splats."""

    train: Path
    """Packed training scenes (scripts/pack_scenes.py)."""
    out: Path
    """Folder of the bank; a picture and the times go beside its clips."""
    val: Path | None = None
    """Packed validation scenes: their clips go to a folder `val` beside `out`."""
    recipe: str = "full"
    """Name in fvgen_recon.recipes.compact: length, size and number of crops of the clips."""
    shares: SourceShares = field(default_factory=SourceShares)
    """Shares of the sources."""
    splat: SplatConfig = field(default_factory=SplatConfig)
    """How splats are fitted to captures, and which are good enough."""
    estimator: str = "plane-sweep"
    """Source of the point clouds: plane-sweep, mvs, stereo, dataset, dust3r or random."""
    num_plans: int = 1200
    """Sets of inputs in all."""
    num_workers: int = 4
    """Processes; 0 builds in this one."""
    texture_size: int = 256
    """Texels along the side of textures of procedural worlds."""
    seed: int = 1
    """Of the choices of photos, paths and worlds."""


def build(index: int, args: Arguments) -> None:
    """Build one worker's share."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if args.num_workers > 1:
        torch.set_num_threads(1)
    recipe = make_recipe(args.recipe)
    start = time.monotonic()
    scenes = read_pack(args.train)
    if index == 0 and args.val is not None:
        validation = read_pack(args.val)
        warn_of_shared(scenes, validation)
        write_validation_clips(validation, args.out.parent / "val", recipe, device)
    config = BankConfig(
        shares=args.shares,
        num_plans=args.num_plans,
        num_frames=recipe.num_frames,
        crop=recipe.crop,
        num_crops=recipe.num_crops,
        limits=recipe.limits,
        splat=args.splat,
        texture_size=args.texture_size,
    )
    worker = Worker(index=index, count=max(1, args.num_workers), device=device, seed=args.seed)
    estimator = make_estimator(args.estimator)
    made = write_mixed_bank(scenes, args.out, estimator, config, worker)
    seconds = time.monotonic() - start
    print(f"worker {index}: {made} plans in {seconds:.0f} s", flush=True)
    write_json(args.out / f"worker-{index}.json", {"plans": made, "seconds": seconds})


def build_or_tell(index: int, args: Arguments) -> None:
    """Build one worker's share; a failure is told and leaves the other workers alone."""
    try:
        build(index, args)
    except Exception as error:
        traceback.print_exc()
        message = str(error).strip().partition("\n")[0]
        print(f"worker {index} stopped: {type(error).__name__}: {message}", file=sys.stderr)


def run_workers(args: Arguments) -> int:
    """Build in several processes; returns how many did not come to their end.

    Raises:
        TrainingError: None of them did.
    """
    notes = [args.out / f"worker-{index}.json" for index in range(args.num_workers)]
    for note in notes:
        note.unlink(missing_ok=True)
    mp.start_processes(build_or_tell, (args,), nprocs=args.num_workers, start_method="spawn")
    finished = sum(note.is_file() for note in notes)
    if finished == 0:
        raise TrainingError("No worker came to its end: see what they said above.")
    return len(notes) - finished


def write_preview(folder: Path, rows: int = 4) -> None:
    """Draw some clips of each source: first, middle render and target, last."""
    pictures = []
    for name in ("real", "procedural", "splat"):
        for path in sorted(folder.glob(f"*-{name}.safetensors"))[:rows]:
            pictures.append(_strip(load_clips(path)))
    if pictures:
        pixels = torch.cat(pictures, 1).permute(1, 2, 0).numpy()[..., ::-1]
        cv2.imwrite(str(folder / "preview.jpg"), pixels, [cv2.IMWRITE_JPEG_QUALITY, 85])


def _strip(clips: ClipBatch) -> torch.Tensor:
    middle = clips.target.shape[1] // 2
    shown = clips.frames[0, middle] * clips.mask[0, middle]
    layer = clips.layers[0, 0, middle]
    return torch.cat([clips.target[0, 0], shown, layer, clips.target[0, middle]], -1)


def main(args: Arguments) -> int:
    """Fill the bank and say how long it took; 1 where it is smaller than it should be."""
    make_estimator(args.estimator), make_recipe(args.recipe)  # Before any worker starts.
    start = time.monotonic()
    args.out.mkdir(parents=True, exist_ok=True)
    failed = 0
    if args.num_workers == 0:
        build(0, args)
    else:
        failed = run_workers(args)
    seconds = time.monotonic() - start
    counts = {
        name: sum(len(load_clips(p)) for p in args.out.glob(f"*-{name}.safetensors"))
        for name in ("real", "procedural", "splat")
    }
    write_preview(args.out)
    total = sum(counts.values())
    print(json.dumps({"clips": counts, "seconds": round(seconds, 1)}))
    print(f"{total} clips in {seconds:.0f} s: {total / seconds:.1f} a second")
    if failed:
        print(
            f"{failed} of {args.num_workers} workers stopped early, so these are fewer clips than "
            "were asked for: run fewer workers on a card, or go on with another --seed.",
            file=sys.stderr,
        )
    return 1 if failed else 0


if __name__ == "__main__":
    try:
        sys.exit(main(tyro.cli(Arguments, description=__doc__)))
    except FvgenError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
