r"""Run a benchmark suite: every method on every scene and view count, resumable, as one JSON.

Usage:
    python benchmarks/run.py folder --data scenes/ --methods splatfacto,fvgen-splat-render \
        --views 3,6,9 --out benchmarks/results/folder.json
"""

import sys
import threading
from collections import defaultdict
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import tyro
from case import FROZEN, Case
from frames import (
    FramesJob,
    load_generators,
    measure_frames,
    names_of_generators,
    with_weights,
)
from job import Trial, score_trial, train_trial, trials_of_case
from methods import FUSION, find_method, parse_weights
from options import SceneOptions
from progress import Progress

from fvgen_recon.diffusion.generator import VideoGenerator
from fvgen_recon.errors import FvgenError, InputError
from fvgen_recon.evaluation.judge import load_jury
from fvgen_recon.evaluation.machine import describe_machine, plain_settings
from fvgen_recon.evaluation.result import (
    Failure,
    FrameResult,
    RunResult,
    TrialResult,
    write_result,
)
from fvgen_recon.evaluation.table import downstream_table, frames_table
from fvgen_recon.fusion.checkpoint import read_fusion_card
from fvgen_recon.pointcloud import make_estimator


@dataclass(frozen=True, kw_only=True)
class Options(SceneOptions):
    """What to run."""

    suite: Annotated[str, tyro.conf.Positional] = "folder"
    """One of folder, llff, mipnerf360, mipnerf360-fsgs, mipnerf360-floor, tanks-and-temples."""
    methods: str = "splatfacto,fvgen-splat"
    """Names of methods, separated by commas; import:NAME=FOLDER scores renders made elsewhere, and
    METHOD+refine=GENERATOR the splat of METHOD with a generator's frame in each render; put
    together by the plugin's default, or by RULE (learned, mean) in METHOD+refine=GENERATOR:RULE."""
    views: str = "3,6,9"
    """Numbers of input views, separated by commas."""
    estimator: str = "stereo"
    """Initialisation of every method, and points of the frames table: stereo, plane-sweep or mvs
    (of the inputs alone), or dataset (leaks test views)."""
    seed: int = 0
    """Seed of every method."""
    overrides: tuple[str, ...] = ()
    """Settings of the configuration as `path.to.field=value`, for ablations."""
    weights: tuple[str, ...] = ()
    """Weights that the package does not bring, as GENERATOR=FOLDER or GENERATOR=FOLDER@STEPS; for
    the methods with this generator and for the frames table. fusion=FOLDER puts renders and frames
    together."""
    label: str = ""
    """Added to the names of methods in the results, for ablations."""
    frames: bool = True
    """Whether generators' own frames are measured at the held-out poses."""
    generators: str = ""
    """Generators of the frames table, separated by commas; those of the methods where empty."""
    frames_long_side: int = 512
    """Longer side of generators' frames in pixels."""
    downstream: bool = True
    """Whether methods are trained and their renders measured."""
    splits: Path = FROZEN
    """Folder of the lists of suites that freeze their splits."""
    parallel: int = 1
    """Trials that run at the same time."""


def plan_trials(options: Options, cases: list[Case]) -> list[Trial]:
    """List all trials.

    Raises:
        InputError: A method is unknown.
    """
    if not options.downstream:
        return []
    return [trial for case in cases for trial in trials_of_case(case, asdict(options))]


def check_unseen(options: Options, cases: list[Case]) -> None:
    """Refuse to measure a fusion on scenes that it was trained on.

    Raises:
        InputError: It was trained on one of them, or its weights are no fusion's.
    """
    weights = parse_weights(options.weights)
    if FUSION not in weights:
        return
    card = read_fusion_card(weights[FUSION][0])
    trained = card.training.get("scenes", ())
    assert isinstance(trained, list | tuple)
    seen = sorted({case.scene for case in cases} & set(map(str, trained)))
    if seen:
        raise InputError(
            f"Scenes that the fusion was not trained on were expected: it has seen "
            f"{', '.join(seen)}. Leave them out, or train it without them."
        )


