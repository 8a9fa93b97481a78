"""Networks from a teacher, adapters, validation, made-up clips, means over time, recipes."""

import dataclasses
import math
from pathlib import Path

import pytest
import torch
from unit.distill.tiny import TinyBackbone, tiny_batch

from fvgen_recon.diffusion.compact.config import CompactConfig
from fvgen_recon.diffusion.compact.generator import load_generator
from fvgen_recon.diffusion.sampler import GuidanceScale
from fvgen_recon.distill.calibration import binned_accuracy
from fvgen_recon.distill.config import LoraSettings, OptimizerSettings
from fvgen_recon.distill.lora import add_lora, merge_lora
from fvgen_recon.distill.model import (
    BACKBONES,
    finished_student,
    random_compact,
    start_networks,
)
from fvgen_recon.distill.parallel import Processes, blocks
from fvgen_recon.distill.role import Roles
from fvgen_recon.distill.rollout import RolloutSettings
from fvgen_recon.distill.synthetic import synthetic_clips
from fvgen_recon.distill.timeline import learning_rate, locate, num_ticks, stage_roles
from fvgen_recon.distill.validation import (
    ValidationClips,
    mean_psnr,
    read_validation,
    validate,
    write_validation,
)
from fvgen_recon.distill.watch import Guard, Window
from fvgen_recon.errors import InputError, TrainingError
from fvgen_recon.recipes.distill import RECIPES

ALONE = Processes(rank=0, count=1, device=torch.device("cpu"))
SHAPE = CompactConfig(
    widths=(16, 16, 16), num_blocks=(1, 1, 1), num_attention=1, head_dim=16, embedding=32
)


def clips(num_clips: int = 2) -> ValidationClips:
    codec = random_compact(SHAPE).codec
    return synthetic_clips(codec, num_clips=num_clips, num_frames=3, height=16, width=32, seed=4)


def test_start_copies_the_teacher_and_leaves_it_alone() -> None:
    model = random_compact(SHAPE)
    networks = start_networks(model, clips().clips, disc_layers=(0, 2), disc_width=16)
    assert networks.teacher is not None
    assert networks.critic is not None
    assert not any(p.requires_grad for p in networks.teacher.parameters())
    for module in (networks.student, networks.critic):
        assert all(p.requires_grad for p in module.parameters())
        for a, b in zip(module.parameters(), networks.teacher.parameters(), strict=True):
            assert torch.equal(a, b)
            assert a.data_ptr() != b.data_ptr()
    with pytest.raises(InputError, match="feature 3"):
        start_networks(model, clips().clips, disc_layers=(3,), disc_width=16)


def test_exported_student_is_loaded_by_the_generator(tmp_path: Path) -> None:
    student = random_compact(SHAPE, seed=5).backbone
    fresh = finished_student(random_compact(SHAPE).backbone, student.state_dict(), None)
    rollout = RolloutSettings(num_steps=2, kind="ode")
    BACKBONES["compact"].export(tmp_path, None, fresh, rollout)
    generator = load_generator(tmp_path, fast=False)
    assert (generator.num_steps, generator.sampler, generator.name) == (2, "ode", "student")
    got = generator.model.backbone.state_dict()
    for name, value in student.state_dict().items():
        torch.testing.assert_close(got[name], value.bfloat16().float())


def test_adapters_start_alike_in_every_process() -> None:
    model = random_compact(SHAPE)
    first, second = (
        start_networks(model, clips().clips, disc_width=16, lora=LoraSettings(rank=2))
        for _ in range(2)
    )
    for name, value in first.student.state_dict().items():
        assert torch.equal(value, second.student.state_dict()[name]), name


def test_adapters_start_neutral_train_alone_and_merge() -> None:
    batch, t = tiny_batch(), torch.tensor([100, 900])
    torch.manual_seed(0)
    plain = TinyBackbone()
    adapted = TinyBackbone()
    adapted.load_state_dict(plain.state_dict())
    add_lora(adapted, LoraSettings(rank=2, alpha=4))
    before = adapted(batch.x0, t, batch.condition)[0]
    torch.testing.assert_close(before, plain(batch.x0, t, batch.condition)[0])
    trained = [n for n, p in adapted.named_parameters() if p.requires_grad]
    assert trained
    assert all("lora_" in n for n in trained)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.fill_(0.3)
    changed = adapted(batch.x0, t, batch.condition)[0]
    assert not torch.allclose(changed, before)
    merged = merge_lora(adapted)
    torch.testing.assert_close(merged(batch.x0, t, batch.condition)[0], changed)
    assert merged.state_dict().keys() == plain.state_dict().keys()
    with pytest.raises(InputError, match="nothing to adapt"):
        add_lora(TinyBackbone(), LoraSettings(targets=("to_q",)))


def test_blocks_are_the_elements_of_the_outermost_lists() -> None:
    backbone = TinyBackbone()
    assert blocks(backbone) == list(backbone.blocks)
    compact = random_compact(SHAPE).backbone
    assert len(blocks(compact)) == 2 * 3 + 1


