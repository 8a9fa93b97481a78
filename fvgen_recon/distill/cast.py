"""The networks of a compact training, who plays which role, and how they are kept."""

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors.torch import load, save
from torch import Tensor

from fvgen_recon.diffusion.backbone import Condition
from fvgen_recon.diffusion.compact.backbone import CompactBackbone
from fvgen_recon.diffusion.compact.checkpoint import (
    CompactCard,
    load_compact,
    save_compact,
    widen,
)
from fvgen_recon.diffusion.compact.codec import CompactCodec
from fvgen_recon.diffusion.compact.config import CompactConfig
from fvgen_recon.diffusion.discriminator import ClipDiscriminator
from fvgen_recon.diffusion.schedule import FlowSchedule
from fvgen_recon.distill.budget import DistilConfig
from fvgen_recon.distill.config import DmdSettings
from fvgen_recon.distill.pretrain import Perceptual
from fvgen_recon.distill.recording import Recordings
from fvgen_recon.distill.role import LatentDistance, Roles
from fvgen_recon.errors import WeightsError
from fvgen_recon.io.file import atomic_path

_DISC = "discriminator.safetensors"
_DISC_WIDTH = 64
_PART_BYTES = 15 * 2**20
_PERCEPTUAL_FRAMES = 32


@dataclass(frozen=True, kw_only=True)
class Cast:
    """All networks of a training; the average is what is kept and measured."""

    model: CompactBackbone
    """What trains."""
    ema: CompactBackbone
    """Its average."""
    teacher: CompactBackbone
    """The diffusion model that is distilled."""
    disc: ClipDiscriminator
    """Heads on the teacher's features; they stay from stage to stage."""
    is_compiled: bool
    """Whether the blocks of what trains, and of whom it learns from, are compiled."""
    is_recorded: bool
    """Whether calls of those replay CUDA graphs."""

    def follow_average(self, *, teach: bool) -> None:
        """Go on from the average after a stage; `teach` makes it the teacher too."""
        state = self.ema.state_dict()
        self.model.load_state_dict(state)
        if teach:
            self.teacher.load_state_dict(state)

    def roles(
        self, config: DistilConfig, codec: CompactCodec, perceptual: Perceptual, *, seed: int
    ) -> Roles:
        """Give everyone a role in a stage; the critic starts anew from the teacher."""
        critic = None
        if isinstance(config.settings, DmdSettings):
            critic = _twin(self.teacher).train().requires_grad_(True)
            _speed_up(critic, is_compiled=self.is_compiled, is_recorded=self.is_recorded)
        return Roles(
            schedule=FlowSchedule(num_timesteps=self.model.config.num_timesteps),
            student=self.model,
            teacher=self.teacher,
            critic=critic,
            disc=self.disc,
            plain_disc=self.disc,
            perceptual=_latent_distance(codec, perceptual, self.device, seed),
        )

    @property
    def device(self) -> torch.device:
        """Where the networks are."""
        return next(self.model.parameters()).device

    def save(self, folder: Path, *, role: str, num_steps: int, sampler: str) -> CompactCard:
        """Keep the average and the discriminator."""
        folder.mkdir(parents=True, exist_ok=True)
        state = {k: v.detach().cpu().contiguous() for k, v in self.disc.state_dict().items()}
        with atomic_path(folder / _DISC) as partial:
            partial.write_bytes(save(state))
        return save_compact(
            folder,
            self.ema,
            role=role,
            num_steps=num_steps,
            sampler=sampler,
            part_bytes=_PART_BYTES,
        )


