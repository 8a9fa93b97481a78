"""Where in training a given update lies. Everything that changes over time is a function of it."""

import math
from dataclasses import dataclass

from fvgen_recon.distill.config import (
    DmdSettings,
    GanSettings,
    OptimizerSettings,
    PhaseSettings,
    StageSettings,
)
from fvgen_recon.distill.role import TrainedRole, Turn


@dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """One update ("tick") of a run."""

    phase: int
    """Index of the phase."""
    step: int
    """Student step within the phase, from 0."""
    turn: Turn
    """Who is updated."""
    opens_phase: bool
    """True for the first update of the phase."""


def turn_roles(stage: StageSettings, turn: Turn) -> tuple[TrainedRole, ...]:
    """Return who is trained in a turn of a stage; nobody where the stage has no judges."""
    if turn == "student":
        return ("student",)
    if isinstance(stage, GanSettings):
        return ("disc",)
    if isinstance(stage, DmdSettings):
        return ("critic", "disc") if stage.train_disc else ("critic",)
    return ()


def stage_roles(stage: StageSettings) -> tuple[TrainedRole, ...]:
    """Return everybody who is trained in a stage."""
    return ("student", *turn_roles(stage, "judges"))


def role_optimizer(phase: PhaseSettings, role: TrainedRole) -> OptimizerSettings:
    """Return how a role is optimised in a phase."""
    return {"student": phase.student, "critic": phase.critic, "disc": phase.disc}[role]


def cycle_length(phase: PhaseSettings) -> int:
    """Return the number of updates that make one student step."""
    return 1 + (phase.judge_turns if turn_roles(phase.stage, "judges") else 0)


def num_ticks(phases: tuple[PhaseSettings, ...]) -> int:
    """Return the number of updates of a run."""
    return sum(phase.num_steps * cycle_length(phase) for phase in phases)


def locate(phases: tuple[PhaseSettings, ...], tick: int) -> Place:
    """Return the place of an update; the student comes last in each step."""
    start = 0
    for index, phase in enumerate(phases):
        length = cycle_length(phase)
        inside = tick - start
        if inside < phase.num_steps * length:
            last = inside % length == length - 1
            turn: Turn = "student" if last else "judges"
            return Place(phase=index, step=inside // length, turn=turn, opens_phase=inside == 0)
        start += phase.num_steps * length
    raise AssertionError("a tick lies within the run")


def learning_rate(optimizer: OptimizerSettings, step: int, num_steps: int) -> float:
    """Return the learning rate at a student step of a phase."""
    rate = optimizer.learning_rate * min(1.0, (step + 1) / max(1, optimizer.warmup_steps))
    if optimizer.decay == "cosine":
        rate *= 0.5 * (1 + math.cos(math.pi * step / num_steps))
    return rate
