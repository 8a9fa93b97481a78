"""Generators side by side: one row of numbers a method and clip, means, gap bins and pictures."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import cv2
import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from fvgen_recon.diffusion.generator import VideoGenerator
from fvgen_recon.evaluation.metric import flicker, psnr, sharpness, ssim
from fvgen_recon.evaluation.warp import warped_difference
from fvgen_recon.io.image import write_image
from fvgen_recon.types import Cameras, Guidance

_FONT, _FONT_SCALE = cv2.FONT_HERSHEY_SIMPLEX, 0.4
GAP_BORDERS_DEG = (15.0, 30.0)
"""Borders between narrow, middle and wide gaps."""

Judge = Callable[[Tensor, Tensor], Tensor]
"""Perceptual distance of images [N 3 H W] in [0, 1] to their truths, [N]."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Score:
    """Means over the frames of a clip (or of several) that have a photo; NaN where undefined."""

    psnr: float
    """dB over all pixels."""
    psnr_hole: float
    """dB over the pixels without a trusted point."""
    ssim: float
    stlpips_alex: float
    """Shift-tolerant LPIPS with AlexNet; lower is nearer."""
    stlpips_alex_hole: float
    """The same where everything but the holes is replaced by the photo."""
    sharp_hole: float
    """Gradient energy in holes relative to the photos': 1 is as sharp."""
    sharp_trusted: float
    """The same where a trusted point was rendered."""
    flicker: float
    """Mean change of the error from one frame with a photo to the next."""
    unsteady: float
    """Change of what neighbour frames with a photo show of the same trusted points, relative to the
    photos' own: 1 is as steady as the photos."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One method on one clip."""

    method: str
    scene: str
    clip: int
    gap_deg: float
    """Angle between the ends of the clip."""
    num_frames: int
    """Frames that have a photo."""
    hole_share: float
    """Share of pixels without a trusted point in these frames."""
    seconds: float
    """Time of the generator for the whole clip."""
    peak_gib: float | None
    """Most GPU memory while it ran, weights included; none without a GPU."""
    score: Score


@dataclass(frozen=True, kw_only=True, slots=True)
class Truth:
    """What a clip should show."""

    guidance: Guidance
    cameras: Cameras
    """One for each frame of the clip."""
    frames: tuple[int, ...]
    """Frames that have a photo, ascending."""
    photos: Float[Tensor, "N 3 H W"]
    """The photo of each of them."""
    scene: str
    clip: int
    gap_deg: float
    bare: Guidance | None = None
    """What generators of bare renders are given. Holes are those of the other guidance, so that all
    are measured on the same pixels."""

    def guidance_for(self, generator: VideoGenerator) -> Guidance:
        """Return the renders that a generator was trained to see."""
        if not generator.is_raw:
            return self.guidance
        assert self.bare is not None, "Clips for such a generator are built with `has_bare`."
        return self.bare

    @property
    def hole(self) -> Float[Tensor, "N 1 H W"]:
        """1 where no trusted point was rendered."""
        return 1 - self.guidance.mask[list(self.frames)].float()


def score_frames(image: Float[Tensor, "N 3 H W"], truth: Truth, judge: Judge) -> Score:
    """Compare generated frames with the photos."""
    photos, hole = truth.photos, truth.hole
    pasted = torch.where(hole > 0, image, photos)
    has_hole = hole.flatten(1).sum(dim=1) > 0
    still = len(image) < 2
    with torch.no_grad():
        distance, distance_hole = judge(image, photos), judge(pasted, photos)
    return Score(
        psnr=float(psnr(image, photos).mean()),
        psnr_hole=float(psnr(image, photos, hole).nanmean()),
        ssim=float(ssim(image, photos).mean()),
        stlpips_alex=float(distance.mean()),
        stlpips_alex_hole=float(distance_hole[has_hole].mean()),
        sharp_hole=float(sharpness(image, photos, hole).nanmedian()),
        sharp_trusted=float(sharpness(image, photos, 1 - hole).nanmedian()),
        flicker=math.nan if still else float(flicker(image, photos)),
        unsteady=math.nan if still else _unsteadiness(image, truth),
    )


