"""What a person looks at while training: fixed clips, side by side, and a few numbers."""

import math
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from jaxtyping import Float
from safetensors.torch import load_file, save_file
from torch import Tensor

from fvgen_recon.diffusion.backbone import Codec
from fvgen_recon.diffusion.sampler import GuidanceScale
from fvgen_recon.distill.data import TrainingBatch, open_packed, write_packed
from fvgen_recon.distill.randomness import step_rng
from fvgen_recon.distill.role import Roles
from fvgen_recon.distill.rollout import RolloutSettings, guided_x0, predict_x0, sample_student
from fvgen_recon.errors import InputError
from fvgen_recon.io.file import atomic_path

_SEED = 20_250
_PANEL_TIME = 0.5
_FRAMES = "frames.safetensors"


@dataclass(frozen=True, kw_only=True, slots=True)
class ValidationClips:
    """Clips that are never trained on, the same at each validation."""

    clips: TrainingBatch
    """Latents and conditions."""
    renders: Float[Tensor, "B T 3 H W"]
    """What the clips were conditioned on, to look at."""
    truth: Float[Tensor, "B T 3 H W"]
    """The photos."""
    codec: Codec
    """Turns latents into frames."""

    def to(self, device: torch.device) -> "ValidationClips":
        """Move the tensors to a device."""
        return replace(
            self,
            clips=self.clips.to(device),
            renders=self.renders.to(device),
            truth=self.truth.to(device),
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class ValidationReport:
    """The outcome of a validation."""

    psnr: float
    """Of the few-step student, in dB, mean over clips."""
    psnr_one_step: float
    """Of the student's answer to pure noise alone; far above `psnr`, the steps only add grain."""
    panel: Float[Tensor, "3 H W"]
    """Rows of clips; columns render, teacher, critic's x0, student, truth."""


def write_validation(folder: Path, clips: ValidationClips) -> None:
    """Write validation clips as packed clips with `frames.safetensors` beside them."""
    write_packed(folder, [clips.clips])
    frames = {"renders": clips.renders, "truth": clips.truth}
    pixels = {k: (v * 255).round().byte().cpu().contiguous() for k, v in frames.items()}
    with atomic_path(folder / _FRAMES) as path:
        save_file(pixels, path)


def read_validation(folder: Path, codec: Codec, device: torch.device) -> ValidationClips:
    """Read what `write_validation` wrote.

    Raises:
        InputError: Something is missing.
    """
    if not (folder / _FRAMES).is_file():
        raise InputError(f"{folder} has no {_FRAMES}: write validation clips with their frames.")
    frames = load_file(folder / _FRAMES)
    return ValidationClips(
        clips=open_packed(folder, seed=0, device=device).load(),
        renders=frames["renders"].float() / 255,
        truth=frames["truth"].float() / 255,
        codec=codec,
    ).to(device)


@torch.no_grad()
def validate(
    roles: Roles,
    validation: ValidationClips,
    rollout: RolloutSettings,
    guidance: GuidanceScale,
) -> ValidationReport:
    """Sample the student on the fixed clips, always with the same noise.

    Teacher and critic each show their x0 from the same half-noised sample of the student: where
    they differ the student is still being moved; a critic that shows something else than the
    student is not following. A missing network leaves its column grey.
    """
    shown = [
        _show(roles, validation, rollout, guidance, index) for index in range(len(validation.clips))
    ]
    teacher, critic, frames, one_step = (torch.cat(part) for part in zip(*shown, strict=True))
    columns = (validation.renders, teacher, critic, frames, validation.truth)
    return ValidationReport(
        psnr=mean_psnr(frames, validation.truth),
        psnr_one_step=mean_psnr(one_step, validation.truth),
        panel=panel([c.float() for c in columns]),
    )


def _show(
    roles: Roles,
    validation: ValidationClips,
    rollout: RolloutSettings,
    guidance: GuidanceScale,
    index: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return frames of teacher, critic, student and its first step for one clip.

    One at a time, as in training: several at once may not fit beside full-size networks.
    """
    numbers = range(index, index + 1)
    clip, decode = validation.clips[index : index + 1], validation.codec.decode
    rng = step_rng(_SEED, 0, numbers, clip.x0.device)
    simulated = replace(rollout, inputs="simulated")
    fake = sample_student(roles, clip, rng, simulated)
    rng = step_rng(_SEED, 0, numbers, clip.x0.device)
    one_step = sample_student(roles, clip, rng, replace(simulated, num_steps=1))
    time = round(_PANEL_TIME * (roles.schedule.num_timesteps - 1))
    t = torch.full((1,), time, device=fake.device)
    x_t = roles.schedule.add_noise(fake, rng.normal(fake), t)
    frames = decode(fake)
    teacher = critic = torch.full_like(frames, 0.5)
    if roles.teacher is not None:
        x0, _ = guided_x0(roles, x_t, t, clip.condition, guidance)
        teacher = decode(x0)
    if roles.critic is not None:
        critic = decode(predict_x0(roles.critic, roles.schedule, x_t, t, clip.condition))
    return teacher, critic, frames, decode(one_step)


def mean_psnr(frames: Float[Tensor, "B T 3 H W"], truth: Float[Tensor, "B T 3 H W"]) -> float:
    """Return the PSNR in dB of each clip, averaged over clips; 99 where they are equal."""
    error = (frames.float() - truth.float()).square().mean(dim=(1, 2, 3, 4)).clamp_min(10**-9.9)
    return float((-10 * error.log10()).mean())


def panel(columns: list[Float[Tensor, "B T 3 H W"]], max_rows: int = 4) -> Float[Tensor, "3 Y X"]:
    """Lay out the middle frame of each clip: clips downwards, columns to the right."""
    middle = columns[0].shape[1] // 2
    rows = [
        torch.cat([column[i, middle] for column in columns], dim=-1)
        for i in range(min(max_rows, columns[0].shape[0]))
    ]
    picture = torch.cat(rows, dim=-2).clamp(0, 1).cpu()
    assert math.prod(picture.shape) > 0
    return picture
