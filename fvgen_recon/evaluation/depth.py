"""How right is the depth that an estimator finds, and how right does it claim to be?

Input views are chosen with a wanted angle between neighbours. Sparse points from structure from
motion and held-out photos measure; no estimator sees them.
"""

import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from fvgen_recon.errors import InputError
from fvgen_recon.geometry.projection import project_points
from fvgen_recon.geometry.rigid import normalise
from fvgen_recon.io.scenes import Capture
from fvgen_recon.pointcloud.depth_map import DepthMaps, lift_depth
from fvgen_recon.render.point import render_points
from fvgen_recon.types import Cameras, PointCloud, Scene

GAP_BINS = ((0.0, 15.0), (15.0, 30.0), (30.0, 180.0))
"""Narrow, middle and wide gaps in degrees."""
NO_OVERLAP = 180.0
_LEVELS = 10


@dataclass(frozen=True, kw_only=True, slots=True)
class SparsePoints:
    """Points of a scene and the frames that see them."""

    xyz: Float[Tensor, "N 3"]
    """World positions."""
    point: Int[Tensor, "O"]
    """Point of each observation."""
    frame: Int[Tensor, "O"]
    """Frame of each observation."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DepthCase:
    """One choice of input views of one scene, and of photos to measure on."""

    gap_deg: float
    """Median angle between neighbouring inputs."""
    inputs: tuple[int, ...]
    held_out: tuple[int, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class DepthFigures:
    """What one estimator achieved on one case."""

    gap_deg: float
    seconds: float
    right_2: float
    """Share of the sparse points whose pixel has a depth within 2 %."""
    right_5: float
    """The same within 5 %."""
    trusted: float
    """Share of all pixels with a confidence of at least 0.5."""
    trusted_points: float
    """The same of the pixels of sparse points."""
    trusted_right_2: float
    """Share of the trusted sparse points within 2 %."""
    trusted_right_5: float
    """The same within 5 %."""
    covered: float
    """Share of the held-out pixels that trusted points reach."""
    psnr_covered: float
    """PSNR there, in dB."""
    psnr_filled: float
    """PSNR over all pixels: trusted points, else all points, else smooth fill."""
    claimed: tuple[float, ...]
    """Mean confidence at sparse points by tenths of confidence; NaN where there are none."""
    found: tuple[float, ...]
    """Share within 2 % of these."""
    counts: tuple[int, ...]
    """Number of these."""


def sparse_points(capture: Capture, folder: Path) -> SparsePoints:
    """Return the points of a scene that say which frames see them.

    Raises:
        InputError: The scene has none.
    """
    if capture.tracks is None or capture.points is None:
        raise InputError(f"{folder} holds no tracks to measure depth with (tracks.npz).")
    tracks = capture.tracks
    return SparsePoints(xyz=capture.points.xyz, point=tracks.point, frame=tracks.frame)


def pair_angles(
    cameras: Iterable[Cameras], points: SparsePoints, usable: Sequence[bool] | None = None
) -> Float[Tensor, "V V"]:
    """Median angle of sight (degrees) between frames, at points that lie in both pictures."""
    frames = list(cameras)
    num = len(frames)
    usable = [True] * num if usable is None else usable
    centre = torch.stack([camera.position for camera in frames])
    angles = torch.full((num, num), NO_OVERLAP)
    for i in range(num):
        own = points.point[points.frame == i].unique()
        if len(own) < 20 or not usable[i]:
            continue
        xyz = points.xyz[own[torch.linspace(0, len(own) - 1, 300).long()]]
        rays = normalise(centre[:, None] - xyz)
        angle = torch.rad2deg(torch.arccos((rays * rays[i]).sum(-1).clamp(-1, 1)))
        for j, camera in enumerate(frames):
            uv, z = project_points(xyz, camera)
            limit = torch.tensor([camera.width, camera.height])
            inside = (z > 0) & ((uv >= 0) & (uv <= limit)).all(-1)
            if inside.float().mean() > 0.3 and usable[j]:
                angles[i, j] = angle[j][inside].median()
    return torch.maximum(angles, angles.T)


def choose_views(angles: Tensor, wanted: float, count: int) -> tuple[int, ...] | None:
    """Grow chains of views about `wanted` degrees apart; return the most even one."""
    best, choice = float("inf"), None
    for first in range(len(angles)):
        chain, cost = [first], 0.0
        while len(chain) < count:
            nearest = angles[:, chain].amin(dim=1)
            off = (nearest - wanted).abs()
            off[chain] = float("inf")
            cost += float(off.min())
            chain.append(int(off.argmin()))
        if cost < min(best, 0.35 * wanted * (count - 1)):
            best, choice = cost, tuple(sorted(chain))
    return choice


def find_cases(
    angles: Tensor, wanted: Sequence[float], *, num_views: int, max_held_out: int
) -> Iterator[tuple[float, DepthCase]]:
    """Yield the wanted angles for which a scene has inputs with photos between them."""
    for angle in wanted:
        inputs = choose_views(angles, angle, num_views)
        if inputs is None:
            continue
        among = angles[list(inputs)][:, list(inputs)] + 1e3 * torch.eye(len(inputs))
        gap = float(among.amin(dim=1).median())
        sight = angles[:, list(inputs)].sort(dim=1).values
        between = (sight[:, 1] < 1.3 * gap + 3) & (sight[:, 0] > 0.2 * gap)
        between[list(inputs)] = False
        order = (sight[:, 0] + sight[:, 1] / 2).masked_fill(~between, 1e9).argsort()
        held_out = tuple(order[: min(max_held_out, int(between.sum()))].tolist())
        if held_out:
            yield angle, DepthCase(gap_deg=gap, inputs=inputs, held_out=held_out)


def smooth_fill(image: Float[Tensor, "3 H W"], known: Bool[Tensor, "H W"]) -> Tensor:
    """Fill unknown pixels from ever coarser means."""
    if bool(known.all()) or min(known.shape) <= 2:
        mean = (image * known).sum((1, 2)) / known.sum().clamp_min(1)
        return torch.where(known, image, mean[:, None, None])
    weight = F.avg_pool2d(known[None, None].float(), 2, ceil_mode=True)
    coarse = F.avg_pool2d((image * known)[None], 2, ceil_mode=True) / weight.clamp_min(1e-6)
    coarse = smooth_fill(coarse[0], weight[0, 0] > 0)
    fine = F.interpolate(coarse[None], known.shape, mode="bilinear", align_corners=False)[0]
    return torch.where(known, image, fine)


def masked_psnr(image: Tensor, truth: Tensor, mask: Tensor) -> float:
    """PSNR over a mask; NaN where it is empty."""
    error = (image - truth).square().mean(dim=0)[mask]
    return float(-10 * torch.log10(error.mean().clamp_min(1e-8))) if len(error) else float("nan")


def finite_mean(values: Iterable[float]) -> float:
    """Mean of the finite values; NaN where there are none."""
    finite = [v for v in values if not math.isnan(v)]
    return sum(finite) / len(finite) if finite else float("nan")


def render_held_out(cloud: PointCloud, held: Scene) -> tuple[Tensor, Tensor, Tensor]:
    """Return trusted renders, where they hit, and renders with every hole filled."""
    trusted = render_points(cloud[cloud.confidence >= 0.5], held.cameras)
    everything = render_points(cloud, held.cameras)
    hit, any_hit = trusted.alpha[:, 0] > 0.1, everything.alpha[:, 0] > 0.1
    # Renders are multiplied by their opacity: dark between the points, not wrong.
    shown, rest = (r.frames / r.alpha.clamp_min(1e-3) for r in (trusted, everything))
    merged = torch.where(hit[:, None], shown, rest)
    known = hit | any_hit
    filled = torch.stack([smooth_fill(i, k) for i, k in zip(merged, known, strict=True)])
    return shown * hit[:, None], hit, filled


def sample_points(
    maps: DepthMaps, cameras: Cameras, case: DepthCase, points: SparsePoints
) -> tuple[Float[Tensor, "Q"], Float[Tensor, "Q"]]:
    """Relative depth error and confidence at the sparse points that the inputs see."""
    errors, confidences = [], []
    for view, frame in enumerate(case.inputs):
        xyz = points.xyz[points.point[points.frame == frame]].to(maps.depth)
        uv, z = project_points(xyz, cameras[view])
        limit = torch.tensor([cameras.width, cameras.height], device=uv.device)
        inside = (z > 0) & ((uv >= 0) & (uv < limit)).all(-1)
        column, row = uv[inside].long().unbind(-1)
        errors.append((maps.depth[view, row, column] / z[inside] - 1).abs())
        confidences.append(maps.confidence[view, row, column])
    return torch.cat(errors), torch.cat(confidences)


def _calibration(error: Tensor, confidence: Tensor) -> dict[str, tuple]:
    level = (confidence * _LEVELS).long().clamp(0, _LEVELS - 1)
    claimed, found, counts = [], [], []
    for k in range(_LEVELS):
        chosen = level == k
        counts.append(int(chosen.sum()))
        claimed.append(float(confidence[chosen].mean()))
        found.append(float((error[chosen] < 0.02).float().mean()))
    return {"claimed": tuple(claimed), "found": tuple(found), "counts": tuple(counts)}


def measure_depth(
    estimate_depth: Callable[[Scene], DepthMaps],
    scene: Scene,
    held: Scene,
    case: DepthCase,
    points: SparsePoints,
) -> tuple[DepthFigures, DepthMaps]:
    """Run an estimator on the inputs of a case and compare with what it did not see."""
    start = time.perf_counter()
    maps = estimate_depth(scene)
    if scene.images.is_cuda:
        torch.cuda.synchronize()
    seconds = time.perf_counter() - start
    error, confidence = sample_points(maps, scene.cameras, case, points)
    trusted = confidence >= 0.5
    frames, hit, filled = render_held_out(lift_depth(scene, maps), held)
    every = torch.ones_like(hit[0])
    figures = DepthFigures(
        gap_deg=case.gap_deg,
        seconds=seconds,
        right_2=float((error < 0.02).float().mean()),
        right_5=float((error < 0.05).float().mean()),
        trusted=float((maps.confidence >= 0.5).float().mean()),
        trusted_points=float(trusted.float().mean()),
        trusted_right_2=float((error[trusted] < 0.02).float().mean()),
        trusted_right_5=float((error[trusted] < 0.05).float().mean()),
        covered=float(hit.float().mean()),
        psnr_covered=finite_mean(
            masked_psnr(f, t, m) for f, t, m in zip(frames, held.images, hit, strict=True)
        ),
        psnr_filled=finite_mean(
            masked_psnr(f, t, every) for f, t in zip(filled, held.images, strict=True)
        ),
        **_calibration(error, confidence),
    )
    return figures, maps


_COLUMNS = {
    "right_2": "points right to 2 %",
    "right_5": "to 5 %",
    "trusted": "pixels trusted",
    "trusted_points": "points trusted",
    "trusted_right_2": "of these right to 2 %",
    "trusted_right_5": "to 5 %",
    "covered": "held-out covered",
    "psnr_covered": "PSNR there",
    "psnr_filled": "PSNR filled",
    "seconds": "seconds",
}


def depth_table(figures: Sequence[tuple[str, DepthFigures]]) -> str:
    """Return a Markdown table of means over cases, by gap and estimator."""
    lines = [
        "| gap | source | cases | " + " | ".join(_COLUMNS.values()) + " |",
        "|---|---|---|" + "---|" * len(_COLUMNS),
    ]
    for low, high in GAP_BINS:
        title = f"{low:.0f}-{high:.0f}°" if high < 180 else f"> {low:.0f}°"
        for name in dict.fromkeys(name for name, _ in figures):
            chosen = [f for n, f in figures if n == name and low < f.gap_deg <= high]
            if chosen:
                means = {key: finite_mean(getattr(f, key) for f in chosen) for key in _COLUMNS}
                cells = [
                    f"{v:.2f}" if "psnr" in k or k == "seconds" else f"{100 * v:.1f} %"
                    for k, v in means.items()
                ]
                lines.append(f"| {title} | {name} | {len(chosen)} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def calibration_table(figures: Sequence[tuple[str, DepthFigures]]) -> str:
    """Return claimed and measured confidence by tenths, over all cases."""
    lines = ["| source | confidence | points | claimed | right to 2 % |", "|---|---|---|---|---|"]
    for name in dict.fromkeys(name for name, _ in figures):
        chosen = [f for n, f in figures if n == name]
        for k in range(_LEVELS):
            count = sum(f.counts[k] for f in chosen)
            if count == 0:
                continue
            claimed, found = (
                sum(getattr(f, key)[k] * f.counts[k] for f in chosen if f.counts[k]) / count
                for key in ("claimed", "found")
            )
            lines.append(
                f"| {name} | {k / 10:.1f}-{(k + 1) / 10:.1f} | {count} | {claimed:.2f} "
                f"| {found:.2f} |"
            )
    return "\n".join(lines) + "\n"
