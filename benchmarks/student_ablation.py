"""The paper's ablation on the compact model: every recipe from one teacher, at one number of steps.

Usage:
    python benchmarks/student_ablation.py --train train.bin --val val.bin --features features.bin \
        --bank bank --teacher run/teacher --out benchmarks/results/student_ablation.json
"""

import shlex
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import tyro

from fvgen_recon.errors import FvgenError, TrainingError
from fvgen_recon.io.file import read_json, write_json

TRAINER = Path(__file__).resolve().parent.parent / "scripts" / "train_compact.py"
CHAINS = {
    "no start": (("dmd-rkl", 1.0),),
    "GAN only": (("gan", 0.5), ("gan", 0.5)),
    "GAN + rkl": (("gan", 0.5), ("dmd-rkl", 0.5)),
    "GAN + soft_rkl": (("gan", 0.5), ("dmd", 0.5)),
    "GAN + 1/r": (("gan", 0.5), ("dmd-inverse", 0.5)),
    "DMD2 joint": (("dmd2", 1.0),),
    "CausVid-like": (("ode", 0.25), ("dmd-rkl", 0.75)),
}
"""Stages of each recipe and their shares of the steps; a common first part is trained once."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """What to compare, and on what."""

    train: Path
    """Packed training scenes."""
    val: Path
    """Packed validation scenes."""
    features: Path
    """Packed feature networks."""
    bank: Path
    """Clips that an earlier training built."""
    teacher: Path
    """Weights of the teacher that all students start from."""
    out: Path
    """JSON file with the results; runs are kept beside it and not repeated."""
    recipe: str = "full"
    """Name in fvgen_recon.recipes.compact."""
    seeds: int = 3
    """Runs of each recipe."""
    steps: int = 400
    """Updates of the student in each run."""
    parallel: int = 3
    """Runs at the same time."""


@dataclass(frozen=True, kw_only=True)
class Leg:
    """One stage of one run."""

    folder: Path
    """Where it is kept."""
    stage: str
    steps: int
    seed: int
    before: Path | None
    """Weights that it goes on from; the teacher's by default."""


def legs(options: Options, recipe: str, seed: int) -> list[Leg]:
    """List the stages of one run, in order."""
    found: list[Leg] = []
    path, before = options.out.with_suffix(""), None
    for stage, share in CHAINS[recipe]:
        steps = round(options.steps * share)
        path = path / f"{stage}-{steps}"
        found.append(
            Leg(folder=path / f"seed{seed}", stage=stage, steps=steps, seed=seed, before=before)
        )
        before = found[-1].folder / stage
    return found


def train(leg: Leg, options: Options) -> None:
    """Run one stage in its own process, unless it is finished.

    Raises:
        TrainingError: It failed.
    """
    done = leg.folder / "log.json"
    if done.is_file() and _finished(done):
        return
    command = [
        *(sys.executable, str(TRAINER), "--train", options.train, "--val", options.val),
        *("--features", options.features, "--bank", options.bank, "--recipe", options.recipe),
        *("--teacher", options.teacher, "--init", leg.before or options.teacher),
        *("--stages", leg.stage, "--steps", leg.steps, "--seed", leg.seed),
        *("--num-workers", 0, "--no-compile", "--out", leg.folder),
    ]
    leg.folder.mkdir(parents=True, exist_ok=True)
    with (leg.folder / "output.txt").open("w") as log:
        result = subprocess.run(
            [str(part) for part in command], stdout=log, stderr=subprocess.STDOUT, check=False
        )
    if result.returncode:
        tail = (leg.folder / "output.txt").read_text()[-1500:]
        raise TrainingError(f"{shlex.join(map(str, command))} failed:\n{tail}")


def _finished(log: Path) -> bool:
    return any(row["stage"] != "blend" for row in read_json(log)["validation"])


def run_all(options: Options) -> None:
    """Train every leg; those that others build on come first."""
    plans = [legs(options, r, seed) for seed in range(options.seeds) for r in CHAINS]
    start = time.monotonic()
    for depth in range(max(len(p) for p in plans)):
        wave = list({p[depth].folder: p[depth] for p in plans if len(p) > depth}.values())
        with ThreadPoolExecutor(options.parallel) as pool:
            for count, _ in enumerate(pool.map(lambda leg: train(leg, options), wave), 1):
                spent = time.monotonic() - start
                print(f"[{spent:6.0f} s] part {depth + 1}: {count} of {len(wave)}", flush=True)


def collect(options: Options) -> list[dict[str, Any]]:
    """Return a row for each recipe and sampler: means and spreads over the seeds."""
    rows = []
    for recipe in CHAINS:
        ends = [legs(options, recipe, seed)[-1] for seed in range(options.seeds)]
        logs = [read_json(end.folder / "log.json")["validation"] for end in ends]
        results = [[r for r in log if r["stage"] != "blend"] for log in logs]
        for per_seed in zip(*results, strict=True):
            first = per_seed[0]
            row = {
                "recipe": recipe,
                "num_steps": first["num_steps"],
                "kind": first["kind"],
                "shift": first["shift"],
            }
            for key in ("psnr", "psnr_hole", "ssim", "perceptual", "sharp_hole"):
                values = [r[key] for r in per_seed]
                row[key] = statistics.mean(values)
                row[f"{key}_spread"] = statistics.stdev(values) if len(values) > 1 else 0.0
            rows.append(row)
    return rows


def show(rows: list[dict[str, Any]]) -> None:
    """Print a table."""
    keys = ("psnr", "psnr_hole", "ssim", "perceptual", "sharp_hole")
    print("| recipe | steps | " + " | ".join(keys) + " |\n|" + "---|" * (len(keys) + 2))
    for row in rows:
        cells = [f"{row[k]:.3f} ± {row[f'{k}_spread']:.3f}" for k in keys]
        print(
            f"| {row['recipe']} | {row['num_steps']} {row['kind']} {row['shift']:g} | "
            + " | ".join(cells)
            + " |"
        )


def main(options: Options) -> int:
    """Train, collect, write."""
    try:
        run_all(options)
    except FvgenError as error:
        print(error, file=sys.stderr)
        return 2
    rows = collect(options)
    settings = {k: str(v) for k, v in asdict(options).items()}
    write_json(options.out, {"settings": settings, "command": shlex.join(sys.argv), "rows": rows})
    show(rows)
    return 0


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Options, description=__doc__)))
