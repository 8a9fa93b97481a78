"""How good a compact model is on clips whose photos are known, while it trains and after."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import torch
from jaxtyping import Float
from torch import Tensor

from fvgen_recon.diffusion.backbone import VideoModel
from fvgen_recon.diffusion.compact.codec import CompactCodec, Sources, merge_sources
from fvgen_recon.diffusion.compact.fill import push_pull
from fvgen_recon.diffusion.sampler import FewStepKind, denoiser, sample_few_steps, seeded_noise
from fvgen_recon.diffusion.schedule import SamplingSchedule
from fvgen_recon.evaluation.metric import psnr, sharpness, ssim

Judge = Callable[[Tensor, Tensor], Tensor]
"""Perceptual distance of images [N 3 H W] in [0, 1] to their truths, [N]."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Measurement:
    """Means over all frames between the ends."""

    num_steps: int
    kind: str
    psnr: float
    psnr_hole: float
    """Over the pixels without a trusted point."""
    ssim: float
    perceptual: float
    sharp_hole: float
    """Gradient energy in holes relative to the photos'."""
    sharp_trusted: float
    """The same where a trusted point was rendered."""
    psnr_gap: tuple[float, ...]
    """PSNR for narrow, middle and wide gaps; NaN where there is no such clip."""

    def line(self) -> str:
        """One line for people."""
        gaps = " ".join(f"{g:.2f}" for g in self.psnr_gap)
        return (
            f"PSNR {self.psnr:.2f} (holes {self.psnr_hole:.2f}, gaps {gaps}) SSIM {self.ssim:.4f} "
            f"perceptual {self.perceptual:.4f} sharp in holes "
            f"{self.sharp_hole:.2f}, at trusted points {self.sharp_trusted:.2f}"
        )


@torch.no_grad()
def sample_sources(
    model: VideoModel,
    sources: Sources,
    *,
    num_steps: int,
    kind: FewStepKind,
    seed: int = 0,
    batch_size: int = 6,
) -> Float[Tensor, "B T 3 H W"]:
    """Generate clips from stacked renders; anchors keep their photos."""
    codec = model.codec
    schedule = model.schedule
    assert isinstance(codec, CompactCodec)
    assert isinstance(schedule, SamplingSchedule)
    out = []
    device = sources.frames.device
    for start in range(0, sources.frames.shape[0], batch_size):
        part = sources[start : start + batch_size]
        condition = codec.condition_sources(part)
        rng = torch.Generator().manual_seed(seed + start)
        shape = (len(condition.concat), codec.latent_channels, *condition.concat.shape[2:])
        x_T = torch.randn(shape, generator=rng).to(device)
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            z = sample_few_steps(
                denoiser(model.backbone, condition),
                x_T,
                schedule,
                times=schedule.timesteps(num_steps),
                kind=kind,
                noise=seeded_noise(rng),
            )
        frames = codec.decode(z.float())
        out.append(torch.where(part.is_anchor[..., None, None, None], part.frames, frames))
    return torch.cat(out)


def measure_frames(
    frames: Float[Tensor, "B T 3 H W"],
    target: Float[Tensor, "B T 3 H W"],
    hole: Float[Tensor, "B T 1 H W"],
    gap_deg: Float[Tensor, "B"],
    *,
    judge: Judge,
    num_steps: int,
    kind: str,
) -> Measurement:
    """Compare the frames between the ends with the photos."""
    inner = [x[:, 1:-1].flatten(0, 1) for x in (frames, target, hole)]
    image, truth, weight = inner
    value = psnr(image, truth)
    with torch.no_grad():
        parts = [judge(a, b).float() for a, b in zip(image.split(32), truth.split(32), strict=True)]
    bins = torch.bucketize(gap_deg, torch.tensor([15.0, 30.0], device=gap_deg.device))
    bins = bins.repeat_interleave(frames.shape[1] - 2)
    return Measurement(
        num_steps=num_steps,
        kind=kind,
        psnr=float(value.mean()),
        psnr_hole=float(psnr(image, truth, weight).nanmean()),
        ssim=float(ssim(image, truth).mean()),
        perceptual=float(torch.cat(parts).mean()),
        sharp_hole=float(sharpness(image, truth, weight).nanmedian()),
        sharp_trusted=float(sharpness(image, truth, 1 - weight).nanmedian()),
        psnr_gap=tuple(float(value[bins == b].mean()) for b in range(3)),
    )


def measure_model(
    model: VideoModel,
    sources: Sources,
    target: Float[Tensor, "B T 3 H W"],
    gap_deg: Float[Tensor, "B"],
    *,
    num_steps: int,
    kind: FewStepKind,
    judge: Judge,
    seed: int = 0,
) -> Measurement:
    """Sample a model on stacked renders and compare with the photos."""
    frames = sample_sources(model, sources, num_steps=num_steps, kind=kind, seed=seed)
    return measure_frames(
        frames,
        target,
        1 - sources.mask.float(),
        gap_deg,
        judge=judge,
        num_steps=num_steps,
        kind=kind,
    )


def plain_blend(sources: Sources) -> Float[Tensor, "B T 3 H W"]:
    """The blend of the renders with push-pull filled holes: what the network starts from."""
    blend, known = merge_sources(sources)
    filled = push_pull(blend.flatten(0, 1), known.flatten(0, 1))
    return filled.unflatten(0, blend.shape[:2])


def write_panel(
    path: Path,
    model: VideoModel,
    sources: Sources,
    target: Float[Tensor, "B T 3 H W"],
    *,
    steps: Sequence[int],
    num_clips: int = 12,
) -> None:
    """Write a picture: one row a clip, its middle frame as render, blend, samples, truth."""
    picks = torch.linspace(0, len(target) - 1, min(num_clips, len(target))).round().long()
    part, truth = sources[picks.to(target.device)], target[picks.to(target.device)]
    columns = [part.frames * part.mask, plain_blend(part)]
    columns += [sample_sources(model, part, num_steps=n, kind="ode") for n in steps]
    columns.append(truth)
    middle = truth.shape[1] // 2
    rows = [torch.cat([c[i, middle] for c in columns], dim=-1) for i in range(len(picks))]
    picture = torch.cat(rows, dim=-2).permute(1, 2, 0).clamp(0, 1) * 255
    pixels = picture.byte().cpu().numpy()[..., ::-1]
    cv2.imwrite(str(path), pixels, [cv2.IMWRITE_JPEG_QUALITY, 85])
