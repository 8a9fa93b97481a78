"""The loop: exact resume, the same numbers however the work is spread, guards and checkpoints."""

import dataclasses
import itertools
import json
import shutil
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from unit.distill.tiny import tiny_batch, tiny_roles

from fvgen_recon.diffusion.sampler import GuidanceScale
from fvgen_recon.distill.checkpoint import list_checkpoints, read_state
from fvgen_recon.distill.config import (
    DiffusionSettings,
    DmdSettings,
    GanSettings,
    OdeSettings,
    OptimizerSettings,
    PhaseSettings,
    RegressionSettings,
    TrainSettings,
)
from fvgen_recon.distill.data import MemoryClips
from fvgen_recon.distill.ensemble import Networks
from fvgen_recon.distill.optimizer import LeanAdamW
from fvgen_recon.distill.parallel import Processes, clip_gradients
from fvgen_recon.distill.role import Roles
from fvgen_recon.distill.tracker import (
    FileTracker,
    LineTracker,
    Progress,
    TensorBoardTracker,
    WandbTracker,
)
from fvgen_recon.distill.trainer import Trainer
from fvgen_recon.errors import InputError, TrainingError, WeightsError

ALONE = Processes(rank=0, count=1, device=torch.device("cpu"))
PLAIN = GuidanceScale(scale=1.0, rescale=0.0)
FAST = OptimizerSettings(learning_rate=1e-3, warmup_steps=2, decay="cosine")


def phase(name: str, stage: object, num_steps: int = 2, **changes: object) -> PhaseSettings:
    return PhaseSettings(
        name=name,
        stage=stage,  # pyright: ignore[reportArgumentType]
        num_steps=num_steps,
        judge_turns=2,
        student=FAST,
        critic=FAST,
        disc=FAST,
        ema_start=1,
        ema_decay=0.5,
        **changes,  # pyright: ignore[reportArgumentType]
    )


def all_phases() -> tuple[PhaseSettings, ...]:
    return (
        phase("regression", RegressionSettings()),
        phase("diffusion", DiffusionSettings(space="velocity"), promote=True),
        phase("ode", OdeSettings(guidance=PLAIN, teacher_steps=4)),
        phase("gan", GanSettings(), calibrate=2),
        phase("dmd", DmdSettings(), num_steps=3),
        phase("dmd2", DmdSettings(train_disc=True, gan_weight=0.1, disc_on="critic")),
    )


def settings(phases: tuple[PhaseSettings, ...], **changes: object) -> TrainSettings:
    base = TrainSettings(
        phases=phases, batch_size=2, precision="fp32", log_every=1, checkpoint_every=0
    )
    return dataclasses.replace(base, **changes)


def networks(roles: Roles) -> Networks:
    return Networks(
        schedule=roles.schedule,
        student=roles.student,
        teacher=roles.teacher,
        critic=roles.critic,
        disc=roles.plain_disc,
    )


def make(how: TrainSettings, folder: Path, **changes: object) -> Trainer:
    source = MemoryClips(clips=tiny_batch(6), seed=1, device=torch.device("cpu"))
    return Trainer(how, networks(tiny_roles()), source, folder, processes=ALONE, **changes)


def everything(trainer: Trainer) -> dict[str, Tensor]:
    return {
        f"{stem}/{name}": value.detach().clone()
        for stem, tensors in trainer.ensemble.tensors().items()
        for name, value in tensors.items()
    }


# Stops inside a student step, at the border of a phase, and inside every stage.
@pytest.mark.parametrize("stop", [1, 4, 8, 13, 17, 24])
def test_resumed_run_is_bit_for_bit_the_straight_one(stop: int, tmp_path: Path) -> None:
    how = settings(all_phases())
    straight = make(how, tmp_path / "straight", trackers=[FileTracker(tmp_path / "a")])
    straight.run()
    first = make(how, tmp_path / "parts", trackers=[FileTracker(tmp_path / "b")])
    first.run(stop_after=stop)
    first.save()
    second = make(how, tmp_path / "parts", trackers=[FileTracker(tmp_path / "b")])
    assert second.resume()
    assert second.tick == stop
    second.run()
    want, got = everything(straight), everything(second)
    assert want.keys() == got.keys()
    for name, value in want.items():
        assert torch.equal(value, got[name]), name
    lines = [(tmp_path / part / "metrics.jsonl").read_text().splitlines() for part in "ab"]
    losses = [json.loads(part[-1])["loss/student"] for part in lines]
    assert losses[0] == losses[1]


