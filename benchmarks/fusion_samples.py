"""Make samples to train a fusion network on, from training scenes.

Splats are trained from a few photos of each scene, as users do, and rendered at the poses of other
photos beside the generator's frames. The processes that train get folds without these photos; they
are added here.

Usage:
    python benchmarks/fusion_samples.py --data TRAIN --out samples --parallel 12 --budget-s 200
"""

import random
import shutil
import statistics
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import zip_longest
from pathlib import Path

import torch
import tyro
from case import Case, numbers
from fusion_trial import Answer, Job
from fusion_worker import Worker

from fvgen_recon.errors import FvgenError, InputError
from fvgen_recon.evaluation.fold import held_out_scene
from fvgen_recon.evaluation.machine import describe_machine, plain_path
from fvgen_recon.evaluation.protocol import Split, evenly_spread
from fvgen_recon.evaluation.suite import SUITES, find_scenes, open_scene
from fvgen_recon.fusion.sample import read_sample, with_photo, write_sample
from fvgen_recon.io.file import write_json
from fvgen_recon.io.scenes import Capture

_FEW = 3
"""Up to so many inputs a splat has members: half of the trials are of that kind."""
_LARGEST_GAP = 10
"""Photos from one input of an arc to the next."""
_LEAST_TARGETS = 2
_PATIENCE = 0.1  # Seconds.


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Make samples to train a fusion network on, from training scenes."""

    data: Path
    """Folder with one sub-folder a scene; never one to measure on later."""
    out: Path
    """Folder for the samples, SCENE/TRIAL_VIEW.npz, and `index.json`."""
    views: str = "2,3,4,6,9"
    """Numbers of inputs, separated by commas."""
    choices: int = 2
    """Choices of inputs for each number: the first evenly over the scene, others along arcs."""
    targets: int = 8
    """Most poses to render of a trial."""
    iterations: int = 800
    """Training steps."""
    long_side: int = 640
    """Longer side of renders in pixels; 0 keeps the photos' size."""
    generator_sides: str = "512,352"
    """Longest sides of the generator's frames in pixels, in turn."""
    parallel: int = 1
    """Trials that run at the same time."""
    gpus: int = 1
    """GPUs that they are spread over."""
    budget_s: float = 1e9
    """Seconds after which trials that still run are given up."""
    scenes: str = ""
    """Names of scenes, separated by commas; all where empty."""
    work: Path = Path("outputs/fusion_work")
    """Where folds and runs are kept while they are needed."""
    device: str = "cuda" if torch.cuda.is_available() else "cpu"
    """Where to train."""
    seed: int = 0
    """Of the choices of inputs and of the trainings."""
    commit: str = ""
    """Commit to note where git cannot tell."""


@dataclass(frozen=True, kw_only=True)
class Planned:
    """One trial that is to be run."""

    case: Case
    name: str
    """Name within the scene."""
    generator_side: int
    seed: int


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """A line of the index."""

    scene: str
    trial: str
    inputs: tuple[int, ...]
    test: tuple[int, ...]
    rule: str
    generator_side: int
    answer: Answer


