"""The full-size model's architecture, made tiny, through both stages to a student's pipeline."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from unit.diffusion.viewcrafter.small import make_guidance, write_model

from fvgen_recon.diffusion.viewcrafter.student import FVGenPipeline
from fvgen_recon.distill.config import LoraSettings, TrainSettings, stage_rollout
from fvgen_recon.distill.data import MemoryClips
from fvgen_recon.distill.model import BACKBONES, finished_student, start_networks
from fvgen_recon.distill.parallel import Processes
from fvgen_recon.distill.synthetic import synthetic_clips
from fvgen_recon.distill.tracker import FileTracker
from fvgen_recon.distill.trainer import Trainer
from fvgen_recon.recipes.distill import RECIPES

ALONE = Processes(rank=0, count=1, device=torch.device("cpu"))


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("viewcrafter"))


def short(recipe: str) -> TrainSettings:
    """The recipe with a step of each phase."""
    train = RECIPES[recipe]().train
    phases = tuple(
        replace(p, num_steps=1, judge_turns=1, calibrate=min(1, p.calibrate)) for p in train.phases
    )
    return replace(train, phases=phases, parallel="ddp", log_every=1, checkpoint_every=0)


@pytest.mark.parametrize(
    ("recipe", "lora"), [("paper", None), ("lora", LoraSettings(rank=4)), ("dmd2", None)]
)
def test_recipe_runs_and_its_student_is_a_pipeline(
    recipe: str, lora: LoraSettings | None, teacher: Path, tmp_path: Path
) -> None:
    door = BACKBONES["viewcrafter"]
    model = door.load(teacher, ALONE.device)
    clips = synthetic_clips(model.codec, num_clips=2, num_frames=4, height=32, width=48, seed=0)
    train = short(recipe)
    networks = start_networks(model, clips.clips, disc_width=16, lora=lora)
    before = {n: p.detach().clone() for n, p in networks.student.named_parameters()}
    source = MemoryClips(clips=clips.clips, seed=0, device=ALONE.device)
    trainer = Trainer(
        train,
        networks,
        source,
        tmp_path,
        processes=ALONE,
        trackers=[FileTracker(tmp_path)],
        validation=clips,
    )
    trainer.run()
    moved = {n for n, p in networks.student.named_parameters() if not torch.equal(p, before[n])}
    assert moved
    assert lora is None or all("lora_" in name for name in moved)
    assert len(list(tmp_path.glob("validation-*.png"))) >= 1
    weights = trainer.ensemble.average_weights()
    student = finished_student(door.load(teacher, ALONE.device).backbone, weights, lora)
    rollout = stage_rollout(train.phases[-1].stage)
    door.export(tmp_path / "student", teacher, student, rollout)
    pipeline = FVGenPipeline.from_pretrained(tmp_path / "student")
    rng = torch.Generator().manual_seed(0)
    frames = pipeline(make_guidance(), generator=rng).frames
    assert frames.shape == (1, 4, 3, 32, 48)
    assert torch.isfinite(frames).all()
