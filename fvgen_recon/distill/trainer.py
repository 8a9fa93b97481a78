"""The training loop. What happens in an update is decided by its number alone.

    for each update ("tick"):
        forward and backward of the phase's stage, clip the gradients, step the optimizers
        after the student's turn: moving average, log, validate, save

Noise, clips and learning rates are functions of the tick, so a resumed run repeats a straight one
bit for bit on a CPU.
"""

import dataclasses
import json
import time
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

import torch
from torch import Tensor

from fvgen_recon.distill.calibration import fit_temperature
from fvgen_recon.distill.checkpoint import (
    CheckpointState,
    list_checkpoints,
    load_optimizer,
    load_tensors,
    optimizer_tensors,
    read_state,
    read_tensors,
    save_checkpoint,
)
from fvgen_recon.distill.config import (
    DiffusionSettings,
    DmdSettings,
    GanSettings,
    OdeSettings,
    PhaseSettings,
    StageSettings,
    TrainSettings,
    stage_guidance,
    stage_rollout,
)
from fvgen_recon.distill.data import ClipSource, TrainingBatch
from fvgen_recon.distill.ensemble import Ensemble, Networks
from fvgen_recon.distill.optimizer import LeanAdamW
from fvgen_recon.distill.parallel import (
    Processes,
    clip_gradients,
    gather,
    gradient_sync,
    local,
    local_weight,
)
from fvgen_recon.distill.randomness import StepRng, step_rng
from fvgen_recon.distill.role import Roles, TrainedRole, Turn
from fvgen_recon.distill.stages import (
    StepResult,
    diffusion_step,
    disc_logits,
    dmd_step,
    gan_init_step,
    ode_step,
    regression_step,
)
from fvgen_recon.distill.timeline import (
    Place,
    learning_rate,
    locate,
    num_ticks,
    role_optimizer,
    stage_roles,
    turn_roles,
)
from fvgen_recon.distill.tracker import Progress, Tracker
from fvgen_recon.distill.validation import ValidationClips, validate
from fvgen_recon.distill.watch import Guard, Window
from fvgen_recon.errors import InputError

_FREE_TO_CHANGE = (
    "accumulation",
    "activation_checkpointing",
    "batch_size",
    "checkpoint_every",
    "compile_blocks",
    "divergence_factor",
    "fused_calls",
    "half_weights",
    "keep_last",
    "log_every",
    "parallel",
    "record_calls",
    "validate_every",
)
"""Settings that may differ on resume; the number of clips an update may not."""


def run_stage(
    stage: StageSettings, roles: Roles, batch: TrainingBatch, rng: StepRng, turn: Turn
) -> StepResult:
    """Call the step that belongs to the settings."""
    if isinstance(stage, GanSettings):
        return gan_init_step(roles, batch, rng, stage, turn)
    if isinstance(stage, DmdSettings):
        return dmd_step(roles, batch, rng, stage, turn)
    assert turn == "student", "only these two stages have judges"
    if isinstance(stage, OdeSettings):
        return ode_step(roles, batch, rng, stage)
    if isinstance(stage, DiffusionSettings):
        return diffusion_step(roles, batch, rng, stage)
    return regression_step(roles, batch, rng, stage)


