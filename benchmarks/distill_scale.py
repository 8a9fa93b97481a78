"""Full-size distillation with random weights: seconds, memory and losses of each iteration.

The `paper` recipe runs through the real trainer, on one card or, sharded, on several:

    python benchmarks/distill_scale.py --out scale.json --steps 8
    torchrun --nproc-per-node 2 benchmarks/distill_scale.py --out scale.json --steps 30

An iteration is five updates of the judges and one of the student. Results are written after each
one. With `--breakdown` one more iteration of each stage is taken apart. `--variants` measures
several ways of running one after the other. `benchmarks/distill_cards.py` runs and compares several
of these.
"""

import copy
import gc
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.distributed as dist
import tyro
from jaxtyping import Float
from stopwatch import Stopwatch, now
from torch import Tensor, nn
from video_profile import kernel_shares

from fvgen_recon.diffusion.backbone import Condition
from fvgen_recon.diffusion.discriminator import ClipDiscriminator
from fvgen_recon.diffusion.schedule import ViewCrafterSchedule
from fvgen_recon.diffusion.viewcrafter.backbone import ViewCrafterBackbone
from fvgen_recon.diffusion.viewcrafter.kernel import load_kernels, save_kernels
from fvgen_recon.diffusion.viewcrafter.unet import ViewCrafterUNet
from fvgen_recon.distill.config import PhaseSettings, TrainSettings
from fvgen_recon.distill.data import MemoryClips, TrainingBatch
from fvgen_recon.distill.ensemble import Networks
from fvgen_recon.distill.parallel import Processes, gather, mean_over_processes, start_processes
from fvgen_recon.distill.randomness import StepRng
from fvgen_recon.distill.role import TrainedRole
from fvgen_recon.distill.timeline import Place, cycle_length
from fvgen_recon.distill.tracker import Progress
from fvgen_recon.distill.trainer import Trainer
from fvgen_recon.io.file import write_json
from fvgen_recon.recipes.distill import RECIPES

WIDTHS = {
    "full": ((320, 640, 1280, 1280), 64),
    "narrow": ((64, 128, 256, 256), 32),
    "tiny": ((32, 64, 64, 64), 8),
}
"""Widths of the levels and of an attention head."""

VARIANTS: Mapping[str, Mapping[str, Any]] = {
    "fused": {"mode": "fused", "checkpointing": False},
    "recorded": {"mode": "recorded", "checkpointing": False},
    "half": {"mode": "half", "checkpointing": False},
    "stored": {"mode": "shards", "checkpointing": False},
    "recomputed": {"mode": "shards", "checkpointing": True},
    "compiled": {"mode": "shards", "checkpointing": False, "compile_blocks": True},
}
"""Ways of running that `--variants` knows."""

TOKENS, TOKEN_WIDTH = 77 + 256, 1024
MIN_ITERATIONS = 2


