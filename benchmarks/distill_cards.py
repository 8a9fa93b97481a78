"""Full-size distillation on several cards of one host beside one card: speed, losses, resume.

    python benchmarks/distill_cards.py --out results/ --cards 2

Runs `benchmarks/distill_scale.py` several times, in this order:

1. all cards, full size: both stages, one clip a card;
2. one card with the same clips an update, accumulated; beside it, on another card, the same clips
   in one batch. The first shows scaling and equal losses, and its distance to the second is what
   bfloat16 alone does to the losses;
3. on a narrow network: all cards and one card, each from the start with a checkpoint midway;
4. each checkpoint resumed on the *other* number of cards, written again, and run to the end.

`summary.json` is rewritten after each of them. At a tiny size it all runs on CPUs (`--cpu`).
"""

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import tyro

from fvgen_recon.io.file import read_json, write_json

SCRIPT = Path(__file__).with_name("distill_scale.py")
WATCHED = ("loss/", "gradient_norm/", "logit/", "weight/mean", "dmd/")
MIB = 1 << 20
LEAST_S = 20.0
"""Seconds below which no run is started."""
GRACE_S = 15.0
"""Seconds for a run that was told to stop."""


@dataclass(frozen=True)
class Options:
    """What to run."""

    out: Path
    """Folder of the results."""
    cards: int = 2
    """Cards (or, on CPUs, processes) of this host."""
    steps: int = 30
    """Iterations of each stage on all cards."""
    reference_steps: int = 5
    """Iterations of each stage on one card."""
    judge_turns: int = 5
    """Updates of the judges for each one of the student."""
    network: Literal["full", "narrow", "tiny"] = "full"
    """Network of the first two parts."""
    resume_network: Literal["full", "narrow", "tiny"] = "narrow"
    """Network of the last two parts."""
    frames: int = 16
    """Frames of a clip."""
    height: int = 320
    """Image height in pixels."""
    width: int = 512
    """Image width in pixels."""
    budget_s: float = 170.0
    """Seconds for the iterations of each run of the first two parts."""
    scratch: Path | None = None
    """Where checkpoints go; the folder of the results where none is given."""
    checkpointing: bool = True
    """Recompute activations in the backward pass."""
    mode: str = "shards"
    """How the first two parts run: a mode of the other script."""
    resume_mode: str = "shards"
    """How the last two parts run."""
    stages: str = "gan,dmd"
    """Stages of the first two parts."""
    parts: str = "cards,reference,resume"
    """Which parts to run."""
    limit_s: float = 600.0
    """Seconds after which whatever still runs is stopped, and nothing more is started."""
    cpu: bool = False
    """Compute on CPUs, in float32."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """One start of the script."""

    name: str
    """Names its results."""
    processes: int
    """Cards."""
    arguments: Mapping[str, object]
    """Arguments that differ."""
    card: int | None = None
    """The one card that it sees."""


class Launcher:
    """Starts runs, some side by side, and collects their results."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self.results: dict[str, Any] = {}
        self.start = time.perf_counter()

    def launch(self, runs: Sequence[Run]) -> bool:
        """Run some at once; true if all of them came to their end in time."""
        if self.left() < LEAST_S:
            print(f"left out, no time: {', '.join(run.name for run in runs)}", flush=True)
            return False
        started = [
            (run, subprocess.Popen(self.command(run), env=self.environment(run))) for run in runs
        ]
        fine = True
        for run, process in started:
            code = self.wait(process)
            fine = fine and code == 0
            path = self.options.out / f"{run.name}.json"
            if path.is_file():
                self.results[run.name] = read_json(path) | {"exit": code}
            print(f"[{time.perf_counter() - self.start:.0f} s] {run.name}: exit {code}", flush=True)
        return fine

    def left(self) -> float:
        """Return the seconds that are left."""
        return self.options.limit_s - (time.perf_counter() - self.start)

    def wait(self, process: subprocess.Popen[bytes]) -> int:
        """Wait for a run, but no longer than there is time; its launcher stops its processes."""
        try:
            return process.wait(timeout=max(self.left(), 1.0))
        except subprocess.TimeoutExpired:
            process.terminate()
        try:
            return process.wait(timeout=GRACE_S)
        except subprocess.TimeoutExpired:
            process.kill()
            return process.wait()

    def command(self, run: Run) -> list[str]:
        """Return the command line of a run."""
        options = self.options
        settings: dict[str, object] = {
            "out": options.out / f"{run.name}.json",
            "judge-turns": options.judge_turns,
            "frames": options.frames,
            "height": options.height,
            "width": options.width,
            **run.arguments,
        }
        words = [word for key, value in settings.items() for word in option(key, value)]
        launcher = ["-m", "torch.distributed.run", "--nproc-per-node", str(run.processes)]
        port = ["--master-addr", "127.0.0.1", "--master-port", str(free_port())]
        device = ["--cpu"] if options.cpu else []
        return [sys.executable, *launcher, *port, str(SCRIPT), *words, *device]

    def environment(self, run: Run) -> dict[str, str]:
        """Return the environment of a run."""
        environment = dict(os.environ)
        environment.setdefault("OMP_NUM_THREADS", "4")
        if run.card is not None:
            environment["CUDA_VISIBLE_DEVICES"] = str(run.card)
        return environment


