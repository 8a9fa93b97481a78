r"""The paper's ablation on the compact model: every recipe from one teacher, at equal updates.

Each stage is a process ("leg") on one of the GPUs; recipes that begin alike share their first leg.
Run again, finished legs are kept.

Usage:
    python scripts/build_bank.py --train train.bin --val val.bin --out bank/train --estimator mvs
    python benchmarks/student_ablation.py --features features.bin --bank bank --gpus 2 --per-gpu 3 \
        --teacher run/teacher --regression run/regression --out student_ablation.json
"""

import os
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import tyro
from student_leg import RESULT, WEIGHTS, Leg, settings
from student_table import collect, draw, show

from fvgen_recon.errors import FvgenError, InputError, TrainingError
from fvgen_recon.evaluation.efficientnet import load_efficientnet
from fvgen_recon.evaluation.feature import load_stlpips
from fvgen_recon.evaluation.machine import describe_machine, plain_path, visible_gpu
from fvgen_recon.io.file import read_json, write_json
from fvgen_recon.recipes.compact import make_recipe

SCRIPT = Path(__file__).resolve().parent / "student_leg.py"
PAPER = {
    "no start": ("dmd-rkl",),
    "GAN only": ("gan", "gan"),
    "GAN + rkl": ("gan", "dmd-rkl"),
    "GAN + soft_rkl": ("gan", "dmd"),
    "GAN + 1/r": ("gan", "dmd-inverse"),
    "DMD2 joint": ("dmd2",),
    "CausVid-like": ("ode", "dmd-rkl"),
}
"""Stages of each of the paper's recipes. One of one stage spends all updates on it; one that begins
with the adversarial start or `ode` spends `gan_updates` or `ode_updates` on that."""

RECIPES = PAPER | {
    "loose GAN only": ("gan-loose", "gan-loose"),
    "free GAN only": ("gan-free", "gan-free"),
    "free GAN + soft_rkl": ("gan-free", "dmd"),
    "GAN + anchored soft_rkl": ("gan", "dmd-anchored"),
    "GAN + soft_rkl at high noise": ("gan", "dmd-high"),
}
"""Those, and what the anchor to the real clips does: a quarter of it, none, one in matching too;
and matching where the noise is high."""

_STREAM = 1000
"""Between the seeds of first and second legs: none shall repeat the draws of the one before."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """What to compare, and on what."""

    features: Path
    """Packed feature networks."""
    bank: Path
    """Folder with clips in `train` and `val` (scripts/build_bank.py --val)."""
    teacher: Path
    """Weights of the teacher that all students start from."""
    regression: Path | None = None
    """Weights of the regression, to be measured beside them."""
    out: Path
    """JSON file with the results, written after each leg; legs are kept in a folder beside it."""
    figure: Path | None = None
    """Picture of PSNR against ST-LPIPS."""
    recipe: str = "full"
    """Name in fvgen_recon.recipes.compact."""
    recipes: tuple[str, ...] = tuple(PAPER)
    """Which rows to make, out of RECIPES."""
    seeds: int = 3
    """Runs of each recipe."""
    gan_updates: int = 80
    """Updates of the student in the adversarial start."""
    dmd_updates: int = 120
    """Updates after it; each recipe has the sum of both."""
    ode_updates: int = 50
    """Of this sum, those on the teacher's path in the CausVid-like recipe."""
    warmup_turns: int | None = None
    """Updates of the judges alone at the start of each stage, instead of the recipe's."""
    judge_turns: int | None = None
    """Updates of the judges before each of the student, instead of the recipe's."""
    batch_size: int | None = None
    """Clips an update, instead of the recipe's."""
    gradient: Literal["one_step", "all_steps"] | None = None
    """What of the student is trained at a time, instead of the recipe's: one random step, or all
    steps through its final sample."""
    max_clips: int | None = None
    """Clips of the bank that each process keeps on its GPU; none for all."""
    teacher_steps: tuple[int, ...] = (1, 4, 8, 50)
    """Steps at which the teacher is measured."""
    gpus: int = 0
    """GPUs to spread the legs over; 0 for the CPU."""
    per_gpu: int = 1
    """Legs at the same time on each."""
    leg_seconds: float = 120.0
    """Longest training of a leg, whatever its updates."""
    overhead_s: float = 180.0
    """What a leg may take beside that, before it is given up."""
    limit_s: float = float("inf")
    """After so many seconds no leg is started."""
    record: bool = True
    """Replay the networks' calls as CUDA graphs where there is a GPU."""

    def __post_init__(self) -> None:
        """Check names and numbers."""
        make_recipe(self.recipe)
        unknown = set(self.recipes) - set(RECIPES)
        if unknown:
            raise InputError(
                f"Recipes out of {', '.join(RECIPES)} were expected: {', '.join(unknown)} came."
            )
        total = self.gan_updates + self.dmd_updates
        if not 0 < self.ode_updates < total:
            raise InputError(f"ode_updates must lie in 1 to {total - 1}: {self.ode_updates} came.")
        counts = (self.seeds, self.gan_updates, self.dmd_updates, self.per_gpu)
        if min(counts) < 1:
            raise InputError(f"Seeds, updates and legs of at least 1 were expected: {counts} came.")


