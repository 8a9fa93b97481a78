"""What the measurements of distillation run: options, settings, networks and clips."""

import copy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from torch import nn

from fvgen_recon.diffusion.backbone import Condition
from fvgen_recon.diffusion.discriminator import ClipDiscriminator
from fvgen_recon.diffusion.schedule import ViewCrafterSchedule
from fvgen_recon.diffusion.viewcrafter.backbone import ViewCrafterBackbone
from fvgen_recon.diffusion.viewcrafter.unet import ViewCrafterUNet
from fvgen_recon.distill.config import TrainSettings
from fvgen_recon.distill.data import TrainingBatch
from fvgen_recon.distill.ensemble import Networks
from fvgen_recon.recipes.distill import RECIPES

WIDTHS = {
    "full": ((320, 640, 1280, 1280), 64),
    "narrow": ((64, 128, 256, 256), 32),
    "tiny": ((32, 64, 64, 64), 8),
}
"""Widths of the levels and of an attention head."""

TOKENS, TOKEN_WIDTH = 77 + 256, 1024


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