class Trainer:
    """Runs the phases of some settings on some networks.

    Args:
        settings: What to do.
        networks: What to do it with; they are changed in place.
        source: Where clips come from.
        folder: Checkpoints go to `folder/checkpoints`.
        processes: Who takes part.
        trackers: Where curves and panels go; only the main process calls them.
        validation: Clips to look at, or none.
    """

    def __init__(
        self,
        settings: TrainSettings,
        networks: Networks,
        source: ClipSource,
        folder: Path,
        *,
        processes: Processes,
        trackers: Sequence[Tracker] = (),
        validation: ValidationClips | None = None,
    ) -> None:
        self.settings = settings
        self.ensemble = Ensemble(networks, settings, processes)
        self.tick = 0
        self._source, self._validation = source, validation
        self._folder = folder / "checkpoints"
        self._processes, self._trackers = processes, tuple(trackers)
        self._optimizers: dict[TrainedRole, torch.optim.Optimizer] = {}
        self._window = Window()
        self._guard = Guard(settings.divergence_factor, {})
        self._clock: tuple[float, int] = (0.0, 0)
        self._last_log: tuple[float, int] = (0.0, 0)

    def run(self, *, stop_after: int | None = None) -> None:
        """Train from where the run stands to its end, or for some more updates.

        Raises:
            TrainingError: Numbers stopped being finite or exploded.
        """
        phases = self.settings.phases
        end = num_ticks(phases)
        if stop_after is not None:
            end = min(end, self.tick + stop_after)
        now = time.monotonic()
        self._clock = (now, self.tick)
        if self.tick < end:
            self._last_log = (now, self._steps_done(locate(phases, self.tick)) - 1)
        while self.tick < end:
            place = locate(phases, self.tick)
            if place.opens_phase or not self._optimizers:
                self._open_phase(phases[place.phase])
            self._update(phases[place.phase], place)
            self.tick += 1
            if place.turn == "student":
                self._after_step(phases[place.phase], place, last=self.tick == end)
            elif self.tick == end:
                scalars = self._window.read(self._processes)
                self._guard.check(phases[place.phase].name, self._steps_done(place) - 1, scalars)
                self.save()

    @property
    def is_done(self) -> bool:
        """Whether all phases are at their end."""
        return self.tick >= num_ticks(self.settings.phases)

    def resume(self) -> bool:
        """Go on from the newest checkpoint; false where there is none.

        Raises:
            InputError: The checkpoint was made with other settings.
            WeightsError: It is damaged or belongs to other networks.
        """
        checkpoints = list_checkpoints(self._folder)
        if not checkpoints:
            return False
        newest = checkpoints[-1]
        state = read_state(newest)
        self._compare_settings(state)
        for stem, targets in self.ensemble.tensors().items():
            load_tensors(targets, read_tensors(newest, stem), f"{newest}/{stem}.safetensors")
        for role in self.ensemble.plain:
            self.ensemble.refresh(role)
        self.tick = state.tick
        self._guard = Guard(self.settings.divergence_factor, state.gradient_norms)
        phases = self.settings.phases
        if self.tick < num_ticks(phases):
            place = locate(phases, self.tick)
            self._open_phase(phases[place.phase])
            if not place.opens_phase:
                for role, optimizer in self._optimizers.items():
                    tensors = read_tensors(newest, f"optimizer-{role}")
                    names, weights = self.ensemble.names[role], self.ensemble.weights(role)
                    load_optimizer(optimizer, names, tensors, weights)
        return True

    def save(self) -> Path:
        """Write a checkpoint of this moment."""
        files = self.ensemble.tensors()
        for role, optimizer in self._optimizers.items():
            names, weights = self.ensemble.names[role], self.ensemble.weights(role)
            files[f"optimizer-{role}"] = optimizer_tensors(optimizer, names, weights)
        state = CheckpointState(
            tick=self.tick, settings=self._settings_json(), gradient_norms=self._guard.history
        )
        return save_checkpoint(
            self._folder, files, state, self._processes, keep_last=self.settings.keep_last
        )

    def _open_phase(self, phase: PhaseSettings) -> None:
        """Start each phase with fresh optimizers, and recordings of what it calls."""
        self.ensemble.forget_recordings()
        fused = self._processes.device.type == "cuda"
        self._optimizers = {}
        for role in stage_roles(phase.stage):
            how = role_optimizer(phase, role)
            self._optimizers[role] = LeanAdamW(
                [local_weight(weight) for weight in self.ensemble.weights(role)],
                lr=how.learning_rate,
                betas=how.betas,
                weight_decay=how.weight_decay,
                fused=fused,
            )

    def _update(self, phase: PhaseSettings, place: Place) -> None:
        """One update of one side: all its forwards and backwards, then its optimizers."""
        active = turn_roles(phase.stage, place.turn)
        self.ensemble.activate(active)
        roles = self.ensemble.roles(place.turn)
        wrapped = [self.ensemble.wrapped[role] for role in active]
        num_parts = self.settings.accumulation
        for part in range(num_parts):
            batch, rng = self._draw(self.tick, part, self.settings.seed)
            with gradient_sync(wrapped, enabled=part == num_parts - 1):
                with self._precision():
                    losses, report = run_stage(phase.stage, roles, batch, rng, place.turn)
                self._backward(losses.total() / num_parts)
                self.ensemble.collect(active, last=part == num_parts - 1)
            named = {f"loss/{role}": loss for role, loss in losses.named().items()}
            self._window.add({**named, **report.scalars}, report.accuracy)
        for role in active:
            self._step_optimizer(role, phase, place)

    def _step_optimizer(self, role: TrainedRole, phase: PhaseSettings, place: Place) -> None:
        how, optimizer = role_optimizer(phase, role), self._optimizers[role]
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(how, place.step, phase.num_steps)
        weights = self.ensemble.weights(role)
        norm = clip_gradients(weights, how.clip_norm)
        for weight, stored in zip(weights, optimizer.param_groups[0]["params"], strict=True):
            stored.grad = None if weight.grad is None else local(weight.grad)
        optimizer.step()
        for weight in (*weights, *optimizer.param_groups[0]["params"]):
            weight.grad = None
        self.ensemble.refresh(role)
        self._window.add({f"gradient_norm/{role}": norm})

    def _backward(self, loss: Tensor) -> None:
        loss.backward()

    def _draw(self, tick: int, part: int, seed: int) -> tuple[TrainingBatch, StepRng]:
        """Clips and noise of one forward; both depend on sample numbers, not on the process."""
        size, who = self.settings.batch_size, self._processes
        row = (tick * self.settings.accumulation + part) * who.count + who.rank
        numbers = range(row * size, (row + 1) * size)
        rng = step_rng(seed, tick, numbers, who.device)
        return self._source.batch(numbers), rng

    def _precision(self) -> torch.autocast | nullcontext[None]:
        """Return the arithmetic of the networks.

        Without the cache: casts made under no_grad (backward simulation) would be used again in the
        trained step, which then would have no gradient.
        """
        if self.settings.precision == "fp32":
            return nullcontext()
        device = self._processes.device.type
        return torch.autocast(device, torch.bfloat16, cache_enabled=False)

    def _after_step(self, phase: PhaseSettings, place: Place, *, last: bool) -> None:
        self.ensemble.average(0.0 if place.step < phase.ema_start else phase.ema_decay)
        done = self._steps_done(place)
        closes = place.step == phase.num_steps - 1
        if closes:
            self._close_phase(phase)
        save_due = last or _due(done, self.settings.checkpoint_every)
        validate_due = self._validation is not None and (
            last or _due(done, self.settings.validate_every)
        )
        if save_due or validate_due or closes or _due(done, self.settings.log_every):
            self._report(phase, place, done, with_validation=validate_due)
        if save_due:
            self.save()

    def _close_phase(self, phase: PhaseSettings) -> None:
        if phase.promote:
            self.ensemble.promote()
        if phase.calibrate > 0:
            self._calibrate(phase)

    @torch.no_grad()
    def _calibrate(self, phase: PhaseSettings) -> None:
        """Fit the discriminator's temperature on clips of this phase with fresh noise."""
        assert isinstance(phase.stage, (GanSettings, DmdSettings))
        roles = self.ensemble.roles("student")
        real, fake = [], []
        for index in range(phase.calibrate * self.settings.accumulation):
            tick, part = divmod(index, self.settings.accumulation)
            batch, rng = self._draw(self.tick + tick, part, self.settings.seed + 1)
            with self._precision():
                logits = disc_logits(roles, batch, rng, phase.stage.rollout, phase.stage.noise)
            real.append(logits[0])
            fake.append(logits[1])
        logits = [gather(torch.cat(part), self._processes) for part in (real, fake)]
        assert roles.plain_disc is not None
        roles.plain_disc.set_temperature(fit_temperature(*logits))

    def _report(
        self, phase: PhaseSettings, place: Place, done: int, *, with_validation: bool
    ) -> None:
        """Read the means, let the guard look at them, and hand them to the trackers."""
        scalars = self._window.read(self._processes)
        self._guard.check(phase.name, done, scalars)
        panel = None
        if with_validation and self._validation is not None:
            rollout, guidance = stage_rollout(phase.stage), stage_guidance(phase.stage)
            roles = self.ensemble.averaged_roles()
            with self._precision():
                outcome = validate(roles, self._validation, rollout, guidance)
            scalars["validation/psnr"] = outcome.psnr
            scalars["validation/psnr_one_step"] = outcome.psnr_one_step
            panel = outcome.panel
        scalars["learning_rate/student"] = learning_rate(phase.student, place.step, phase.num_steps)
        if self._processes.is_main:
            progress = self._progress(phase, done, scalars)
            for tracker in self._trackers:
                tracker.log(progress)
                if panel is not None:
                    tracker.picture(done, "validation", panel)

    def _progress(self, phase: PhaseSettings, done: int, scalars: dict[str, float]) -> Progress:
        now = time.monotonic()
        pace = (now - self._clock[0]) / max(1, self.tick - self._clock[1])
        recent = (now - self._last_log[0]) / max(1, done - self._last_log[1])
        self._last_log = (now, done)
        return Progress(
            phase=phase.name,
            step=done,
            num_steps=sum(p.num_steps for p in self.settings.phases),
            seconds_per_step=recent,
            seconds_left=pace * (num_ticks(self.settings.phases) - self.tick),
            scalars=scalars,
        )

    def _steps_done(self, place: Place) -> int:
        before = self.settings.phases[: place.phase]
        return sum(phase.num_steps for phase in before) + place.step + 1

    def _settings_json(self) -> dict[str, object]:
        content = settings_json(self.settings)
        size = self.settings.batch_size * self.settings.accumulation * self._processes.count
        return content | {"clips_per_update": size}

    def _compare_settings(self, state: CheckpointState) -> None:
        mine, theirs = self._settings_json(), dict(state.settings)
        keys = [k for k in mine if k not in _FREE_TO_CHANGE and mine[k] != theirs.get(k)]
        if keys:
            raise InputError(
                f"The checkpoint was made with other settings ({', '.join(keys)}): resume with "
                "the same ones, or start in a new folder."
            )


def settings_json(settings: TrainSettings) -> dict[str, object]:
    """Return settings as JSON values, each stage with the name of its kind."""
    content = dataclasses.asdict(settings)
    for entry, phase in zip(content["phases"], settings.phases, strict=True):
        entry["stage"]["kind"] = type(phase.stage).__name__
    return json.loads(json.dumps(content))


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0
