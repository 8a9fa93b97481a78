"""Full-size distillation with random weights: seconds, memory and losses of each iteration.

The `paper` recipe runs through the real trainer, on one card or, sharded, on several:

    python benchmarks/distill_scale.py --out scale.json --steps 8
    torchrun --nproc-per-node 2 benchmarks/distill_scale.py --out scale.json --steps 30

An iteration is five updates of the judges and one of the student. Results are written after each
one. With `--breakdown` one more iteration of each stage is taken apart. `--variants` measures
several ways of running one after the other. `benchmarks/distill_cards.py` runs and compares several
of these.
"""

import gc
import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from distill_rig import Options, build_networks, make_clips, train_settings
from jaxtyping import Float
from stopwatch import Stopwatch, now
from torch import Tensor
from video_profile import kernel_shares

from fvgen_recon.diffusion.viewcrafter.kernel import load_kernels, save_kernels
from fvgen_recon.distill.config import PhaseSettings
from fvgen_recon.distill.data import MemoryClips, TrainingBatch
from fvgen_recon.distill.parallel import (
    Processes,
    end_program,
    gather,
    leave_processes,
    mean_over_processes,
    start_processes,
)
from fvgen_recon.distill.randomness import StepRng
from fvgen_recon.distill.role import TrainedRole
from fvgen_recon.distill.timeline import Place, cycle_length
from fvgen_recon.distill.tracker import Progress
from fvgen_recon.distill.trainer import Trainer
from fvgen_recon.io.file import write_json

VARIANTS: Mapping[str, Mapping[str, Any]] = {
    "fused": {"mode": "fused", "checkpointing": False},
    "recorded": {"mode": "recorded", "checkpointing": False},
    "half": {"mode": "half", "checkpointing": False},
    "stored": {"mode": "shards", "checkpointing": False},
    "recomputed": {"mode": "shards", "checkpointing": True},
    "compiled": {"mode": "shards", "checkpointing": False, "compile_blocks": True},
}
"""Ways of running that `--variants` knows."""

MIN_ITERATIONS = 2


class LastNumbers:
    """A tracker that remembers the last report."""

    def __init__(self) -> None:
        self.scalars: Mapping[str, float] = {}

    def log(self, progress: Progress) -> None:
        """Keep the numbers."""
        self.scalars = dict(progress.scalars)

    def picture(self, step: int, name: str, image: Float[Tensor, "3 H W"]) -> None:
        """Ignore pictures."""

    def close(self) -> None:
        """Nothing is left."""


class MeasuredTrainer(Trainer):
    """The trainer, which writes a checkpoint only when told: one at full size has 40 GB."""

    stopwatch = Stopwatch()

    def save(self) -> Path:
        """Write nothing at the end of each stretch."""
        return self._folder

    def watch_all(self) -> None:
        """Time the forwards of all networks."""
        for name, module in self.ensemble.wrapped.items():
            self.stopwatch.watch(name, module)
        assert self.ensemble.teacher is not None
        self.stopwatch.watch("teacher", self.ensemble.teacher)

    def _backward(self, loss: Tensor) -> None:
        with self.stopwatch.section("backward"):
            super()._backward(loss)

    def _step_optimizer(self, role: TrainedRole, phase: PhaseSettings, place: Place) -> None:
        with self.stopwatch.section(f"{role} clip and optimizer"):
            super()._step_optimizer(role, phase, place)

    def _draw(self, tick: int, part: int, seed: int) -> tuple[TrainingBatch, StepRng]:
        with self.stopwatch.section("data"):
            return super()._draw(tick, part, seed)

    def _after_step(self, phase: PhaseSettings, place: Place, *, last: bool) -> None:
        with self.stopwatch.section("average and report"):
            super()._after_step(phase, place, last=last)

    def write(self) -> Path:
        """Write a checkpoint."""
        return super().save()


class Fallbacks(logging.Handler):
    """Keeps what fell back to a slower way, so that no number passes for the fast one's."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a warning and show it."""
        self.messages.append(record.getMessage())
        print(self.messages[-1], flush=True)