def test_validation_is_repeatable_and_shows_five_columns() -> None:
    model, fixed = random_compact(SHAPE), clips()
    roles = Roles(schedule=model.schedule, student=model.backbone, teacher=model.backbone)
    plain = GuidanceScale(scale=1.0, rescale=0.0)
    reports = [validate(roles, fixed, RolloutSettings(num_steps=2), plain) for _ in range(2)]
    assert reports[0].psnr == reports[1].psnr
    assert reports[0].panel.shape == (3, 2 * 16, 5 * 32)
    columns = reports[0].panel.unflatten(2, (5, 32))
    torch.testing.assert_close(columns[:, :16, 0], fixed.renders[0, 1])
    torch.testing.assert_close(columns[:, :16, 4], fixed.truth[0, 1])
    assert columns[:, :, 2].unique().tolist() == [0.5]  # there is no critic


def test_psnr_by_hand() -> None:
    truth = torch.zeros(2, 1, 3, 4, 4)
    frames = truth.clone()
    frames[0] += 0.1
    assert mean_psnr(frames[:1], truth[:1]) == pytest.approx(20.0, abs=1e-3)
    assert mean_psnr(frames, truth) == pytest.approx((20 + 99) / 2, abs=1e-3)


def test_validation_clips_survive_the_disk(tmp_path: Path) -> None:
    fixed = clips()
    write_validation(tmp_path, fixed)
    got = read_validation(tmp_path, fixed.codec, ALONE.device)
    assert torch.equal(got.clips.x0, fixed.clips.x0)
    torch.testing.assert_close(got.truth, fixed.truth, atol=1 / 500, rtol=0)
    (tmp_path / "frames.safetensors").unlink()
    with pytest.raises(InputError, match=r"frames\.safetensors"):
        read_validation(tmp_path, fixed.codec, ALONE.device)


def test_window_joins_means_extremes_and_accuracies() -> None:
    window = Window()
    logits, t = torch.tensor([1.0, -1.0]), torch.tensor([0, 999])
    for value in (1.0, 3.0):
        scalars = {
            "weight/mean": torch.tensor(value),
            "weight/mean_square": torch.tensor(value**2),
            "weight/min": torch.tensor(value),
            "weight/max": torch.tensor(value),
        }
        window.add(scalars, binned_accuracy(logits, -logits, t, 1000))
    got = window.read(ALONE)
    assert got["weight/mean"] == 2.0
    assert (got["weight/min"], got["weight/max"]) == (1.0, 3.0)
    assert got["weight/effective_share"] == pytest.approx(4 / 5)
    assert got["accuracy/all"] == 0.5
    assert (got["accuracy/t0"], got["accuracy/t9"]) == (1.0, 0.0)
    assert window.read(ALONE) == {}


def test_guard_knows_what_is_usual() -> None:
    guard = Guard(10.0, {})
    for step in range(8):
        guard.check("dmd", step, {"gradient_norm/critic": 1.0 + 0.1 * step})
    guard.check("gan", 9, {"gradient_norm/critic": 500.0})  # another phase has its own usual size
    again = Guard(10.0, guard.history)
    with pytest.raises(TrainingError, match="critic's gradient norm is 20 in phase dmd at step 9"):
        again.check("dmd", 9, {"gradient_norm/critic": 20.0})
    with pytest.raises(TrainingError, match="loss/student is not finite"):
        guard.check("dmd", 9, {"loss/student": math.nan})


def test_learning_rate_by_hand() -> None:
    how = OptimizerSettings(learning_rate=2.0, warmup_steps=4, decay="cosine")
    assert learning_rate(how, 0, 100) == pytest.approx(0.5)
    assert learning_rate(how, 50, 100) == pytest.approx(1.0)
    assert learning_rate(dataclasses.replace(how, decay="constant"), 50, 100) == 2.0


def test_timeline_of_the_paper() -> None:
    phases = RECIPES["paper"]().train.phases
    assert [(p.name, p.num_steps) for p in phases] == [("gan", 4000), ("dmd", 5000)]
    assert num_ticks(phases) == 9000 * 6
    turns = [locate(phases, tick).turn for tick in range(6)]
    assert turns == ["judges"] * 5 + ["student"]
    place = locate(phases, 4000 * 6)
    assert (place.phase, place.step, place.opens_phase) == (1, 0, True)


def test_recipes_are_what_their_names_say() -> None:
    recipes = {name: make() for name, make in RECIPES.items()}
    stages = {n: [type(p.stage).__name__ for p in r.train.phases] for n, r in recipes.items()}
    assert stages["paper"] == ["GanSettings", "DmdSettings"]
    assert stages["gan-only"] == ["GanSettings"]
    assert stages["no-start"] == ["DmdSettings"]
    assert stages["causvid"] == ["OdeSettings", "DmdSettings"]
    assert stage_roles(recipes["paper"].train.phases[1].stage) == ("student", "critic")
    assert stage_roles(recipes["dmd2"].train.phases[0].stage) == ("student", "critic", "disc")
    assert recipes["lora"].lora is not None
