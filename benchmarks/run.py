"""Run a benchmark suite: every method on every scene and view count, resumable, as one JSON.

Usage:
    python benchmarks/run.py folder --data scenes/ --methods splatfacto,fvgen-splat-render \
        --views 3,6,9 --out benchmarks/results/folder.json
"""

import json
import platform
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro
from methods import METHODS

from fvgen_recon.errors import FvgenError, InputError
from fvgen_recon.evaluation.protocol import Split, folder_split, fsgs_split, mipnerf360_split
from fvgen_recon.io.file import write_json
from fvgen_recon.io.scenes import load_capture

HERE = Path(__file__).resolve().parent
SUITES = {
    "folder": lambda scene, count, views: folder_split(count, views),
    "llff": lambda scene, count, views: folder_split(count, views),
    "mipnerf360": mipnerf360_split,
    "mipnerf360-fsgs": lambda scene, count, views: fsgs_split(count, views),
    "tanks-and-temples": lambda scene, count, views: fsgs_split(count, views),
}


@dataclass(frozen=True)
class Options:
    """What to run."""

    suite: Annotated[str, tyro.conf.Positional]
    """One of folder, llff, mipnerf360, mipnerf360-fsgs, tanks-and-temples."""
    data: Path
    """Folder with one sub-folder a scene."""
    out: Path
    """JSON file with the results."""
    methods: str = "splatfacto,fvgen-splat"
    """Names of methods, separated by commas."""
    views: str = "3,6,9"
    """Numbers of input views, separated by commas."""
    scenes: str = ""
    """Names of scenes, separated by commas; all where empty."""
    iterations: int = 2000
    """Training steps of every method."""
    estimator: str = "plane-sweep"
    """Initialisation of every method: plane-sweep (inputs only) or dataset (leaks test views)."""
    long_side: int = 0
    """Longer image side in pixels; 0 keeps the photos' size."""
    work: Path = Path("outputs/benchmark")
    """Where the trials are kept; finished ones are not run again."""
    parallel: int = 1
    """Trials that run at the same time."""
    overrides: tuple[str, ...] = ()
    """Settings of the configuration as `path.to.field=value`, for ablations."""


@dataclass(frozen=True)
class Trial:
    """One method on one split of one scene."""

    scene: Path
    method: str
    split: Split
    folder: Path


def plan(options: Options) -> list[Trial]:
    """List all trials.

    Raises:
        InputError: A suite, method or scene is unknown, or the data are missing.
    """
    if options.suite not in SUITES:
        raise InputError(f"There is no suite `{options.suite}`: choose one of {list(SUITES)}.")
    methods = options.methods.split(",")
    for method in methods:
        if method not in METHODS:
            raise InputError(f"There is no method `{method}`: choose one of {list(METHODS)}.")
    return [
        Trial(
            scene=scene,
            method=method,
            split=SUITES[options.suite](scene.name, len(load_capture(scene)), views),
            folder=options.work / options.suite / f"{scene.name}_{views}_{method}",
        )
        for views in map(int, options.views.split(","))
        for scene in _scenes(options)
        for method in methods
    ]


def _scenes(options: Options) -> Iterator[Path]:
    if not options.data.is_dir():
        raise InputError(
            f"{options.data} was expected to hold one folder a scene and is not there; see "
            "benchmarks/README.md for where to get the data and how to lay them out."
        )
    wanted = set(filter(None, options.scenes.split(",")))
    found = sorted(path for path in options.data.iterdir() if path.is_dir())
    missing = wanted - {path.name for path in found}
    if missing or not found:
        raise InputError(f"{options.data} does not hold {sorted(missing) or 'any scene'}.")
    return (path for path in found if not wanted or path.name in wanted)


def run_trial(trial: Trial, options: Options) -> dict[str, Any] | None:
    """Run one trial in its own process, unless it is finished; none where it failed."""
    result = trial.folder / "trial.json"
    if not result.exists():
        command = [
            sys.executable,
            str(HERE / "trial.py"),
            *("--scene", str(trial.scene), "--method", trial.method, "--out", str(trial.folder)),
            *("--inputs", *map(str, trial.split.inputs), "--test", *map(str, trial.split.test)),
            *("--iterations", str(options.iterations), "--estimator", options.estimator),
            *("--long-side", str(options.long_side)),
            *(("--overrides", *options.overrides) if options.overrides else ()),
        ]
        trial.folder.mkdir(parents=True, exist_ok=True)
        with (trial.folder / "log.txt").open("w") as log:
            subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, check=False)
    if not result.exists():
        lines = (trial.folder / "log.txt").read_text().strip().splitlines()[-1:]
        print(f"{trial.scene.name} {trial.method} failed: {' '.join(lines)}", file=sys.stderr)
        return None
    return json.loads(result.read_text())


def describe_machine() -> dict[str, Any]:
    """Say what the numbers were measured on."""
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"],
        capture_output=True,
        text=True,
        cwd=HERE,
        check=False,
    )
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "gpu": gpu,
        "cpu": platform.machine(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "commit": commit.stdout.strip() or None,
        "command": shlex.join(["python", "benchmarks/run.py", *sys.argv[1:]]),
        "date": time.strftime("%Y-%m-%d"),
    }


def print_table(trials: list[dict[str, Any]]) -> None:
    """Print PSNR / SSIM by scene, view count and method, with means."""
    methods = list(dict.fromkeys(trial["method"] for trial in trials))
    print("| scene | views | " + " | ".join(methods) + " |")
    print("|---|---|" + "---|" * len(methods))
    cells = {(t["scene"], t["num_views"], t["method"]): t for t in trials}
    for views in sorted({trial["num_views"] for trial in trials}):
        scenes = sorted({trial["scene"] for trial in trials})
        for scene in scenes:
            row = [cells.get((scene, views, method)) for method in methods]
            print(f"| {scene} | {views} | " + " | ".join(_cell(t) for t in row) + " |")
        means = [_mean(trials, views, method) for method in methods]
        print(f"| mean | {views} | " + " | ".join(means) + " |")


def _cell(trial: dict[str, Any] | None) -> str:
    return "failed" if trial is None else f"{trial['psnr']:.2f} / {trial['ssim']:.3f}"


def _mean(trials: list[dict[str, Any]], views: int, method: str) -> str:
    rows = [t for t in trials if t["num_views"] == views and t["method"] == method]
    if not rows:
        return "-"
    return " / ".join(
        f"{statistics.mean(t[key] for t in rows):.{digits}f}"
        for key, digits in (("psnr", 2), ("ssim", 3))
    )


def main(options: Options) -> int:
    """Run every trial, write the JSON after each, print the table."""
    try:
        trials = plan(options)
    except FvgenError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    finished: list[dict[str, Any]] = []
    start = time.perf_counter()
    with ThreadPoolExecutor(options.parallel) as pool:
        jobs = [pool.submit(run_trial, trial, options) for trial in trials]
        for done, job in enumerate(jobs, 1):
            result = job.result()
            if result is not None:
                finished.append(result)
            left = (time.perf_counter() - start) / done * (len(jobs) - done)
            print(f"{done} of {len(jobs)} trials, about {left:.0f} s left", file=sys.stderr)
            write_json(options.out, {"machine": describe_machine(), "trials": finished})
    print_table(finished)
    return 0 if len(finished) == len(trials) else 1


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Options, description=__doc__)))
