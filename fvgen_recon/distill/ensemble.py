"""The networks of a run: on their device, wrapped for several processes, with a moving average."""

import copy
from collections.abc import Iterable
from dataclasses import dataclass
from typing import get_args

import torch
import torch.distributed as dist
from torch import Tensor, nn

from fvgen_recon.diffusion.discriminator import ClipDiscriminator
from fvgen_recon.diffusion.schedule import SamplingSchedule
from fvgen_recon.distill.checkpoint import trained_tensors
from fvgen_recon.distill.config import TrainSettings
from fvgen_recon.distill.master import MasterWeights
from fvgen_recon.distill.parallel import (
    Processes,
    checkpoint_activations,
    compile_parts,
    local,
    release,
    replicate,
    shard,
    spread_like,
    whole,
)
from fvgen_recon.distill.recording import Recordings
from fvgen_recon.distill.role import LatentDistance, Roles, TrainedRole, Turn
from fvgen_recon.distill.timeline import stage_roles
from fvgen_recon.errors import InputError


@dataclass(frozen=True, kw_only=True, slots=True)
class Networks:
    """What a run starts from. Weights that require gradients are trained, all others stay.

    Student and critic usually start as copies of the teacher. For adapters on a frozen network see
    `distill.lora`.
    """

    schedule: SamplingSchedule
    student: nn.Module
    teacher: nn.Module | None = None
    critic: nn.Module | None = None
    disc: ClipDiscriminator | None = None
    perceptual: LatentDistance | None = None