def test_every_phase_changes_its_roles_and_no_others(tmp_path: Path) -> None:
    trainer = make(settings(all_phases()), tmp_path)
    changed = []
    for ticks in (2, 2, 2, 6, 9, 6):
        before = everything(trainer)
        trainer.run(stop_after=ticks)
        after = everything(trainer)
        moved = {n.split("/")[0] for n in before if not torch.equal(before[n], after[n])}
        changed.append(moved - {"ema"})
    assert changed == [
        {"student"},
        {"student", "teacher", "critic"},  # promoted at its end
        {"student"},
        {"student", "disc"},
        {"student", "critic"},
        {"student", "critic", "disc"},
    ]


def test_promotion_copies_the_average(tmp_path: Path) -> None:
    trainer = make(settings(all_phases()[:2]), tmp_path)
    trainer.run()
    averaged = dict(trainer.ensemble.ema.named_parameters())
    assert trainer.ensemble.teacher is not None
    for module in (trainer.ensemble.teacher, *trainer.ensemble.plain.values()):
        if module is trainer.ensemble.plain["disc"]:
            continue
        for name, value in module.named_parameters():
            assert torch.equal(value, averaged[name])


def test_accumulation_equals_a_larger_batch(tmp_path: Path) -> None:
    results = []
    for size, parts in ((4, 1), (2, 2), (1, 4)):
        how = settings(all_phases()[3:5], batch_size=size, accumulation=parts)
        trainer = make(how, tmp_path / str(size))
        trainer.run(stop_after=6)
        results.append(everything(trainer))
    for other in results[1:]:
        for name, value in results[0].items():
            torch.testing.assert_close(value, other[name], rtol=1e-4, atol=2e-5)


def test_average_follows_its_definition(tmp_path: Path) -> None:
    trainer = make(settings((phase("r", RegressionSettings(), num_steps=3),)), tmp_path)
    seen = []
    for _ in range(3):
        trainer.run(stop_after=1)
        seen.append(trainer.ensemble.plain["student"].last.bias.detach().clone())
    want = 0.5 * (0.5 * seen[0] + 0.5 * seen[1]) + 0.5 * seen[2]
    torch.testing.assert_close(trainer.ensemble.ema.last.bias, want)


def test_bf16_backward_simulation_still_reaches_the_weights(tmp_path: Path) -> None:
    """The cast cache of autocast would cut the gradient of weights first used under no_grad."""
    trainer = make(settings(all_phases()[3:4], precision="bf16"), tmp_path)
    before = everything(trainer)
    trainer.run(stop_after=6)
    after = everything(trainer)
    moved = [n for n in before if n.startswith("student/") and not torch.equal(before[n], after[n])]
    assert len(moved) == sum(n.startswith("student/") for n in before)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_recomputed_activations_change_nothing(precision: str, tmp_path: Path) -> None:
    results = []
    for flag in (False, True):
        how = settings(all_phases()[3:5], precision=precision, activation_checkpointing=flag)
        trainer = make(how, tmp_path / str(flag))
        trainer.run(stop_after=9)
        results.append(everything(trainer))
    for name, value in results[0].items():
        torch.testing.assert_close(value, results[1][name], rtol=0, atol=0)


def test_half_weights_train_as_autocast_does_and_resume_exactly(tmp_path: Path) -> None:
    phases = all_phases()[3:5]
    plain = make(settings(phases, precision="bf16"), tmp_path / "plain")
    how = settings(phases, precision="bf16", half_weights=True, accumulation=2, batch_size=1)
    straight, stopped = (make(how, tmp_path / name) for name in ("straight", "stopped"))
    before = everything(plain)
    plain.run()
    straight.run()
    stopped.run(stop_after=4)
    again = make(how, tmp_path / "stopped")
    assert again.resume()
    again.run()
    for name, value in everything(straight).items():
        assert torch.equal(value, everything(again)[name]), name
    for role in ("student", "critic", "disc", "ema"):
        ours, theirs = (
            torch.cat([(v - before[k]).flatten() for k, v in end.items() if k.startswith(role)])
            for end in (everything(straight), everything(plain))
        )
        assert torch.nn.functional.cosine_similarity(ours, theirs, dim=0) > 0.95, role
    student = straight.ensemble.plain["student"]
    weights = zip(student.parameters(), straight.ensemble.weights("student"), strict=True)
    for used, stored in weights:
        assert stored.dtype == torch.float32
        assert torch.equal(used, stored.to(torch.bfloat16))
        assert not torch.equal(used.float(), stored)


