"""Turn posed scenes, such as DL3DV-10K, into shards of training clips for the distillation.

    python scripts/prepare_dl3dv.py --data data/DL3DV-10K --output data/dl3dv --photos images_4
    python scripts/prepare_dl3dv.py --data data/DL3DV-10K --output data/dl3dv --shard 0/8
    python scripts/prepare_dl3dv.py --data data/DL3DV-10K --output data/dl3dv --ray auto
    python scripts/prepare_dl3dv.py --data data/DL3DV-10K --output data/dl3dv --verify

Any folder with posed scenes below it will do (transforms.json or COLMAP); docs/data.md says how it
must look. Run the same command again after an interruption: finished shards are kept.
"""

import logging
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import torch
import tyro

from fvgen_recon.distill.shard_build import (
    Share,
    build_shards,
    pending_shards,
    read_share,
    settle_plan,
)
from fvgen_recon.distill.shard_file import ShardRecord, drop_damaged, find_faults
from fvgen_recon.distill.shard_plan import ShardPlan, ShardSettings, make_plan, read_plan
from fvgen_recon.distill.shard_ray import RaySettings, build_shards_on_ray
from fvgen_recon.errors import FvgenError, InputError

log = logging.getLogger("prepare")


@dataclass(frozen=True, kw_only=True)
class Options:
    """What to prepare, how, and where to."""

    data: Path
    """Folder with scene folders in it, up to four levels down."""
    output: Path
    """Where the shards go."""
    settings: tyro.conf.OmitArgPrefixes[ShardSettings] = field(default_factory=ShardSettings)
    """How clips are made."""
    exclude: Path | None = None
    """Text file with the scenes to leave out (benchmark and validation scenes), one a line: paths
    below the data folder, or the names of folders on them."""
    shard: str = "0/1"
    """This machine's part, such as 2/8 for the third of eight."""
    ray: str | None = None
    """Use a Ray cluster: its address, `auto`, or `local` to start one here."""
    workers: int | None = None
    """Workers of `--ray local`; by default one a core."""
    gpus_per_worker: float = 0
    """GPUs of each Ray worker."""
    verify: bool = False
    """Only check what is there against the plan and the checksums."""
    repair: bool = False
    """Make damaged shards again."""
    estimate_for: int = 20_000
    """Say what this many clips would take."""
    cpu: bool = False
    """Compute on the CPU even where there is a GPU."""


class Progress:
    """Says after each shard how far things are."""

    def __init__(self, total: int, estimate_for: int) -> None:
        self.total, self.estimate_for = total, estimate_for
        self.start = time.monotonic()
        self.shards = self.clips = self.skipped = self.bytes = 0

    def __call__(self, record: ShardRecord) -> None:
        """Count a shard and log a line."""
        self.shards += 1
        self.clips += len(record.clips)
        self.skipped += len(record.skipped)
        self.bytes += record.size
        for clip in record.skipped:
            log.warning(f"skipped {clip.key}: {clip.reason}")
        left = self.seconds / self.shards * (self.total - self.shards)
        log.info(
            f"shard {record.number}: {len(record.clips)} clips, {record.size / 1e6:.1f} MB; "
            f"{self.shards} of {self.total} shards, about {left / 60:.0f} min left"
        )

    @property
    def seconds(self) -> float:
        """Time since the start."""
        return time.monotonic() - self.start

    def close(self) -> None:
        """Log the sum, and what many clips would take at this rate."""
        log.info(f"{self.clips} clips in {self.shards} shards, {self.skipped} skipped.")
        if self.clips:
            many, each = self.estimate_for, self.seconds / self.clips
            size = self.bytes / self.clips
            log.info(
                f"{each:.1f} s and {size / 1e6:.2f} MB a clip: {many} clips would take "
                f"{many * each / 3600:.1f} h and {many * size / 1e9:.0f} GB."
            )


def verify(options: Options) -> int:
    """Check the data set; returns the exit code."""
    plan = read_plan(options.output)
    faults = find_faults(options.output, plan)
    for fault in faults:
        log.error(fault)
    if not faults:
        log.info(f"{plan.num_clips} clips in {len(plan.shards)} shards: all as planned.")
    return 1 if faults else 0


def planned(options: Options) -> ShardPlan:
    """Plan the data set, or check that it is the one that was planned."""
    excluded = []
    if options.exclude is not None:
        if not options.exclude.is_file():
            raise InputError(f"The list of scenes {options.exclude} was expected and is not there.")
        excluded = options.exclude.read_text(encoding="utf-8-sig").splitlines()
    plan, problems = make_plan(options.data, options.settings, excluded=excluded)
    for problem in problems:
        log.warning(f"left out {problem}")
    return settle_plan(options.output, plan)


def check_ray(options: Options, share: Share) -> None:
    """Refuse options that contradict each other or would do nothing, before anything is written."""
    if options.ray is not None and share.count > 1:
        raise InputError("Choose either --ray or --shard: Ray shares the work out itself.")
    if options.workers is not None and options.ray != "local":
        raise InputError("--workers is for --ray local: it does nothing without.")
    if options.gpus_per_worker > 0 and options.ray is None:
        raise InputError("--gpus-per-worker is for --ray: it does nothing without.")


def run(options: Options) -> int:
    """Prepare or check; returns the exit code."""
    if options.verify:
        return verify(options)
    share = read_share(options.shard)
    check_ray(options, share)
    plan = planned(options)
    if options.repair:
        log.info(f"{len(drop_damaged(options.output, plan))} damaged shards will be made again.")
    pending = len(pending_shards(options.output, plan, share))
    log.info(f"{plan.num_clips} clips in {len(plan.shards)} shards planned, {pending} to be made.")
    progress = Progress(pending, options.estimate_for)
    make(options, plan, share, progress)
    if pending:
        progress.close()
    return 0


def make(options: Options, plan: ShardPlan, share: Share, progress: Progress) -> None:
    """Make the shards here or on Ray."""
    root, output = options.data.absolute(), options.output.absolute()
    if options.ray is not None:
        settings = RaySettings(
            address=None if options.ray == "local" else options.ray,
            num_workers=options.workers,
            gpus=options.gpus_per_worker,
        )
        build_shards_on_ray(root, output, plan, settings, report=progress)
        return
    device = "cuda" if torch.cuda.is_available() and not options.cpu else "cpu"
    build_shards(root, output, plan, share=share, device=device, report=progress)


def main(options: Options) -> int:
    """Run, and say in one sentence what went wrong where it did."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        return run(options)
    except FvgenError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Options, description=__doc__)))
