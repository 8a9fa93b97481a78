"""A training whose calls are recorded as CUDA graphs gives what plain calls give."""

import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fvgen_recon.diffusion.backbone import Condition
from fvgen_recon.diffusion.discriminator import ClipDiscriminator
from fvgen_recon.diffusion.schedule import ViewCrafterSchedule
from fvgen_recon.diffusion.viewcrafter.backbone import ViewCrafterBackbone
from fvgen_recon.diffusion.viewcrafter.unet import ViewCrafterUNet
from fvgen_recon.distill.data import MemoryClips, TrainingBatch
from fvgen_recon.distill.ensemble import Networks
from fvgen_recon.distill.parallel import Processes
from fvgen_recon.distill.tracker import FileTracker
from fvgen_recon.distill.trainer import Trainer
from fvgen_recon.io.file import read_json
from fvgen_recon.recipes.distill import paper

pytestmark = pytest.mark.gpu

NUM_TOKENS, NUM_FRAMES = 77 + 64, 4


def networks(device: torch.device) -> Networks:
    torch.manual_seed(0)
    unet = ViewCrafterUNet(
        image_context="per_frame", block_out_channels=(64, 128), attention_levels=(True, True)
    )
    with torch.no_grad():
        for weight in unet.parameters():
            weight.add_(0.02 * torch.randn_like(weight))
    teacher = ViewCrafterBackbone(unet).to(device)
    student, critic = copy.deepcopy(teacher), copy.deepcopy(teacher)
    return Networks(
        schedule=ViewCrafterSchedule(base_scale=0.3),
        teacher=teacher.to(torch.bfloat16),
        student=student,
        critic=critic,
        disc=ClipDiscriminator([128]).to(device),
    )


def clips(device: torch.device) -> MemoryClips:
    rng = torch.Generator().manual_seed(0)
    x0, concat = (torch.randn(4, 4, NUM_FRAMES, 16, 24, generator=rng) for _ in range(2))
    context, null = (torch.randn(4, NUM_TOKENS, 1024, generator=rng) for _ in range(2))
    condition = Condition(concat=concat, context=context, null_context=null)
    batch = TrainingBatch(x0=x0, condition=condition).to(device)
    return MemoryClips(clips=batch, seed=0, device=device)


@pytest.mark.parametrize("fused", [False, True])
def test_recorded_training_follows_the_plain_one(fused: bool, tmp_path: Path) -> None:
    device = torch.device("cuda", 0)
    processes = Processes(rank=0, count=1, device=device)
    train = paper().train
    phases = tuple(replace(p, num_steps=3, judge_turns=2, calibrate=0) for p in train.phases)
    how = replace(
        train, phases=phases, parallel="ddp", half_weights=True, activation_checkpointing=False,
        log_every=1, validate_every=0, checkpoint_every=0, record_calls=False, fused_calls=False,
    )  # fmt: skip
    curves = []
    for name, settings in (
        ("plain", how),
        ("recorded", replace(how, record_calls=True, fused_calls=fused)),
    ):
        tracker = FileTracker(tmp_path / name)
        trainer = Trainer(
            settings, networks(device), clips(device), tmp_path / name,
            processes=processes, trackers=[tracker],
        )  # fmt: skip
        trainer.run()
        lines = (tmp_path / name / "metrics.jsonl").read_text().splitlines()
        path = tmp_path / f"{name}.json"
        path.write_text(f"[{','.join(lines)}]")
        curves.append(read_json(path))
    for plain, recorded in zip(*curves, strict=True):
        for key in plain.keys() & recorded.keys():
            if key.startswith(("loss/", "gradient_norm/", "dmd/")):
                assert recorded[key] == pytest.approx(plain[key], rel=0.1, abs=1e-3), key