def make_cast(
    config: CompactConfig,
    *,
    init: Path | None,
    teacher: Path | None,
    device: torch.device,
    seed: int,
    is_grown: bool = False,
    is_compiled: bool = False,
    is_recorded: bool = False,
) -> Cast:
    """Build the networks anew or from what an earlier run kept.

    Args:
        config: Shape of new networks; kept ones bring their own.
        init: Folder of the weights to go on from, with its discriminator if it has one.
        teacher: Folder of the teacher's; that of `init` by default.
        device: Where to put them.
        seed: Seed of new weights.
        is_grown: Give kept networks the gate, the alternatives and the hints of `config` that they
            lack, and its way to mix renders, for stages that train them.
        is_compiled: Compile the blocks.
        is_recorded: Replay CUDA graphs; for a GPU only.

    Raises:
        WeightsError: A folder is incomplete or damaged, or the two differ in shape.
    """
    torch.manual_seed(seed)
    wanted = config if is_grown else None
    model = CompactBackbone(config) if init is None else _load(init, wanted)
    expert = _twin(model) if teacher is None else _load(teacher, wanted)
    if not _can_teach(expert.config, model.config):
        raise WeightsError(
            f"Student and teacher must have one shape: {init} has {model.config} and {teacher} "
            f"{expert.config}."
        )
    channels = tuple(reversed(model.config.widths))
    disc = ClipDiscriminator(channels, layers=(0, 1, 2), width=_DISC_WIDTH)
    if init is not None and (init / _DISC).is_file():
        disc.load_state_dict(_read_disc(init / _DISC, disc))
    average = _twin(model)
    for backbone in (model, expert):
        _speed_up(backbone, is_compiled=is_compiled, is_recorded=is_recorded)
    return Cast(
        is_compiled=is_compiled,
        is_recorded=is_recorded,
        model=model.to(device).train().requires_grad_(True),
        ema=average.to(device).eval().requires_grad_(False),
        teacher=expert.to(device).eval().requires_grad_(False),
        disc=disc.to(device),
    )


def _can_teach(teacher: CompactConfig, student: CompactConfig) -> bool:
    """Whether both have one shape; a teacher may know no hints, or no alternatives either.

    It reads the rest of the condition then. How it blends is its own affair.
    """
    plain = replace(student, hints=False)
    blind = replace(plain, num_alternatives=0)
    return teacher.blended_as(student) in (student, plain, blind)


def _speed_up(backbone: CompactBackbone, *, is_compiled: bool, is_recorded: bool) -> None:
    if is_compiled:
        backbone.compile_parts()
    if is_recorded:
        # Memory of its own: several of them wait for their backward at the same time.
        Recordings().record(backbone, through=True)


def _load(folder: Path, wanted: CompactConfig | None) -> CompactBackbone:
    backbone = load_compact(folder)[0].backbone
    assert isinstance(backbone, CompactBackbone)
    if wanted is None:
        return backbone
    return widen(
        backbone,
        gate=wanted.gate,
        num_alternatives=wanted.num_alternatives,
        hints=wanted.hints,
        blend=wanted,
    )


def _twin(backbone: CompactBackbone) -> CompactBackbone:
    copy = CompactBackbone(backbone.config).to(next(backbone.parameters()).device)
    copy.load_state_dict(backbone.state_dict())
    return copy


def _read_disc(path: Path, disc: ClipDiscriminator) -> dict[str, Tensor]:
    state = load(path.read_bytes())
    wanted = {k: tuple(v.shape) for k, v in disc.state_dict().items()}
    if wanted != {k: tuple(v.shape) for k, v in state.items()}:
        raise WeightsError(f"The discriminator in {path} does not fit these networks.")
    return state


def _latent_distance(
    codec: CompactCodec, perceptual: Perceptual, device: torch.device, seed: int
) -> LatentDistance:
    """Perceptual distance of some random frames of a batch of latents, where a render hit anything.

    Detail where nothing was seen cannot be right; asked for it, a network paints a pattern.
    """
    rng = torch.Generator(device).manual_seed(seed)

    def distance(fake: Tensor, real: Tensor, condition: Condition) -> Tensor:
        count = fake.shape[0] * fake.shape[2]
        size = (min(_PERCEPTUAL_FRAMES, count),)
        frames = torch.randint(count, size, generator=rng, device=device)
        shown, wanted = (codec.decode(z).flatten(0, 1)[frames] for z in (fake, real))
        unseen = codec.unseen(condition).flatten(0, 1)[frames]
        return perceptual(torch.where(unseen, wanted, shown), wanted).mean()

    return distance