def plan(args: Arguments) -> list[Planned]:
    """List the trials so that any first part of them covers all scenes and numbers of inputs.

    Raises:
        InputError: A scene is not there, or a number of inputs makes no sense.
    """
    if min(numbers(args.views)) < 2:
        raise InputError(f"At least two inputs are needed for a frame: {args.views} came.")
    suite = SUITES["folder"]
    folders = find_scenes(suite, args.data, tuple(filter(None, args.scenes.split(","))))
    sides = numbers(args.generator_sides)
    rows = [
        scene_trials(args, folder.name, open_scene(suite, folder), start)
        for start, folder in enumerate(folders)
    ]
    rounds = [one for rank in zip_longest(*rows) for one in rank if one is not None]
    # A scene gets another one in each round.
    return [
        replace(one, generator_side=sides[(place + place // len(rows)) % len(sides)])
        for place, one in enumerate(rounds)
    ]


def scene_trials(args: Arguments, scene: str, capture: Capture, start: int) -> list[Planned]:
    """List the trials of a scene, few and many inputs in turn; scenes start at different ones."""
    counts = numbers(args.views)
    few = [count for count in counts if count <= _FEW]
    many = [count for count in counts if count > _FEW]
    rounds = args.choices * max(len(few), len(many))
    kinds = [
        [(kind[place % len(kind)], place // len(kind)) for place in range(rounds)]
        for kind in (_turned(few, start), _turned(many, start))
        if kind
    ]
    kinds = kinds[::-1] if start % 2 else kinds
    planned = []
    for count, choice in (one for pair in zip(*kinds, strict=True) for one in pair):
        name = f"{count}_{choice}"
        split = choose_views(len(capture), count, choice, f"{args.seed}/{scene}/{name}", args)
        if split is None:
            continue
        case = Case(
            scene=scene,
            num_views=count,
            capture=capture,
            split=split,
            long_side=args.long_side,
            folder=args.work / scene / name,
        )
        planned.append(Planned(case=case, name=name, generator_side=0, seed=args.seed + choice))
    return planned


def _turned(values: list[int], start: int) -> list[int]:
    place = start % max(1, len(values))
    return values[place:] + values[:place]


def choose_views(
    num_images: int, count: int, choice: int, key: str, args: Arguments
) -> Split | None:
    """Choose inputs and poses to render; none where the scene is too small.

    Args:
        num_images: Photos of the scene.
        count: Number of inputs.
        choice: 0 spreads inputs evenly, any other number draws an arc.
        key: What the draw depends on.
        args: How many poses there may be.
    """
    if num_images < count + _LEAST_TARGETS:
        return None
    if choice == 0:
        inputs = evenly_spread(tuple(range(num_images)), count)
        near, rule = range(num_images), "evenly spread"
    else:
        rng = random.Random(key)
        gap = rng.randint(1, max(1, min(_LARGEST_GAP, (num_images - 1) // (count - 1))))
        first = rng.randint(0, num_images - 1 - gap * (count - 1))
        inputs = tuple(range(first, first + gap * count, gap))
        reach = gap + _LEAST_TARGETS
        near = range(max(0, first - reach), min(num_images, inputs[-1] + reach + 1))
        rule = f"every {gap} of an arc"
    rest = tuple(view for view in near if view not in set(inputs))
    test = evenly_spread(rest, min(args.targets, len(rest)))
    return Split(inputs=inputs, test=test, rule=rule) if len(test) >= _LEAST_TARGETS else None


@dataclass
class Crew:
    """Workers that share the list of trials until it or the time is over."""

    args: Arguments
    waiting: list[Planned]
    found: list[Outcome] = field(default_factory=list)
    start: float = field(default_factory=time.monotonic)
    is_over: bool = False

    def __post_init__(self) -> None:
        """Make the folders; nothing runs yet."""
        self.lock = threading.Lock()
        self.total = len(self.waiting)
        self.machine = describe_machine(self.args.commit)
        self.args.work.mkdir(parents=True, exist_ok=True)
        count = max(1, min(self.args.parallel, self.total))
        self.workers = [self._worker(index) for index in range(count)]

    def _worker(self, index: int) -> Worker:
        args = self.args
        gpu = index % args.gpus if args.device == "cuda" else None
        return Worker(args.work / f"worker_{index}.txt", gpu)

    def run(self) -> None:
        """Run the trials; those that still run when the time is over are given up."""
        threads = [threading.Thread(target=self._serve, args=(w,)) for w in self.workers]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(max(0.0, self._left()))
        self.is_over = True
        while any(thread.is_alive() for thread in threads):
            for worker in self.workers:
                worker.stop()  # Again and again: one may have started just before the end.
            time.sleep(_PATIENCE)
        self.write_index()

    def _left(self) -> float:
        return self.args.budget_s - (time.monotonic() - self.start)

    def _next(self) -> Planned | None:
        """Return the next trial, unless it would most likely not end in time."""
        with self.lock:
            times = [one.answer.seconds for one in self.found if not one.answer.failure]
            needed = statistics.median(times) if times else 0.0
            if not self.waiting or self.is_over or self._left() < needed:
                return None
            return self.waiting.pop(0)

    def _serve(self, worker: Worker) -> None:
        while (planned := self._next()) is not None:
            answer = self._run(worker, planned)
            if not self.is_over or not answer.failure:
                self._keep(planned, answer)
        worker.stop()

    def _run(self, worker: Worker, planned: Planned) -> Answer:
        """Run a trial and write its samples, now with their photos."""
        case, args = planned.case, self.args
        out = case.folder / "run"
        shutil.rmtree(out, ignore_errors=True)
        try:
            fold = case.fold()
            if self.is_over:
                return Answer(failure="there was no time left")
            answer = worker.ask(
                Job(
                    fold=str(fold.folder.resolve()),
                    out=str(out.resolve()),
                    iterations=args.iterations,
                    generator_side=planned.generator_side,
                    seed=planned.seed,
                    device=args.device,
                )
            )
            if answer.failure:
                return answer
            photos = held_out_scene(case.capture, fold).images
            for view, photo in zip(fold.test, photos, strict=True):
                source = out / f"{view:05d}.npz"
                if source.is_file():
                    target = args.out / case.scene / f"{planned.name}_{view:05d}.npz"
                    write_sample(target, with_photo(read_sample(source), photo))
        except (FvgenError, OSError) as error:
            return Answer(failure=str(error))
        shutil.rmtree(case.folder, ignore_errors=True)
        return answer

    def _keep(self, planned: Planned, answer: Answer) -> None:
        """Add a trial to the index and say how far the work is."""
        case = planned.case
        outcome = Outcome(
            scene=case.scene,
            trial=planned.name,
            inputs=case.split.inputs,
            test=case.split.test,
            rule=case.split.rule,
            generator_side=planned.generator_side,
            answer=answer,
        )
        with self.lock:
            self.found.append(outcome)
            self.write_index()
            spent = time.monotonic() - self.start
            left = min(self._left(), spent / len(self.found) * (self.total - len(self.found)))
            what = f"failed: {answer.failure}" if answer.failure else f"{answer.num_views} views"
            print(
                f"{len(self.found)} of {self.total}: {case.scene} {planned.name}, {what}, "
                f"{answer.seconds:.0f} s; at most {left:.0f} s left",
                file=sys.stderr,
                flush=True,
            )

    def write_index(self) -> None:
        """Write what was made of what, so far."""
        good = [one for one in self.found if not one.answer.failure]
        settings = {k: plain_path(str(v)) for k, v in asdict(self.args).items()}
        write_json(
            self.args.out / "index.json",
            {
                "machine": self.machine,
                "settings": settings,
                "seconds": round(time.monotonic() - self.start, 1),
                "scenes": sorted({one.scene for one in good}),
                "num_views": sum(one.answer.num_views for one in good),
                "trials": [asdict(one) for one in self.found],
            },
        )


def check(args: Arguments, planned: Sequence[Planned]) -> None:
    """Refuse what cannot be done before anything is started."""
    if not planned:
        raise InputError(f"No scene in {args.data} has enough photos for {args.views} inputs.")
    if args.parallel < 1 or args.gpus < 1:
        raise InputError("At least one trial at a time and one GPU are needed.")


def main(args: Arguments) -> int:
    """Plan, run, say what came of it."""
    torch.set_num_threads(2)
    try:
        planned = plan(args)
        check(args, planned)
    except FvgenError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    crew = Crew(args, planned)
    crew.run()
    good = [one for one in crew.found if one.answer.num_views]
    views = sum(one.answer.num_views for one in good)
    scenes = len({one.scene for one in good})
    print(f"{args.out}: {views} views of {len(good)} trials in {scenes} scenes")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Arguments, description=__doc__)))