def option(key: str, value: object) -> list[str]:
    """Return the words of an option."""
    if isinstance(value, bool):
        return [f"--{key}" if value else f"--no-{key}"]
    return [f"--{key}", str(value)]


def free_port() -> int:
    """Return a port that nobody uses now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def scaling_runs(options: Options) -> tuple[list[Run], list[Run]]:
    """Return the run on all cards, and those on one card that it is compared with."""
    common: dict[str, object] = {
        "network": options.network,
        "mode": options.mode,
        "checkpointing": options.checkpointing,
        "stages": options.stages,
    }
    cards = Run(
        name="cards",
        processes=options.cards,
        arguments=common | {"steps": options.steps, "budget-s": options.budget_s},
    )
    # The same recipe, stopped early in each stage: the time of a stage ends with its budget.
    few = common | {"steps": options.reference_steps, "budget-s": options.budget_s}
    # Several clips at once need the memory that recomputing saves.
    batched = few | {
        "batch-size": options.cards,
        "checkpointing": True,
        "mode": "half" if options.mode in ("recorded", "fused") else options.mode,
    }
    return [cards], [
        Run(
            name="accumulated", processes=1, arguments=few | {"accumulation": options.cards}, card=0
        ),
        Run(name="batched", processes=1, arguments=batched, card=1),
    ]


def resume_runs(options: Options) -> tuple[list[Run], list[Run]]:
    """Return two straight runs that write a checkpoint, and two that go on from the other's."""
    scratch = options.scratch or options.out
    # Small clips and few turns: what is asked for is exactness.
    common = {
        "network": options.resume_network,
        "steps": 4,
        "mode": options.resume_mode,
        "judge-turns": min(options.judge_turns, 1),
        "height": min(options.height, 128),
        "width": min(options.width, 192),
    }
    straight, resumed = [], []
    for name, other, processes in (("many", "one", options.cards), ("one", "many", 1)):
        card = 0 if processes == 1 and not options.cpu else None
        sized = common | {"accumulation": options.cards // processes}
        write = sized | {"save-at": 6, "folder": scratch / f"straight-{name}"}
        read = sized | {
            "resume-from": scratch / f"straight-{other}",
            "folder": scratch / f"resumed-on-{name}",
        }
        straight.append(
            Run(name=f"straight-{name}", processes=processes, arguments=write, card=card)
        )
        resumed.append(
            Run(name=f"resumed-on-{name}", processes=processes, arguments=read, card=card)
        )
    return straight, resumed


def differences(first: Any, second: Any) -> dict[str, float]:
    """Return the largest relative difference of each watched number, over common iterations.

    Iterations are counted from the end for runs that resumed midway, else from the start.
    """
    worst: dict[str, float] = {}
    for stage, entry in second["stages"].items():
        theirs, mine = first["stages"].get(stage, {"scalars": []})["scalars"], entry["scalars"]
        count = min(len(theirs), len(mine))
        resumed = "resumed_at_tick" in second or "resumed_at_tick" in first
        part = slice(-count, None) if resumed else slice(count)
        for a, b in zip(theirs[part] if count else [], mine[part], strict=False):
            for name in a.keys() & b.keys():
                if name.startswith(WATCHED):
                    scale = max(abs(a[name]), abs(b[name]), 1e-3)
                    key = f"{stage} {name}"
                    worst[key] = max(worst.get(key, 0.0), abs(a[name] - b[name]) / scale)
    return worst


def same_files(first: Path, second: Path) -> dict[str, bool]:
    """Tell, file by file, whether two checkpoints hold the same bytes."""
    folders = [sorted((folder / "checkpoints").iterdir())[-1] for folder in (first, second)]
    names = sorted({p.name for folder in folders for p in folder.glob("*.safetensors")})
    return {name: equal(folders[0] / name, folders[1] / name) for name in names}


def equal(first: Path, second: Path) -> bool:
    """Compare two files."""
    if not (first.is_file() and second.is_file()):
        return False
    if first.stat().st_size != second.stat().st_size:
        return False
    with first.open("rb") as a, second.open("rb") as b:
        while True:
            x, y = a.read(64 * MIB), b.read(64 * MIB)
            if x != y:
                return False
            if not x:
                return True


def scaling(options: Options, results: Mapping[str, Any]) -> dict[str, Any]:
    """Compare all cards with one card."""
    found: dict[str, Any] = {}
    cards, alone = results.get("cards"), results.get("accumulated")
    if cards is None or alone is None:
        return found
    for stage in ("gan", "dmd"):
        if all("median_s" in run["stages"].get(stage, {}) for run in (cards, alone)):
            many, one = (r["stages"][stage]["median_s"] for r in (cards, alone))
            found[stage] = {
                "cards_s": many,
                "one_card_s": one,
                "iterations": [len(r["stages"][stage]["seconds"]) for r in (cards, alone)],
                "peak_gib": [r["stages"][stage]["peak_gib"] for r in (cards, alone)],
                "efficiency": one / many / options.cards,
            }
    found["cards_to_accumulated"] = differences(cards, alone)
    if "batched" in results:
        found["batched_to_accumulated"] = differences(results["batched"], alone)
    return found


def resuming(options: Options, results: Mapping[str, Any]) -> dict[str, Any]:
    """Compare the runs that resumed with those that went straight on."""
    scratch, found = options.scratch or options.out, {}
    for name, other in (("many", "one"), ("one", "many")):
        straight, resumed = results.get(f"straight-{other}"), results.get(f"resumed-on-{name}")
        if straight is not None and resumed is not None:
            found[f"{other}_to_{name}"] = {
                "same_bytes": same_files(
                    scratch / f"straight-{other}", scratch / f"resumed-on-{name}"
                ),
                "differences": differences(straight, resumed),
            }
    if "straight-many" in results and "straight-one" in results:
        found["straight"] = differences(results["straight-many"], results["straight-one"])
    return found


def main(options: Options) -> int:
    """Run all parts; one that fails does not keep the others from running."""
    launcher, fine = Launcher(options), True
    parts = options.parts.split(",")
    todo = []
    if "cards" in parts or "reference" in parts:
        cards, reference = scaling_runs(options)
        todo += [cards] if "cards" in parts else []
        todo += [reference] if "reference" in parts else []
    if "resume" in parts:
        todo += list(resume_runs(options))
    for runs in todo:
        fine = launcher.launch(runs) and fine
        summary = {
            "cards": options.cards,
            "seconds": time.perf_counter() - launcher.start,
            "scaling": scaling(options, launcher.results),
            "resume": resuming(options, launcher.results),
        }
        write_json(options.out / "summary.json", summary)
    print(json.dumps(summary, indent=1), flush=True)
    return 0 if fine else 1


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Options, description=__doc__)))