def _unsteadiness(image: Float[Tensor, "N 3 H W"], truth: Truth) -> float:
    """Return the warped difference between neighbour frames over that of the photos."""
    picks = list(truth.frames)
    depth, mask = truth.guidance.depth[picks], truth.guidance.mask[picks]
    ours = warped_difference(image, truth.cameras[picks], depth, mask)
    theirs = warped_difference(truth.photos, truth.cameras[picks], depth, mask)
    return float(ours / theirs.clamp_min(1e-6))


def run_method(
    method: str, generator: VideoGenerator, truth: Truth, judge: Judge, *, seed: int = 0
) -> tuple[Row, Float[Tensor, "T 3 H W"]]:
    """Generate a clip, time it and compare it with the photos."""
    device = truth.guidance.frames.device
    is_cuda = device.type == "cuda"
    if is_cuda:
        torch.cuda.reset_peak_memory_stats(device)
    guidance = truth.guidance_for(generator)
    start = time.perf_counter()
    frames = generator.generate(guidance, seed=seed)
    if is_cuda:
        torch.cuda.synchronize(device)
    seconds = time.perf_counter() - start
    image = frames[list(truth.frames)].clamp(0, 1)
    row = Row(
        method=method,
        scene=truth.scene,
        clip=truth.clip,
        gap_deg=truth.gap_deg,
        num_frames=len(truth.frames),
        hole_share=float(truth.hole.mean()),
        seconds=seconds,
        peak_gib=torch.cuda.max_memory_allocated(device) / 2**30 if is_cuda else None,
        score=score_frames(image, truth, judge),
    )
    return row, frames


def mean_score(rows: Sequence[Row]) -> Score:
    """Average over frames; values that are not defined for a clip are left out."""
    means = {}
    for field in fields(Score):
        pairs = [(getattr(row.score, field.name), row.num_frames) for row in rows]
        known = [(v, n) for v, n in pairs if not math.isnan(v)]
        total = sum(n for _, n in known)
        means[field.name] = sum(v * n for v, n in known) / total if total else math.nan
    return Score(**means)


def mean_over_scenes(rows: Sequence[Row]) -> Score:
    """Average each scene first, so that scenes count alike."""
    scenes = sorted({row.scene for row in rows})
    scores = [mean_score([row for row in rows if row.scene == scene]) for scene in scenes]
    means = {}
    for field in fields(Score):
        known = [v for s in scores if not math.isnan(v := getattr(s, field.name))]
        means[field.name] = sum(known) / len(known) if known else math.nan
    return Score(**means)


def by_gap(rows: Sequence[Row]) -> tuple[tuple[Row, ...], ...]:
    """Sort rows into narrow, middle and wide gaps."""
    bins: list[list[Row]] = [[] for _ in range(len(GAP_BORDERS_DEG) + 1)]
    for row in rows:
        bins[sum(row.gap_deg > border for border in GAP_BORDERS_DEG)].append(row)
    return tuple(tuple(b) for b in bins)


def caption(width: int, text: str, height: int = 18) -> Float[Tensor, "3 h W"]:
    """Return a white strip with a word on it, of which the end stays where it is too long.

    Methods of one family differ in their endings.
    """
    strip = np.full((height, width, 3), 255, np.uint8)
    cv2.putText(strip, _fitted(text, width - 6), (3, height - 5), _FONT, _FONT_SCALE, (0, 0, 0), 1)
    return torch.from_numpy(strip).permute(2, 0, 1).float() / 255


def _fitted(text: str, width: int) -> str:
    """Return a word, or two dots and as much of its end as fits into so many pixels."""
    ends = (text, *(f"..{text[start:]}" for start in range(1, len(text))))
    return next((end for end in ends if _text_width(end) <= width), text[-1:])


def _text_width(text: str) -> int:
    return cv2.getTextSize(text, _FONT, _FONT_SCALE, 1)[0][0]


def write_comparison(
    path: Path, names: Sequence[str], rows: Sequence[Sequence[Float[Tensor, "3 H W"]]]
) -> None:
    """Write a picture with one named column a method and one row a frame.

    Args:
        path: PNG or JPEG to write.
        names: Headings.
        rows: Images of one size, as many in each row as there are names.
    """
    width = rows[0][0].shape[-1]
    head = torch.cat([caption(width, name) for name in names], dim=-1)
    lines = [torch.cat([image.float().cpu().clamp(0, 1) for image in row], dim=-1) for row in rows]
    write_image(path, torch.cat([head, *lines], dim=-2))