def plan_frames(options: Options, cases: list[Case]) -> list[FramesJob]:
    """List the measurements of generators' own frames."""
    if not options.frames:
        return []
    wanted = tuple(filter(None, options.generators.split(",")))
    methods = [find_method(name) for name in options.methods.split(",")]
    make_estimator(options.estimator)  # Before any work.
    known = parse_weights(options.weights)
    names = tuple(with_weights(name, known) for name in wanted or names_of_generators(methods))
    return [
        FramesJob(
            case=case,
            generators=names,
            long_side=options.frames_long_side,
            estimator=options.estimator,
            device=options.device,
            seed=options.seed,
        )
        for case in cases
    ]


Found = TrialResult | Failure | tuple[FrameResult, ...]
"""What comes of one job."""


class Bench:
    """Runs jobs and keeps what came of them; the file is written after each."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self.machine = describe_machine(options.commit)
        self.jury = load_jury(options.device, options.features)
        self.found: list[Found] = []
        # Folds, masks and scores are made one at a time: they share the networks.
        self.lock = threading.Lock()
        # A splat that several trials render is trained once: the others wait for its folder.
        self.training: dict[Path, threading.Lock] = defaultdict(threading.Lock)

    def run(
        self,
        trials: list[Trial],
        frames: list[FramesJob],
        generators: Mapping[str, VideoGenerator],
    ) -> RunResult:
        """Run all trials, several at a time, then the generators, alone so that times are fair."""
        progress = Progress([job.is_finished for job in (*trials, *frames)])
        with ThreadPoolExecutor(self.options.parallel) as pool:
            running = [pool.submit(self._run_trial, trial) for trial in trials]
            for trial, outcome in zip(trials, running, strict=True):
                self._keep(outcome.result())
                print(progress.step(trial.title), file=sys.stderr)
        for job in frames:
            self._keep(measure_frames(job, generators, self.jury))
            print(progress.step(job.title), file=sys.stderr)
        return self.result()

    def _run_trial(self, trial: Trial) -> TrialResult | Failure:
        with self.lock:
            fold = trial.case.fold()
            parts = [part for part in (trial.base, trial) if part is not None]
            waiting = [(part, self.training[part.folder]) for part in parts]
        for part, alone in waiting:
            with alone:
                train_trial(part, fold)
        with self.lock:
            return score_trial(trial, fold, self.jury)

    def _keep(self, found: Found) -> None:
        """Add what was found to the file."""
        self.found.append(found)
        write_result(self.options.out, self.result())

    def result(self) -> RunResult:
        """Return what has been found so far, in the order of the plan."""
        found = self.found
        frames = [row for rows in found if isinstance(rows, tuple) for row in rows]
        return RunResult(
            suite=self.options.suite,
            machine=self.machine,
            settings=plain_settings(asdict(self.options)),
            trials=tuple(row for row in found if isinstance(row, TrialResult)),
            frames=tuple(frames),
            failures=tuple(row for row in found if isinstance(row, Failure)),
        )


def main(options: Options) -> int:
    """Run every trial, write the JSON after each, print the tables."""
    try:
        cases = options.plan(options.views, options.splits)
        check_unseen(options, cases)
        trials = plan_trials(options, cases)
        frames = plan_frames(options, cases)
        generators = load_generators(frames[0].generators, options.device) if frames else {}
        result = Bench(options).run(trials, frames, generators)
    except FvgenError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for failure in result.failures:
        print(
            f"{failure.scene}, {failure.num_views} views, {failure.method} failed: "
            f"{failure.reason}",
            file=sys.stderr,
        )
    if result.trials:
        print(downstream_table(result))
    if result.frames:
        print(frames_table(result))
    return 1 if result.failures else 0


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Options, description=__doc__)))