def test_half_weights_keep_updates_below_their_precision(tmp_path: Path) -> None:
    slow = dataclasses.replace(FAST, learning_rate=1e-6, warmup_steps=0)
    phases = (dataclasses.replace(phase("gan", GanSettings(), num_steps=3), student=slow),)
    trainer = make(settings(phases, precision="bf16", half_weights=True), tmp_path)
    assert all(weight.is_contiguous() for weight in trainer.ensemble.weights("student"))
    before = [weight.detach().clone() for weight in trainer.ensemble.weights("student")]
    trainer.run()
    after = trainer.ensemble.weights("student")
    moved = torch.cat(
        [(a.detach() - b).abs().flatten() for a, b in zip(after, before, strict=True)]
    )
    assert float(moved.median()) > 1e-6


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("betas", [(0.0, 0.999), (0.9, 0.99)])
def test_lean_optimizer_takes_the_steps_of_adamw(
    betas: tuple[float, float], fused: bool, rng: torch.Generator
) -> None:
    start = [torch.randn(n, 3, generator=rng) for n in (2, 5, 7)]
    pairs = []
    for kind in (LeanAdamW, torch.optim.AdamW):
        weights = [nn.Parameter(x.clone()) for x in start]
        pairs.append((weights, kind(weights, lr=0.1, betas=betas, fused=fused)))
    for step in range(4):
        gradients = [torch.randn(x.shape, generator=rng) for x in start]
        for weights, optimizer in pairs:
            for index, (weight, gradient) in enumerate(zip(weights, gradients, strict=True)):
                weight.grad = None if index == step == 1 else gradient.clone()
            optimizer.step()
        for ours, theirs in zip(pairs[0][0], pairs[1][0], strict=True):
            assert torch.equal(ours, theirs)
    stored = {key for state in pairs[0][1].state.values() for key in state}
    assert ("exp_avg" in stored) == (betas[0] > 0)


@pytest.mark.parametrize("limit", [0.5, 50.0])
def test_gradients_are_clipped_as_pytorch_does(limit: float, rng: torch.Generator) -> None:
    weights = [[nn.Parameter(torch.zeros(n)) for n in (3, 40, 5)] for _ in range(2)]
    for ours, theirs in zip(*weights, strict=True):
        ours.grad = torch.randn(ours.shape, generator=rng)
        theirs.grad = ours.grad.clone()
    weights[0].append(nn.Parameter(torch.zeros(2)))  # Never used, hence without gradient.
    norm = clip_gradients(weights[0], limit)
    torch.testing.assert_close(norm, nn.utils.clip_grad_norm_(weights[1], limit))
    assert (norm > limit) == (limit < 1)
    for ours, theirs in zip(*weights, strict=False):
        torch.testing.assert_close(ours.grad, theirs.grad)


def test_checkpoints_are_kept_and_complete(tmp_path: Path) -> None:
    how = settings(all_phases()[:1], checkpoint_every=1, keep_last=1)
    trainer = make(how, tmp_path)
    trainer.run()
    kept = list_checkpoints(tmp_path / "checkpoints")
    assert [p.name for p in kept] == ["000000002"]
    assert not list((tmp_path / "checkpoints").glob(".*"))
    state = read_state(kept[0])
    stages = state.settings["phases"]
    assert isinstance(stages, list)
    assert stages[0]["stage"]["kind"] == "RegressionSettings"
    (kept[0] / "student.safetensors").write_bytes(b"torn")
    with pytest.raises(WeightsError, match="damaged"):
        make(how, tmp_path).resume()


def test_other_settings_are_refused_on_resume(tmp_path: Path) -> None:
    how = settings(all_phases()[:1])
    trainer = make(how, tmp_path)
    trainer.run()
    with pytest.raises(InputError, match=r"other settings \(seed\)"):
        make(dataclasses.replace(how, seed=5), tmp_path).resume()
    assert make(dataclasses.replace(how, log_every=7), tmp_path).resume()
    assert not make(how, tmp_path / "elsewhere").resume()


def test_numbers_that_are_not_finite_stop_the_run_before_it_is_saved(tmp_path: Path) -> None:
    how = settings(all_phases()[:1])
    roles = tiny_roles()
    with torch.no_grad():
        roles.student.last.bias.fill_(torch.nan)
    source = MemoryClips(clips=tiny_batch(6), seed=1, device=torch.device("cpu"))
    trainer = Trainer(how, networks(roles), source, tmp_path, processes=ALONE)
    with pytest.raises(TrainingError, match="not finite in phase regression at step 1"):
        trainer.run()
    assert list_checkpoints(tmp_path / "checkpoints") == []


def test_a_stop_among_the_judges_does_not_save_what_is_not_finite(tmp_path: Path) -> None:
    roles = tiny_roles()
    assert roles.plain_disc is not None
    with torch.no_grad():
        roles.plain_disc.heads[0].last.bias.fill_(torch.nan)
    source = MemoryClips(clips=tiny_batch(6), seed=1, device=torch.device("cpu"))
    how = settings(all_phases()[3:4])
    trainer = Trainer(how, networks(roles), source, tmp_path, processes=ALONE)
    with pytest.raises(TrainingError, match="not finite in phase gan at step 0"):
        trainer.run(stop_after=1)
    assert list_checkpoints(tmp_path / "checkpoints") == []


