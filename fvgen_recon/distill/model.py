"""Where the networks of a run come from, and where the student goes in the end."""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from fvgen_recon.diffusion.backbone import VideoModel
from fvgen_recon.diffusion.compact.backbone import CompactBackbone
from fvgen_recon.diffusion.compact.checkpoint import load_compact, save_compact
from fvgen_recon.diffusion.compact.codec import CompactCodec
from fvgen_recon.diffusion.compact.config import CompactConfig
from fvgen_recon.diffusion.discriminator import ClipDiscriminator
from fvgen_recon.diffusion.schedule import FlowSchedule, SamplingSchedule
from fvgen_recon.distill.config import LoraSettings
from fvgen_recon.distill.data import TrainingBatch
from fvgen_recon.distill.ensemble import Networks
from fvgen_recon.distill.lora import add_lora, merge_lora
from fvgen_recon.distill.role import LatentDistance
from fvgen_recon.distill.rollout import RolloutSettings
from fvgen_recon.errors import InputError


@dataclass(frozen=True, kw_only=True, slots=True)
class BackboneDoor:
    """How models of one kind are opened, and how a student of that kind is written."""

    load: Callable[[Path, torch.device], VideoModel]
    """Read the teacher from a folder; its networks, the codec's too, go to the device."""
    export: Callable[[Path, Path | None, nn.Module, RolloutSettings], None]
    """Write a folder that generators load: where to, the teacher's folder, the student, its
    sampler."""
    is_raw: bool = False
    """Whether its teachers were trained on bare renders of points (`GuidanceConfig.is_raw`)."""


def random_compact(config: CompactConfig, seed: int = 0) -> VideoModel:
    """Return an untrained compact model."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        backbone = CompactBackbone(config)
    return VideoModel(
        codec=CompactCodec(config=config),
        backbone=backbone,
        schedule=FlowSchedule(num_timesteps=config.num_timesteps),
        name="compact-untrained",
        weights_hash="",
    )


def _load_compact(folder: Path, device: torch.device) -> VideoModel:
    model, _ = load_compact(folder)
    model.backbone.to(device)
    return model


def _export_compact(
    folder: Path, teacher: Path | None, student: nn.Module, rollout: RolloutSettings
) -> None:
    assert isinstance(student, CompactBackbone)
    save_compact(folder, student, role="student", num_steps=rollout.num_steps, sampler=rollout.kind)


def _load_viewcrafter(folder: Path, device: torch.device) -> VideoModel:
    from fvgen_recon.diffusion.viewcrafter.backbone import ViewCrafterBackbone
    from fvgen_recon.diffusion.viewcrafter.pipeline import ViewCrafterPipeline

    pipeline = ViewCrafterPipeline.from_pretrained(folder).to(device)
    return VideoModel(
        codec=pipeline.codec,
        backbone=ViewCrafterBackbone(pipeline.unet),
        schedule=pipeline.schedule,
        name="viewcrafter",
        weights_hash="",
    )


def _export_viewcrafter(
    folder: Path, teacher: Path | None, student: nn.Module, rollout: RolloutSettings
) -> None:
    from fvgen_recon.diffusion.viewcrafter.backbone import ViewCrafterBackbone
    from fvgen_recon.diffusion.viewcrafter.pipeline import ViewCrafterPipeline
    from fvgen_recon.diffusion.viewcrafter.student import FVGenPipeline

    if teacher is None:
        raise InputError("Writing this student needs the teacher's folder, for its other networks.")
    assert isinstance(student, ViewCrafterBackbone)
    source = ViewCrafterPipeline.from_pretrained(teacher)
    pipeline = FVGenPipeline(
        unet=student.unet,
        vae=source.vae,
        text_encoder=source.text_encoder,
        image_encoder=source.image_encoder,
        image_projector=source.image_projector,
        base_scale=source.config["base_scale"],
        num_frames=source.config["num_frames"],
        num_steps=rollout.num_steps,
        sampler=rollout.kind,
    )
    pipeline.save_pretrained(folder)


def _load_wan(folder: Path, device: torch.device) -> VideoModel:
    from fvgen_recon.diffusion.wan import load_wan

    return load_wan(folder, device)


def _export_wan(
    folder: Path, teacher: Path | None, student: nn.Module, rollout: RolloutSettings
) -> None:
    from fvgen_recon.diffusion.wan import WanBackbone, save_wan

    if teacher is None:
        raise InputError("Writing this student needs the teacher's folder, for its other networks.")
    assert isinstance(student, WanBackbone)
    save_wan(folder, teacher, student, num_steps=rollout.num_steps, sampler=rollout.kind)


BACKBONES: dict[str, BackboneDoor] = {
    "compact": BackboneDoor(load=_load_compact, export=_export_compact),
    "viewcrafter": BackboneDoor(load=_load_viewcrafter, export=_export_viewcrafter, is_raw=True),
    "wan": BackboneDoor(load=_load_wan, export=_export_wan),
}


@torch.no_grad()
def feature_channels(backbone: nn.Module, probe: TrainingBatch) -> list[int]:
    """Return the channels of a backbone's mid features, by one forward of one clip."""
    one = probe[:1]
    t = torch.zeros(1, dtype=torch.long, device=one.x0.device)
    _, features = backbone(one.x0, t, one.condition, return_mid=True)
    return [feature.shape[1] for feature in features]


def start_networks(
    model: VideoModel,
    probe: TrainingBatch,
    *,
    disc_layers: Sequence[int] = (0,),
    disc_width: int = 256,
    lora: LoraSettings | None = None,
    frozen_dtype: torch.dtype = torch.float32,
    perceptual: LatentDistance | None = None,
) -> Networks:
    """Let student and critic start as copies of the teacher, with a fresh discriminator.

    Args:
        model: The teacher.
        probe: A batch of at least one clip on the model's device, to learn the features' shapes.
        disc_layers: Which mid features the discriminator sees; 0 is the bottleneck.
        disc_width: Channels inside the discriminator's heads.
        lora: Train adapters of frozen copies instead of whole copies.
        frozen_dtype: Precision of weights that do not train.
        perceptual: A perceptual distance for stages that use one.

    Raises:
        InputError: The backbone has no such feature.
    """
    channels = feature_channels(model.backbone, probe)
    wrong = [layer for layer in disc_layers if not 0 <= layer < len(channels)]
    if wrong:
        raise InputError(
            f"The discriminator was to look at feature {wrong[0]}: this backbone has "
            f"{len(channels)}, counted from 0."
        )
    copies = [copy.deepcopy(model.backbone).float().requires_grad_(True) for _ in range(2)]
    # New weights are the same in every process and every run.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        disc = ClipDiscriminator(
            [channels[layer] for layer in disc_layers], layers=disc_layers, width=disc_width
        )
        if lora is not None:
            copies = [add_lora(module.to(frozen_dtype), lora) for module in copies]
    assert isinstance(model.schedule, SamplingSchedule)
    return Networks(
        schedule=model.schedule,
        teacher=model.backbone.to(frozen_dtype).requires_grad_(False),
        student=copies[0],
        critic=copies[1],
        disc=disc,
        perceptual=perceptual,
    )


def finished_student(
    backbone: nn.Module, weights: Mapping[str, Tensor], lora: LoraSettings | None
) -> nn.Module:
    """Put trained weights into a fresh backbone, in place; adapters become part of its weights."""
    if lora is not None:
        add_lora(backbone, lora)
    backbone.load_state_dict(dict(weights))
    return backbone if lora is None else merge_lora(backbone)
