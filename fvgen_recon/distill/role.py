"""Who takes part in distillation, and what a step hands back."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call

from fvgen_recon.diffusion.backbone import Condition
from fvgen_recon.diffusion.discriminator import ClipDiscriminator
from fvgen_recon.diffusion.schedule import SamplingSchedule
from fvgen_recon.distill.calibration import BinnedAccuracy
from fvgen_recon.errors import InputError

Turn = Literal["student", "judges"]
"""Who is updated: the student, or those who judge it (critic and discriminator)."""

TrainedRole = Literal["student", "critic", "disc"]

LatentDistance = Callable[[Tensor, Tensor, Condition], Tensor]
"""A perceptual distance of latents to real ones, [B C T h w] twice to a scalar, with gradient; the
condition tells where there is anything to compare."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Roles:
    """The networks of a step; teacher, student and critic are backbones of one shape.

    Those that train may be wrapped for several processes. The teacher never requires gradients.
    """

    schedule: SamplingSchedule
    """What noise levels mean, for all of them."""
    student: nn.Module
    """The few-step generator."""
    teacher: nn.Module | None = None
    """The diffusion model that is distilled; frozen."""
    critic: nn.Module | None = None
    """Denoises the student's samples: its score is the student's."""
    disc: nn.Module | None = None
    """The discriminator, possibly wrapped, for its own training."""
    plain_disc: ClipDiscriminator | None = None
    """The same discriminator without any wrapper, for everything else."""
    perceptual: LatentDistance | None = None
    """A perceptual distance, where a stage uses one."""

    def need_teacher(self) -> nn.Module:
        """Return the teacher.

        Raises:
            InputError: There is none.
        """
        return _needed(self.teacher, "a teacher")

    def need_critic(self) -> nn.Module:
        """Return the critic.

        Raises:
            InputError: There is none.
        """
        return _needed(self.critic, "a critic")

    def need_disc(self) -> nn.Module:
        """Return the discriminator for training.

        Raises:
            InputError: There is none.
        """
        return _needed(self.disc, "a discriminator")

    def frozen_logit(
        self, features: tuple[Tensor, ...], *, calibrated: bool = False
    ) -> Float[Tensor, "B"]:
        """Return the discriminator's logits: gradients reach the features but never its weights.

        Raises:
            InputError: There is no discriminator.
        """
        if self.plain_disc is None:
            raise InputError("This stage needs a discriminator: none was given.")
        weights = {name: p.detach() for name, p in self.plain_disc.named_parameters()}
        return functional_call(self.plain_disc, weights, (features,), {"calibrated": calibrated})


def _needed(module: nn.Module | None, name: str) -> nn.Module:
    if module is None:
        raise InputError(f"This stage needs {name}: none was given.")
    return module


@dataclass(frozen=True, kw_only=True, slots=True)
class RoleLosses:
    """What each role minimises in this step; none where it is not trained."""

    student: Float[Tensor, ""] | None = None
    critic: Float[Tensor, ""] | None = None
    disc: Float[Tensor, ""] | None = None

    def total(self) -> Float[Tensor, ""]:
        """Return the sum; each part only reaches its own role's weights."""
        parts = [loss for loss in (self.student, self.critic, self.disc) if loss is not None]
        assert parts, "a step trains someone"
        return sum(parts[1:], start=parts[0])

    def named(self) -> Mapping[TrainedRole, Tensor]:
        """Return the losses that there are, detached."""
        pairs: dict[TrainedRole, Tensor | None] = {
            "student": self.student,
            "critic": self.critic,
            "disc": self.disc,
        }
        return {name: loss.detach() for name, loss in pairs.items() if loss is not None}


@dataclass(frozen=True, kw_only=True, slots=True)
class StepReport:
    """What to watch. Everything stays on the device until it is logged."""

    scalars: Mapping[str, Tensor] = field(default_factory=dict)
    """Numbers by name."""
    accuracy: BinnedAccuracy | None = None
    """The discriminator's decisions by noise time."""