@pytest.mark.parametrize("index", [0, 2, 5])
def test_a_phase_without_a_discriminator_on_the_teacher_is_not_calibrated(index: int) -> None:
    with pytest.raises(InputError, match="no discriminator on the teacher's features"):
        dataclasses.replace(all_phases()[index], calibrate=1)


def test_a_short_phase_can_be_calibrated_on_more_clips_than_it_used(tmp_path: Path) -> None:
    trainer = make(settings((phase("gan", GanSettings(), num_steps=1, calibrate=9),)), tmp_path)
    trainer.run()
    disc = trainer.ensemble.plain["disc"]
    assert 0 < float(disc.temperature) != 1


def test_exploding_gradients_stop_the_run(tmp_path: Path) -> None:
    how = settings((phase("regression", RegressionSettings(), num_steps=20),))
    how = dataclasses.replace(how, divergence_factor=3.0)
    trainer = make(how, tmp_path)
    trainer.run(stop_after=8)
    trainer._source.clips.x0.mul_(1e4)  # pyright: ignore[reportAttributeAccessIssue]
    trainer._source.clips.condition.concat.mul_(1e4)  # pyright: ignore
    with pytest.raises(TrainingError, match="student's gradient norm"):
        trainer.run()


def test_trackers_get_curves_and_time_left(tmp_path: Path) -> None:
    lines: list[str] = []
    trackers = [LineTracker(lines.append), TensorBoardTracker(tmp_path / "board")]
    trainer = make(settings(all_phases()[3:5]), tmp_path, trackers=trackers)
    trainer.run()
    for tracker in trackers:
        tracker.close()
    assert len(lines) == 5
    assert lines[0].startswith("gan 1/5")
    assert "left" in lines[0]
    assert "disc" in lines[0]
    assert list((tmp_path / "board").iterdir())


def test_pace_of_a_resumed_run_counts_its_own_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    how = settings(all_phases()[3:5], log_every=2)
    make(how, tmp_path).run(stop_after=6)  # Two steps of one student's and two judges' turns.
    clock = itertools.count()
    monkeypatch.setattr("fvgen_recon.distill.trainer.time.monotonic", lambda: float(next(clock)))
    lines: list[str] = []
    trainer = make(how, tmp_path, trackers=[LineTracker(lines.append)])
    assert trainer.resume()
    trainer.run()
    assert lines[0].startswith("dmd 4/5  0.5 s/step")
    assert lines[1].startswith("dmd 5/5  1 s/step")


def test_curves_of_a_run_that_goes_on_hold_each_step_once(tmp_path: Path) -> None:
    how = settings(all_phases()[:2], checkpoint_every=3)
    path = tmp_path / "metrics.jsonl"
    make(how, tmp_path, trackers=[FileTracker(tmp_path)]).run()
    before = path.read_text()
    shutil.rmtree(list_checkpoints(tmp_path / "checkpoints")[-1])
    path.write_text(before[:-9])  # Killed while it wrote the last line.
    trainer = make(how, tmp_path, trackers=[FileTracker(tmp_path)])
    assert trainer.resume()
    assert trainer.tick == 3
    trainer.run()
    assert path.read_text() == before


def test_wandb_gets_curves_and_pictures_of_one_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    progress = Progress(
        phase="gan",
        step=3,
        num_steps=5,
        seconds_per_step=1.0,
        seconds_left=2.0,
        scalars={"loss/student": 0.25},
    )
    for _ in range(2):  # The second one goes on with the run of the first.
        tracker = WandbTracker("distillation", tmp_path)
        tracker.log(progress)
        tracker.picture(3, "validation", torch.rand(3, 8, 8))
        tracker.close()
    logs = list(tmp_path.glob("wandb/offline-run-*/run-*.wandb"))
    assert len({path.name for path in logs}) == 1
    assert b"loss/student" in logs[0].read_bytes()
    assert list(tmp_path.glob("wandb/offline-run-*/files/media/images/validation*.png"))


def test_missing_networks_are_told(tmp_path: Path) -> None:
    given = dataclasses.replace(networks(tiny_roles()), critic=None)
    source = MemoryClips(clips=tiny_batch(2), seed=1, device=torch.device("cpu"))
    with pytest.raises(InputError, match="Phase dmd trains a critic"):
        Trainer(settings(all_phases()), given, source, tmp_path, processes=ALONE)
