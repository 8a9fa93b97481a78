"""One iteration of each distillation stage at full size with random weights: seconds and memory.

Usage:
    python benchmarks/distill_scale.py --out benchmarks/results/distill_scale.json
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from torch import nn

from fvgen_recon.diffusion.backbone import Condition
from fvgen_recon.diffusion.discriminator import ClipDiscriminator
from fvgen_recon.diffusion.schedule import ViewCrafterSchedule
from fvgen_recon.diffusion.viewcrafter.backbone import ViewCrafterBackbone
from fvgen_recon.diffusion.viewcrafter.unet import ViewCrafterUNet
from fvgen_recon.distill.config import DmdSettings, GanSettings
from fvgen_recon.distill.data import TrainingBatch
from fvgen_recon.distill.randomness import StepRng
from fvgen_recon.distill.role import RoleLosses, Roles, Turn
from fvgen_recon.distill.stages import StepResult, dmd_step, gan_init_step
from fvgen_recon.io.file import write_json

Step = Callable[[Roles, TrainingBatch, StepRng, Any, Turn], StepResult]


@dataclass(frozen=True)
class Options:
    """What to measure."""

    out: Path
    """JSON file with the results."""
    batch_size: int = 1
    """Clips a step."""
    frames: int = 16
    """Frames of a clip."""
    height: int = 320
    """Image height in pixels."""
    width: int = 512
    """Image width in pixels."""
    judge_turns: int = 5
    """Updates of critic or discriminator for each one of the student."""
    iterations: int = 3
    """Timed iterations of each stage, after one warm-up."""
    compile: bool = False
    """Compile the three networks."""
    checkpointing: bool = True
    """Recompute activations in the backward pass."""
    small: bool = False
    """A narrow network, to try the script without a GPU."""


def build_backbone(options: Options, device: torch.device, *, trained: bool) -> nn.Module:
    """Build one network with random weights: float32 where trained, bfloat16 where frozen."""
    widths = (32, 64, 64, 64) if options.small else (320, 640, 1280, 1280)
    with torch.device(device):
        unet = ViewCrafterUNet(
            image_context="per_frame",
            block_out_channels=widths,
            attention_head_dim=8 if options.small else 64,
        )
    for parameter in unet.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.02)
    unet.to_channels_last().requires_grad_(trained)
    if options.checkpointing:
        unet.enable_gradient_checkpointing()
        unet.train()
    if not trained and device.type == "cuda":
        unet.to(torch.bfloat16)
    backbone: Any = ViewCrafterBackbone(unet)
    return torch.compile(backbone) if options.compile else backbone


def build_roles(options: Options, device: torch.device) -> Roles:
    """Build teacher, student, critic and discriminator."""
    torch.manual_seed(0)
    disc = ClipDiscriminator([64 if options.small else 1280]).to(device)
    return Roles(
        schedule=ViewCrafterSchedule(base_scale=0.3),
        student=build_backbone(options, device, trained=True),
        teacher=build_backbone(options, device, trained=False),
        critic=build_backbone(options, device, trained=True),
        disc=disc,
        plain_disc=disc,
    )


def make_batch(options: Options, device: torch.device) -> TrainingBatch:
    """Random latents, renders and tokens."""
    rng = torch.Generator(device=device).manual_seed(0)
    size = (options.batch_size, 4, options.frames, options.height // 8, options.width // 8)
    x0 = torch.randn(size, generator=rng, device=device)
    context = torch.randn(options.batch_size, 77 + 256, 1024, generator=rng, device=device)
    concat = torch.randn(size, generator=rng, device=device)
    condition = Condition(concat=concat, context=context, null_context=context.flip(1))
    return TrainingBatch(x0=x0, condition=condition)


def optimizers(roles: Roles) -> dict[str, torch.optim.Optimizer]:
    """One AdamW a trained role, with the paper recipe's settings."""
    modules = {"student": roles.student, "critic": roles.need_critic(), "disc": roles.need_disc()}
    return {
        name: torch.optim.AdamW(module.parameters(), lr=2e-6, betas=(0.0, 0.999), weight_decay=0.01)
        for name, module in modules.items()
    }


def update(losses: RoleLosses, optimizer_of: dict[str, torch.optim.Optimizer]) -> None:
    """Backward, clip, step."""
    losses.total().backward()
    for name in losses.named():
        optimizer = optimizer_of[name]
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        nn.utils.clip_grad_norm_(parameters, 10.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)


def measure_stage(
    step: Step, settings: Any, roles: Roles, batch: TrainingBatch, options: Options
) -> dict[str, Any]:
    """Time whole iterations: the judges' turns, then the student's."""
    device = batch.x0.device
    optimizer_of = optimizers(roles)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    rng = StepRng(torch.Generator().manual_seed(0), [torch.Generator(device=device).manual_seed(1)])
    times: dict[str, list[float]] = {"disc": [], "student": []}
    for _ in range(options.iterations + 1):
        for turn, count in (("judges", options.judge_turns), ("student", 1)):
            start = _now(device)
            for _ in range(count):
                with torch.autocast(device.type, torch.bfloat16):
                    losses, _ = step(roles, batch, rng, settings, turn)
                update(losses, optimizer_of)
            times["student" if turn == "student" else "disc"].append(_now(device) - start)
    judges, student = (np.array(times[key][1:]) for key in ("disc", "student"))
    peak = torch.cuda.max_memory_allocated() / 2**30 if device.type == "cuda" else None
    return {
        "iteration_s": float(np.median(judges + student)),
        "judges_s": float(np.median(judges)),
        "student_s": float(np.median(student)),
        "first_s": times["disc"][0] + times["student"][0],
        "peak_gib": peak,
    }


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def main(options: Options) -> None:
    """Measure both stages and say what they imply for the paper's recipe."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    roles, batch = build_roles(options, device), make_batch(options, device)
    results: dict[str, Any] = {}
    stages: dict[str, tuple[Step, Any]] = {
        "gan_init": (gan_init_step, GanSettings()),
        "dmd": (dmd_step, DmdSettings()),
    }
    for name, (step, settings) in stages.items():
        results[name] = measure_stage(step, settings, roles, batch, options)
        print(name, results[name], flush=True)
        write_json(options.out, {"options": vars(options) | {"out": ""}, "results": results})
    hours = (
        4000 * results["gan_init"]["iteration_s"] + 5000 * results["dmd"]["iteration_s"]
    ) / 3600
    print(f"4,000 + 5,000 iterations at this batch size: {hours:.1f} h on each card")


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