class Ensemble:
    """The networks during a run.

    Raises:
        InputError: A phase needs a network that was not given, or adapters are to be sharded.
    """

    def __init__(self, networks: Networks, settings: TrainSettings, processes: Processes) -> None:
        _check(networks, settings)
        self.schedule, self.perceptual = networks.schedule, networks.perceptual
        # One process that a launcher started shards too: the same arithmetic for any number.
        self._sharded = settings.parallel == "fsdp" and dist.is_initialized()
        self._promotes = any(phase.promote for phase in settings.phases)
        given: dict[TrainedRole, nn.Module | None] = {
            "student": networks.student,
            "critic": networks.critic,
            "disc": networks.disc,
        }
        device = processes.device
        self.plain: dict[TrainedRole, nn.Module] = {
            name: module.to(device) for name, module in given.items() if module is not None
        }
        self.names: dict[TrainedRole, list[str]] = {
            name: [n for n, p in module.named_parameters() if p.requires_grad]
            for name, module in self.plain.items()
        }
        self.ema = copy.deepcopy(self.plain["student"]).requires_grad_(False)
        self.teacher = networks.teacher
        if self.teacher is not None:
            self.teacher = self.teacher.to(device).requires_grad_(False)
        self._masters: dict[TrainedRole, MasterWeights] = {}
        self._recordings: Recordings | None = None
        self.wrapped = self._spread(settings, processes)

    def _spread(
        self, settings: TrainSettings, processes: Processes
    ) -> dict[TrainedRole, nn.Module]:
        backbones = [m for n, m in self.plain.items() if n != "disc"]
        everything = [*backbones, self.ema, *([self.teacher] if self.teacher is not None else [])]
        for module in everything:
            if settings.compile_blocks:
                compile_parts(module)
            if settings.activation_checkpointing:
                # The teacher too: gradients of the adversarial loss pass through it.
                checkpoint_activations(module)
        if settings.half_weights:
            self._halve(settings, processes)
        if not self._sharded:
            return {
                name: module if name in self._masters else replicate(module, processes)
                for name, module in self.plain.items()
            }
        if any(not p.requires_grad for m in backbones for p in m.parameters()):
            raise InputError("Adapters (LoRA) cannot be sharded: use parallel 'ddp' with them.")
        # The teacher is whole in each process: frozen, it has no gradients and no optimizer.
        for module in (*backbones, self.ema):
            shard(module, processes, settings.precision)
        wrapped = dict(self.plain)
        if "disc" in wrapped:
            wrapped["disc"] = replicate(self.plain["disc"], processes)
        return wrapped

    def _halve(self, settings: TrainSettings, processes: Processes) -> None:
        for name, module in self.plain.items():
            if name != "disc":
                self._masters[name] = MasterWeights(module, self.names[name], processes)
        if settings.record_calls and processes.device.type == "cuda":
            self._recordings = Recordings()
            for module in (self.plain["student"], self.plain.get("critic"), self.teacher):
                if module is not None:
                    self._recordings.record(module, fused=settings.fused_calls)

    def forget_recordings(self) -> None:
        """Give back the memory of recorded calls; those that are still made are recorded anew."""
        if self._recordings is not None:
            self._recordings.forget()

    def roles(self, turn: Turn) -> Roles:
        """Return the roles for a turn: those that train are wrapped, the others are not."""
        students = self.wrapped if turn == "student" else self.plain
        judges = self.plain if turn == "student" else self.wrapped
        disc = self.plain.get("disc")
        assert disc is None or isinstance(disc, ClipDiscriminator)
        return Roles(
            schedule=self.schedule,
            student=students["student"],
            teacher=self.teacher,
            critic=judges.get("critic"),
            disc=judges.get("disc"),
            plain_disc=disc,
            perceptual=self.perceptual,
        )

    def averaged_roles(self) -> Roles:
        """Return roles with the averaged student, for validation."""
        return Roles(
            schedule=self.schedule,
            student=self.ema,
            teacher=self.teacher,
            critic=self.plain.get("critic"),
        )

    def activate(self, active: Iterable[TrainedRole]) -> None:
        """Let only the weights of the active roles collect gradients, and forget old ones.

        Sharded weights cannot be switched (FSDP2 decides once); what the others collect there is
        forgotten at the next turn.
        """
        chosen = set(active)
        for module in self.plain.values():
            module.zero_grad(set_to_none=True)
        if self._sharded:
            return
        for role in self.plain:
            for weight in self._used(role):
                weight.requires_grad_(role in chosen)

    def collect(self, active: Iterable[TrainedRole], *, last: bool) -> None:
        """Take over the gradients of a backward where they are not yet where they are stored."""
        for role in active:
            if role in self._masters:
                self._masters[role].collect(last=last)

    def refresh(self, role: TrainedRole) -> None:
        """Let a role compute with its weights as they are stored now."""
        if role in self._masters:
            self._masters[role].refresh()

    def weights(self, role: TrainedRole) -> list[nn.Parameter]:
        """Return the weights of a role that train, as they are stored."""
        if role in self._masters:
            return self._masters[role].stored
        release(self.plain[role])
        return self._used(role)

    def _used(self, role: TrainedRole) -> list[nn.Parameter]:
        """Return the weights of a role that train, as its network holds them."""
        parameters = dict(self.plain[role].named_parameters())
        return [parameters[name] for name in self.names[role]]

    @torch.no_grad()
    def average(self, decay: float) -> None:
        """Move the averaged student towards the current one."""
        source = [local(p) for p in self.weights("student")]
        release(self.ema)
        averaged = dict(self.ema.named_parameters())
        target = [local(averaged[name]) for name in self.names["student"]]
        torch._foreach_lerp_(target, source, 1 - decay)

    @torch.no_grad()
    def promote(self) -> None:
        """Make the averaged student the teacher, the student and the critic."""
        self._release()
        averaged = dict(self.ema.named_parameters())
        for role in ("student", "critic"):
            if role in self.plain:
                for name, weight in zip(self.names[role], self.weights(role), strict=True):
                    weight.copy_(spread_like(whole(averaged[name]), weight))
                self.refresh(role)
        if self.teacher is not None:
            for name, weight in self.teacher.named_parameters():
                weight.copy_(whole(averaged[name]))

    def average_weights(self) -> dict[str, Tensor]:
        """Gather the averaged student on the CPU; every process must ask."""
        release(self.ema)
        return {name: whole(value).cpu() for name, value in self.ema.state_dict().items()}

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        """Return what a checkpoint must hold, by file: what trains or changes."""
        self._release()
        files: dict[str, dict[str, Tensor]] = {}
        for role, module in self.plain.items():
            named = zip(self.names[role], self.weights(role), strict=True)
            files[role] = dict(named) | dict(module.named_buffers())
        files["ema"] = trained_tensors(self.ema, self.names["student"])
        if self._promotes and self.teacher is not None:
            names = [n for n, _ in self.teacher.named_parameters()]
            files["teacher"] = trained_tensors(self.teacher, names)
        return files

    def _release(self) -> None:
        for module in (*self.plain.values(), self.ema):
            release(module)


def _check(networks: Networks, settings: TrainSettings) -> None:
    given = {"student": networks.student, "critic": networks.critic, "disc": networks.disc}
    for phase in settings.phases:
        for role in stage_roles(phase.stage):
            if given[role] is None:
                raise InputError(f"Phase {phase.name} trains a {role}: none was given.")
    assert set(given) == set(get_args(TrainedRole))
