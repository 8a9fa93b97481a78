"""How many training steps a second methods make, and what a step waits for.

Trains in this process alone, leaves out the first steps, then looks at some more under PyTorch's
profiler: kernels launched, times that the host waited for the GPU, and how long the GPU worked.

Usage:
    python benchmarks/step_speed.py --data scenes/ --method fvgen-splat --out speed.json
"""

import json
import sys
import time
from collections import Counter
from dataclasses import dataclass
from typing import Any

import torch
import trial
import tyro
from methods import replace_missing_lpips
from options import SceneOptions
from torch.profiler import ProfilerActivity, profile

from fvgen_recon.errors import FvgenError
from fvgen_recon.evaluation.machine import describe_machine
from fvgen_recon.io.file import write_json

LAUNCHES = ("cudaLaunchKernel", "cudaLaunchKernelExC", "cuLaunchKernel", "cudaGraphLaunch")
WAITS = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize", "cudaMemcpy")


@dataclass(frozen=True, kw_only=True)
class Options(SceneOptions):
    """What to train on what, and which steps are looked at."""

    method: str = "fvgen-splat"
    """One of the benchmark's methods."""
    views: int = 3
    """Number of input views."""
    iterations: int = 900
    """Training steps."""
    estimator: str = "stereo"
    """Where the points to start from come from."""
    overrides: tuple[str, ...] = ()
    """Settings of the configuration as `path.to.field=value`."""
    warm_up: int = 200
    """Steps that are left out of all numbers; the round of generation is among them."""
    profiled: int = 50
    """Steps at the end that run under the profiler and are left out of the speed."""


class Stopwatch:
    """Runs a trainer's steps and notes when they began and what the last ones did."""

    def __init__(self, step: Any, options: Options) -> None:
        self._step, self._options = step, options
        self._activities = [ProfilerActivity.CPU]
        if options.device == "cuda":
            self._activities.append(ProfilerActivity.CUDA)
        self._profile: Any = None
        self.marks: dict[str, float] = {}

    def __call__(self, step: int) -> Any:
        """Run one step."""
        options = self._options
        if step == options.warm_up:
            self.marks["start"], self.marks["host_start"] = _now(), time.process_time()
        if step == options.iterations - options.profiled:
            self.marks["end"], self.marks["host_end"] = _now(), time.process_time()
            self._profile = profile(activities=self._activities)
            self._profile.__enter__()
        return self._step(step)

    def counts(self) -> dict[str, float]:
        """Return what one profiled step did."""
        _now()
        self._profile.__exit__(None, None, None)
        events = {event.key: event for event in self._profile.key_averages()}
        number = Counter({key: event.count for key, event in events.items()})
        busy = sum(getattr(event, "self_device_time_total", 0.0) for event in events.values())
        steps = self._options.profiled
        return {
            "operators": sum(n for key, n in number.items() if key.startswith("aten::")) / steps,
            "launches": sum(number[key] for key in LAUNCHES) / steps,
            "waits": sum(number[key] for key in WAITS) / steps,
            "copies": number["cudaMemcpyAsync"] / steps,
            "gpu_ms": busy / 1e3 / steps,
        }


def _now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def run(options: Options) -> dict[str, Any]:
    """Train and return the speed."""
    case = options.plan(str(options.views))[0]
    fold = case.fold()
    settings = trial.Options(
        fold=fold.folder,
        out=case.folder / f"speed_{options.method}",
        method=options.method,
        iterations=options.iterations,
        device=options.device,
        estimator=options.estimator,
        overrides=options.overrides,
    )
    config = trial.build_config(settings, fold)
    replace_missing_lpips()
    config.save_config()
    trainer = config.setup(local_rank=0, world_size=1)
    trainer.setup()
    watch = Stopwatch(trainer.train_iteration, options)
    trainer.train_iteration = watch
    trainer.train()
    counted = options.iterations - options.profiled - options.warm_up
    seconds = watch.marks["end"] - watch.marks["start"]
    return {
        "machine": describe_machine(options.commit),
        "scene": case.scene,
        "method": options.method,
        "steps_per_second": counted / seconds,
        "ms": 1e3 * seconds / counted,
        "host_ms": 1e3 * (watch.marks["host_end"] - watch.marks["host_start"]) / counted,
        **watch.counts(),
    }


def main(options: Options) -> int:
    """Write the JSON and print it."""
    try:
        result = run(options)
    except FvgenError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    write_json(options.out, result)
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Options, description=__doc__)))