@dataclass(frozen=True)
class Options:
    """What to measure."""

    out: Path
    """JSON file with the results."""
    steps: int = 30
    """Iterations of each stage."""
    judge_turns: int = 5
    """Updates of the judges for each one of the student."""
    network: Literal["full", "narrow", "tiny"] = "full"
    """1.44 B parameters each, or fewer, to try the script or to prove a resume quickly."""
    batch_size: int = 1
    """Clips a card and forward."""
    accumulation: int = 1
    """Forwards before an update."""
    frames: int = 16
    """Frames of a clip."""
    height: int = 320
    """Image height in pixels."""
    width: int = 512
    """Image width in pixels."""
    mode: Literal["shards", "autocast", "half", "recorded", "fused"] = "shards"
    """Shards where a launcher started the process, else copies with autocast; copies with bfloat16
    weights; these with calls recorded as CUDA graphs; these with kernels of our own."""
    compile_blocks: bool = False
    """Compile the networks' blocks."""
    checkpointing: bool = True
    """Recompute activations in the backward pass."""
    variants: str = ""
    """Names of `VARIANTS`, in order; each writes a file of its own beside `out`."""
    stages: str = "gan,dmd"
    """Which stages to run."""
    breakdown: bool = False
    """Take one more iteration of each stage apart."""
    profile: bool = False
    """List the kernels of an update of the judges, too."""
    kernels: Path | None = None
    """File of compiled kernels: loaded where it exists, written at the end."""
    budget_s: float = 1e9
    """Seconds for the iterations; each stage is cut short at its half of them."""
    stop_at: int | None = None
    """Stop after so many iterations of the whole run."""
    save_at: int | None = None
    """Write a checkpoint after so many iterations of the whole run, into `folder`."""
    folder: Path | None = None
    """Where checkpoints go."""
    resume_from: Path | None = None
    """Before anything else, go on from the newest checkpoint of this folder, and write it again
    into `folder`, if one is given, so that the two can be compared bit for bit."""
    then_resume_from: Path | None = None
    """When all iterations are done, go on from that checkpoint to the end of the run."""
    cpu: bool = False
    """Compute on the CPU, in float32."""

    @property
    def extra_steps(self) -> int:
        """Iterations of each stage that are taken apart and not counted."""
        return 2 if self.breakdown else 0


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


def train_settings(options: Options) -> TrainSettings:
    """Return the paper's recipe with few iterations of each stage."""
    train = RECIPES["paper"]().train
    phases = tuple(
        replace(
            phase,
            num_steps=options.steps + options.extra_steps,
            judge_turns=options.judge_turns,
            calibrate=min(2, phase.calibrate),
        )
        for phase in train.phases
        if phase.name in options.stages.split(",")
    )
    return replace(
        train,
        phases=phases,
        batch_size=options.batch_size,
        accumulation=options.accumulation,
        precision="fp32" if options.cpu else "bf16",
        parallel="fsdp" if options.mode == "shards" else "ddp",
        half_weights=options.mode in ("half", "recorded", "fused") and not options.cpu,
        record_calls=options.mode in ("recorded", "fused") and not options.cpu,
        fused_calls=options.mode == "fused" and not options.cpu,
        activation_checkpointing=options.checkpointing,
        compile_blocks=options.compile_blocks,
        log_every=1,
        validate_every=0,
        checkpoint_every=0,
    )


def build_networks(options: Options, device: torch.device) -> Networks:
    """Build teacher, student, critic and discriminator with the same random weights everywhere."""
    widths, head = WIDTHS[options.network]
    torch.manual_seed(0)
    with torch.device(device):
        unet = ViewCrafterUNet(
            image_context="per_frame", block_out_channels=widths, attention_head_dim=head
        )
        disc = ClipDiscriminator([widths[-1]])
        for parameter in unet.parameters():
            if not parameter.any():
                nn.init.normal_(parameter, std=0.02)
        for layer in disc.heads:
            nn.init.normal_(layer.get_parameter("last.weight"), std=0.1)
    teacher = ViewCrafterBackbone(unet).requires_grad_(False)
    student, critic = (copy.deepcopy(teacher).requires_grad_(True) for _ in range(2))
    if device.type == "cuda":
        teacher.to(torch.bfloat16)
    return Networks(
        schedule=ViewCrafterSchedule(base_scale=0.3),
        teacher=teacher,
        student=student,
        critic=critic,
        disc=disc,
    )


def make_clips(options: Options, device: torch.device) -> TrainingBatch:
    """Random latents, renders and tokens of eight clips, the same on every kind of device."""
    rng = torch.Generator().manual_seed(0)
    size = (8, 4, options.frames, options.height // 8, options.width // 8)
    x0, concat = (torch.randn(size, generator=rng) for _ in range(2))
    context, null = (torch.randn(8, TOKENS, TOKEN_WIDTH, generator=rng) for _ in range(2))
    condition = Condition(concat=concat, context=context, null_context=null)
    return TrainingBatch(x0=x0, condition=condition).to(device)


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
    if dist.is_initialized():
        dist.destroy_process_group()


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
