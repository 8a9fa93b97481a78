"""Trains splats one after another and writes what a fusion network would see at their test views.

It is told of trials by lines of JSON on its input and answers each with one; starting nerfstudio
costs seconds, so that a process does many. It has folds alone, in which no held-out photo exists:
`fusion_samples.py`, which starts it, adds the photos afterwards.
"""

import gc
import json
import os
import sys
import time
import traceback
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from trial import Options, build_config, open_trainer, test_outputs

from fvgen_recon.errors import FvgenError
from fvgen_recon.evaluation.fold import read_fold
from fvgen_recon.fusion.sample import make_sample, write_sample

METHOD = "fvgen-splat"


@dataclass(frozen=True, kw_only=True)
class Job:
    """One trial."""

    fold: str
    """Folder of the fold."""
    out: str
    """Folder for the run and the samples."""
    iterations: int
    """Training steps."""
    generator_side: int
    """Longest image side of the frames, in pixels."""
    seed: int
    """Seed of the training."""
    device: str


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What came of a trial."""

    num_views: int = 0
    """Samples written; fewer than test views where points cover too little."""
    num_members: int = 0
    seconds: float = 0.0
    failure: str = ""
    """Why there are none; empty where all went well."""
    is_broken: bool = False
    """Whether the process ends, as its state cannot be trusted any more."""


class Recorder:
    """Makes frames as a source does; keeps what there is to be put together."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner
        self.settings = inner.settings
        self.view: Any = None

    def frame(self, camera: Any) -> Any:
        """Return what the source returns."""
        return self.inner.frame(camera)

    def fuse(self, view: Any) -> Any:
        """Keep the view; its render alone is shown."""
        self.view = view
        return view.splat


def run_job(job: Job) -> Answer:
    """Train, render, write the samples without their photos."""
    start = time.perf_counter()
    fold, out = read_fold(Path(job.fold)), Path(job.out)
    options = Options(
        fold=fold.folder,
        out=out,
        method=METHOD,
        iterations=job.iterations,
        device=job.device,
        seed=job.seed,
        overrides=(
            "pipeline.refine.generator=regression",
            "pipeline.refine.fusion=mean",
            f"pipeline.refine.long_side={job.generator_side}",
        ),
    )
    torch.manual_seed(job.seed)
    trainer = open_trainer(build_config(options, fold))
    trainer.save_checkpoint = lambda step: None
    trainer.setup()
    trainer.train()
    model = trainer.pipeline.model
    recorder = model.frame_source = Recorder(model.frame_source)
    count = 0
    for view, _ in test_outputs(trainer.pipeline, fold):
        if recorder.view is not None:
            write_sample(out / f"{view:05d}.npz", make_sample(recorder.view))
            count += 1
        recorder.view = None
    return Answer(
        num_views=count,
        num_members=model.config.num_members,
        seconds=time.perf_counter() - start,
    )


def answer_job(job: Job) -> Answer:
    """Run a trial; what goes wrong is told instead of raised."""
    try:
        return run_job(job)
    except (FvgenError, SystemExit) as error:
        # The plugin ends with a sentence for its user, whose cause is still at hand.
        return Answer(failure=str(error.__context__ or error))
    except Exception as error:
        traceback.print_exc()
        return Answer(failure=f"{type(error).__name__}: {error}", is_broken=True)
    finally:
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def main() -> int:
    """Answer line by line until there are no more."""
    torch.set_num_threads(1)
    # Others print to the output: that goes to the log, and the answers to where it went.
    with os.fdopen(os.dup(1), "w") as answers:
        os.dup2(2, 1)
        for line in sys.stdin:
            answer = answer_job(Job(**json.loads(line)))
            print(json.dumps(asdict(answer)), file=answers, flush=True)
            if answer.is_broken:
                return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