@dataclass
class Measurement:
    """Runs the trainer an iteration at a time and keeps what it cost."""

    options: Options
    processes: Processes
    results: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Build everything."""
        start = time.perf_counter()
        device, options = self.processes.device, self.options
        self.numbers = LastNumbers()
        fallbacks = Fallbacks()
        logging.getLogger("fvgen_recon.distill").addHandler(fallbacks)
        self.settings = train_settings(options)
        self.trainer = MeasuredTrainer(
            self.settings,
            build_networks(options, device),
            MemoryClips(clips=make_clips(options, device), seed=0, device=device),
            options.folder or options.out.parent,
            processes=self.processes,
            trackers=[self.numbers],
        )
        self.trainer.watch_all()
        student = self.trainer.ensemble.plain["student"]
        shown = {k: str(v) if isinstance(v, Path) else v for k, v in vars(options).items()}
        self.results |= {
            "options": shown,
            "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
            "torch": torch.__version__,
            "cards": self.processes.count,
            "clips_per_update": options.batch_size * options.accumulation * self.processes.count,
            "parameters": sum(p.numel() for p in student.parameters()),
            "build_s": time.perf_counter() - start,
            "built_gib": self.peak(),
            "fallbacks": fallbacks.messages,
            "stages": {},
        }
        self.keep()

    def run(self) -> None:
        """Measure both stages, from the start or from a checkpoint."""
        if self.options.resume_from is not None:
            self.resume(self.options.resume_from)
        self.stages()
        if self.options.then_resume_from is not None:
            self.resume(self.options.then_resume_from)
            self.stages(suffix="-resumed")
        self.results["finished"] = True
        self.keep()

    def stages(self, suffix: str = "") -> None:
        """Run the iterations that are left."""
        first = 0
        for phase in self.settings.phases:
            length = cycle_length(phase)
            inside = max(0, self.trainer.tick - first)
            todo = self.options.steps - inside // length
            if todo > 0:
                self.stage(phase.name + suffix, length, todo)
                # Where the time was up the rest of the stage is left out.
                self.trainer.tick = max(self.trainer.tick, first + length * phase.num_steps)
            first += length * phase.num_steps

    def stage(self, name: str, length: int, todo: int) -> None:
        """Run iterations of one stage."""
        self.reset_peak()
        entry: dict[str, Any] = {"seconds": [], "scalars": []}
        self.results["stages"][name] = entry
        start = time.perf_counter()
        for done in range(todo):
            if self.stopped() or (done >= MIN_ITERATIONS and self.late(start)):
                break
            before = now()
            self.trainer.run(stop_after=length)
            entry["seconds"].append(now() - before)
            entry["scalars"].append(dict(self.numbers.scalars))
            warm = entry["seconds"][1:] or entry["seconds"]
            entry |= {"median_s": float(np.median(warm)), "peak_gib": self.peak()}
            self.keep()
            if self.trainer.tick // length == self.options.save_at:
                self.write()
        if self.options.breakdown:
            self.take_apart(entry, length)
        if self.processes.is_main:
            shown = {k: v for k, v in entry.items() if not isinstance(v, (list, dict))}
            print(f"{name}: {len(entry['seconds'])} iterations, {shown}", flush=True)

    def take_apart(self, entry: dict[str, Any], length: int) -> None:
        """Time the parts of one iteration, and list the kernels of an update of the judges."""
        stopwatch = self.trainer.stopwatch
        stopwatch.is_on = True
        parts: dict[str, Any] = {}
        for name, count in (("judges", length - 1), ("student", 1)):
            before = now()
            self.trainer.run(stop_after=count)
            parts[name] = {"s": now() - before, "updates": count, "parts": stopwatch.read()}
        stopwatch.is_on = False
        entry["breakdown"] = parts
        self.keep()
        if self.options.profile:
            entry["kernels_of_judges"] = kernel_shares(lambda: self.trainer.run(stop_after=1))
            self.keep()

    def stopped(self) -> bool:
        """Tell whether the run was to end here."""
        done = self.trainer.tick // cycle_length(self.settings.phases[0])
        return self.options.stop_at is not None and done >= self.options.stop_at

    def late(self, start: float) -> bool:
        """Tell whether half of the time is up; all processes decide alike."""
        over = time.perf_counter() - start > self.options.budget_s / 2
        flag = torch.tensor(float(over), device=self.processes.device)
        return bool(mean_over_processes(flag, self.processes) > 0)

    def write(self) -> None:
        """Write a checkpoint and say how long it took."""
        start = now()
        folder = self.trainer.write()
        self.results["checkpoint_s"] = now() - start
        if self.processes.is_main:
            size = sum(f.stat().st_size for f in folder.iterdir())
            self.results["checkpoint_gb"] = size / 1e9
        self.keep()

    def resume(self, folder: Path) -> None:
        """Go on from a checkpoint that any number of cards wrote."""
        start = now()
        self.trainer._folder = folder / "checkpoints"
        assert self.trainer.resume(), f"no checkpoint in {folder}"
        self.results |= {"resume_s": now() - start, "resumed_at_tick": self.trainer.tick}
        if self.options.folder is not None:
            self.trainer._folder = self.options.folder / "checkpoints"
            self.write()
        self.keep()

    def reset_peak(self) -> None:
        """Measure memory from here on."""
        if self.processes.device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()

    def peak(self) -> list[float] | None:
        """Return the largest memory in use on each card since the last reset, in GiB."""
        device = self.processes.device
        if device.type != "cuda":
            return None
        used = torch.tensor([torch.cuda.max_memory_allocated() / 2**30], device=device)
        return [round(x, 2) for x in gather(used, self.processes).tolist()]

    def keep(self) -> None:
        """Write what is known."""
        if self.processes.is_main:
            write_json(self.options.out, self.results)


def measure(options: Options, processes: Processes) -> None:
    """Measure one way of running, and say what it implies for the paper's recipe."""
    measurement = Measurement(options, processes)
    try:
        measurement.run()
    except torch.OutOfMemoryError as error:
        if processes.count > 1:
            raise
        measurement.results["out_of_memory"] = str(error)
        measurement.keep()
    stages = measurement.results["stages"]
    if processes.is_main and all("median_s" in stages.get(name, {}) for name in ("gan", "dmd")):
        hours = (4000 * stages["gan"]["median_s"] + 5000 * stages["dmd"]["median_s"]) / 3600
        print(f"4,000 + 5,000 iterations of this many clips: {hours:.1f} h", flush=True)


def main(options: Options) -> None:
    """Measure all variants, or the one that the options describe."""
    processes = start_processes(cpu=options.cpu)
    if options.kernels is not None and options.kernels.is_file():
        load_kernels(options.kernels)
    for name in filter(None, options.variants.split(",")):
        path = options.out.with_name(f"{options.out.stem}-{name}.json")
        measure(replace(options, out=path, **VARIANTS[name]), processes)
        gc.collect()
        if options.kernels is not None and processes.is_main and "compiled" in name:
            save_kernels(options.kernels)
    if not options.variants:
        measure(options, processes)
        if options.kernels is not None and processes.is_main and options.compile_blocks:
            save_kernels(options.kernels)
    leave_processes(processes)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
    end_program(0)