@dataclass
class State:
    """How far the legs are."""

    start: float = field(default_factory=time.monotonic)
    done: set[Path] = field(default_factory=set)
    """Folders of finished legs."""
    failures: dict[str, str] = field(default_factory=dict)
    """What went wrong, by leg."""

    @property
    def seconds(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self.start


def check_inputs(options: Options) -> None:
    """Look at what all legs need, before the first is trained.

    Raises:
        FvgenError: The feature networks are not all there, or there are no clips.
    """
    load_efficientnet(features=options.features)
    for net in ("alex", "vgg"):
        load_stlpips(net, num_slices=4, path=options.features)
    for part in ("train", "val"):
        if not any((options.bank / part).glob("*.safetensors")):
            raise InputError(
                f"{options.bank / part} has no clips: build them with scripts/build_bank.py --val."
            )


def stage_updates(options: Options, stages: Sequence[str]) -> list[int]:
    """Return the updates of a recipe's stages; their sum is the same for all."""
    total = options.gan_updates + options.dmd_updates
    if len(stages) == 1:
        return [total]
    first = options.ode_updates if stages[0] == "ode" else options.gan_updates
    return [first, total - first]


def chain(options: Options, recipe: str, seed: int) -> list[Leg]:
    """List the legs of one run, in order."""
    legs: list[Leg] = []
    path, before = options.out.with_suffix(""), options.teacher
    stages = RECIPES[recipe]
    for stage, updates in zip(stages, stage_updates(options, stages), strict=True):
        path = path / f"{stage}-{updates}"
        legs.append(
            Leg(
                bank=options.bank,
                features=options.features,
                teacher=options.teacher,
                init=before,
                out=path / f"seed{seed}",
                recipe=options.recipe,
                stage=stage,
                updates=updates,
                seconds=options.leg_seconds,
                seed=seed + _STREAM * len(legs),
                warmup_turns=options.warmup_turns,
                judge_turns=options.judge_turns,
                batch_size=options.batch_size,
                gradient=options.gradient,
                max_clips=options.max_clips,
                record=options.record,
            )
        )
        before = legs[-1].out / WEIGHTS
    return legs


def references(options: Options) -> dict[str, Leg]:
    """Return the legs that only measure."""
    folder = options.out.with_suffix("")

    def leg(name: str, weights: Path, **how: Any) -> Leg:
        return Leg(
            bank=options.bank,
            features=options.features,
            teacher=weights,
            init=weights,
            out=folder / name,
            recipe=options.recipe,
            record=options.record,
            **how,
        )

    found = {
        "teacher": leg(
            "teacher", options.teacher, num_steps=options.teacher_steps, kinds=("sde", "ode")
        )
    }
    if options.regression is not None:
        found["regression"] = leg("regression", options.regression, num_steps=(1,))
    return found


def all_legs(options: Options) -> list[Leg]:
    """List all legs by seed, those that others build on first; the references after one seed."""
    legs: dict[Path, Leg] = {}
    for seed in range(options.seeds):
        chains = [chain(options, recipe, seed) for recipe in options.recipes]
        # The adversarial start first: most others wait for it.
        firsts = sorted(
            (c[0] for c in chains), key=lambda leg: not str(leg.stage).startswith("gan")
        )
        seconds = [leg for c in chains for leg in c[1:]]
        legs.update({leg.out: leg for leg in (*firsts, *seconds)})
        if seed == 0:
            legs.update({leg.out: leg for leg in references(options).values()})
    return list(legs.values())


def is_finished(leg: Leg) -> bool:
    """Tell whether a leg was run before with the same settings."""
    path = leg.out / RESULT
    return path.is_file() and read_json(path)["settings"] == settings(leg)


def run_leg(leg: Leg, gpu: int | None, num_threads: int, overhead_s: float) -> None:
    """Run a leg in its own process.

    Raises:
        TrainingError: It failed, or did not end.
    """
    command = [sys.executable, str(SCRIPT), *_words(leg)]
    environment = {
        **os.environ,
        "CUDA_VISIBLE_DEVICES": "" if gpu is None else visible_gpu(gpu),
        "OMP_NUM_THREADS": str(num_threads),
    }
    leg.out.mkdir(parents=True, exist_ok=True)
    output = leg.out / "output.txt"
    with output.open("w") as log:
        try:
            code = subprocess.run(
                command,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment,
                check=False,
                timeout=leg.seconds + overhead_s,
            ).returncode
        except subprocess.TimeoutExpired:
            code = "time ran out"
    if code:
        raise TrainingError(f"{shlex.join(command)} failed ({code}):\n{output.read_text()[-1500:]}")


def _words(leg: Leg) -> list[str]:
    """Return a leg as its script's command line."""
    words: list[str] = []
    for name, value in asdict(leg).items():
        option = name.replace("_", "-")
        if isinstance(value, bool):
            words.append(f"--{option}" if value else f"--no-{option}")
        elif isinstance(value, tuple):
            words += [f"--{option}", *map(str, value)]
        elif value is not None:
            words += [f"--{option}", str(value)]
    return words


def run_all(options: Options, report: "Report") -> State:
    """Run the legs, each as soon as there is room and the one before it is finished."""
    legs, state = all_legs(options), report.state
    state.done = {leg.out for leg in legs if is_finished(leg)}
    pending = [leg for leg in legs if leg.out not in state.done]
    made = {leg.out / WEIGHTS: leg.out for leg in legs}
    gpus: list[int | None] = list(range(options.gpus)) or [None]
    room = gpus * options.per_gpu
    num_threads = max(1, len(os.sched_getaffinity(0)) // len(room))
    running: dict[Future[None], tuple[Leg, int | None]] = {}
    with ThreadPoolExecutor(len(room)) as pool:
        while True:
            while room and state.seconds < options.limit_s:
                leg = next(
                    (x for x in pending if x.init not in made or made[x.init] in state.done), None
                )
                if leg is None:
                    break
                pending.remove(leg)
                gpu = room.pop(0)
                task = pool.submit(run_leg, leg, gpu, num_threads, options.overhead_s)
                running[task] = (leg, gpu)
            if not running:
                return state
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                leg, gpu = running.pop(future)
                room.append(gpu)
                report.note(leg, future.exception())


class Report:
    """Keeps the results file up to date."""

    def __init__(self, options: Options) -> None:
        self.options, self.state = options, State()
        self.machine = describe_machine()

    def note(self, leg: Leg, error: BaseException | None) -> None:
        """Count a leg as finished or failed, and write what there is."""
        folder = self.options.out.with_suffix("")
        name = str(leg.out.relative_to(folder))
        if error is None:
            self.state.done.add(leg.out)
        else:
            self.state.failures[name] = str(error)
        outcome = "finished" if error is None else f"FAILED: {error}"
        print(f"[{self.state.seconds:6.1f} s] {name} {outcome}", flush=True)
        self.write()

    def write(self) -> list[dict[str, Any]]:
        """Write the results file; returns its rows."""
        options = self.options
        results = {out: read_json(out / RESULT) for out in self.state.done}
        runs = {
            recipe: [[leg.out for leg in chain(options, recipe, s)] for s in range(options.seeds)]
            for recipe in options.recipes
        }
        measured = {name: [[leg.out]] for name, leg in references(options).items()}
        rows = collect({**measured, **runs}, results)
        folder = options.out.with_suffix("")
        content = {
            "settings": {k: plain_path(str(v)) for k, v in asdict(options).items()},
            "machine": self.machine,
            "seconds": round(self.state.seconds, 1),
            "rows": rows,
            "legs": {
                str(out.relative_to(folder)): {
                    k: v for k, v in result.items() if k not in ("rows", "settings")
                }
                for out, result in sorted(results.items())
                if "curve" in result
            },
            "failures": self.state.failures,
        }
        write_json(options.out, content)
        return rows


def main(options: Options) -> int:
    """Run, write, show; 1 where a leg failed."""
    check_inputs(options)
    report = Report(options)
    state = run_all(options, report)
    rows = report.write()
    show(rows)
    if options.figure is not None:
        draw(rows, options.figure)
    missing = len(all_legs(options)) - len(state.done)
    if missing:
        print(f"{missing} legs are missing; run the command again to go on.", file=sys.stderr)
    return 1 if state.failures else 0


if __name__ == "__main__":
    try:
        sys.exit(main(tyro.cli(Options, description=__doc__)))
    except FvgenError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
