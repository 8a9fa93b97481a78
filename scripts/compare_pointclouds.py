"""Compare point-cloud sources on real scenes: how much they trust, and how right that is.

Input views are chosen with a wanted angle between neighbours. Held-out photos and the scene's
own SfM points serve to measure and are never shown to an estimator (but `dataset` is made of the
latter, so that its depth figures only say how many points there are).

Usage:
    python scripts/compare_pointclouds.py --scenes ../shared/data/val --output outputs/clouds
"""

import math
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import tyro
from torch import Tensor

from fvgen_recon.errors import FvgenError, InputError, MissingDependencyError, WeightsError
from fvgen_recon.geometry.projection import project_points
from fvgen_recon.geometry.rigid import normalise
from fvgen_recon.io.file import atomic_path, write_json
from fvgen_recon.io.image import write_image
from fvgen_recon.io.scenes import Capture, load_capture, load_scene
from fvgen_recon.pointcloud import ESTIMATORS
from fvgen_recon.render.point import render_points
from fvgen_recon.types import PointCloud, Scene

BINS = ((0.0, 15.0), (15.0, 30.0), (30.0, 180.0))
NO_OVERLAP = 180.0


@dataclass(frozen=True)
class Options:
    """What to compare and where to write it."""

    scenes: tuple[Path, ...]
    """Scene folders, or folders of scene folders."""
    output: Path
    """Folder for table.md, cases.json and one picture a case."""
    views: int = 3
    """Number of input views."""
    angles: tuple[float, ...] = (10.0, 22.0, 38.0)
    """Wanted angles between neighbouring views, in degrees."""
    long_side: int = 256
    """Longer side of the photos in pixels."""
    estimators: tuple[str, ...] = tuple(ESTIMATORS)
    """Sources to compare."""
    max_held_out: int = 3
    """Held-out photos to measure on in each case."""
    device: str = "cuda" if torch.cuda.is_available() else "cpu"
    """Where to run."""


@dataclass(frozen=True)
class Case:
    """One choice of input views of one scene."""

    name: str
    capture: Capture
    gap: float
    inputs: tuple[int, ...]
    held_out: tuple[int, ...]


@dataclass(frozen=True)
class Row:
    """What one source achieved on one case."""

    case: str
    gap: float
    estimator: str
    seconds: float
    trusted: float
    """Share of the points with confidence of at least 0.5."""
    covered: float
    """Share of the held-out pixels that trusted points reach."""
    psnr_covered: float
    """PSNR there, in dB."""
    psnr_filled: float
    """PSNR over all pixels: trusted points, else all points, else smooth fill."""
    tracks_hit: float
    """Share of the SfM points seen by an input view where trusted points give a depth."""
    tracks_right: float
    """Share of these whose depth is within 5 %."""


def pair_angles(capture: Capture) -> Tensor:
    """Median angle of sight (degrees) between frames, at SfM points that lie in both pictures."""
    assert capture.points is not None
    assert capture.tracks is not None
    num, xyz = len(capture), capture.points.xyz
    centre = torch.stack([camera.position for camera in capture.cameras])
    angles = torch.full((num, num), NO_OVERLAP)
    for i in range(num):
        own = capture.tracks.point[capture.tracks.frame == i].unique()
        if len(own) < 20 or not capture.has_photo(i):
            continue
        points = xyz[own[torch.linspace(0, len(own) - 1, 300).long()]]
        rays = normalise(centre[:, None] - points)
        angle = torch.rad2deg(torch.arccos((rays * rays[i]).sum(-1).clamp(-1, 1)))
        for j, camera in enumerate(capture.cameras):
            uv, z = project_points(points, camera)
            limit = torch.tensor([camera.width, camera.height])
            inside = (z > 0) & ((uv >= 0) & (uv <= limit)).all(-1)
            if inside.float().mean() > 0.3 and capture.has_photo(j):
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


def find_cases(options: Options) -> Iterator[Case]:
    """All cases of all scenes."""
    folders = [
        folder
        for path in options.scenes
        for folder in ([path] if (path / "transforms.json").exists() else sorted(path.iterdir()))
        if folder.is_dir()
    ]
    for folder in folders:
        capture = load_capture(folder)
        if capture.tracks is None or capture.points is None:
            raise InputError(f"{folder} holds no tracks to measure depth with (tracks.npz).")
        angles = pair_angles(capture)
        for wanted in options.angles:
            inputs = choose_views(angles, wanted, options.views)
            if inputs is None:
                continue
            among = angles[list(inputs)][:, list(inputs)] + 1e3 * torch.eye(len(inputs))
            gap = float(among.amin(dim=1).median())
            sight = angles[:, list(inputs)].sort(dim=1).values
            between = (sight[:, 1] < 1.3 * gap + 3) & (sight[:, 0] > 0.2 * gap)
            between[list(inputs)] = False
            order = (sight[:, 0] + sight[:, 1] / 2).masked_fill(~between, 1e9).argsort()
            held_out = tuple(order[: min(options.max_held_out, int(between.sum()))].tolist())
            if held_out:
                name = f"{folder.name}_{wanted:.0f}deg"
                yield Case(name, capture, gap, inputs, held_out)


def load_views(case: Case, frames: tuple[int, ...], options: Options) -> Scene:
    """Load frames at the working size, all of the shape of the case's first input."""
    first = case.capture.cameras[case.inputs[0]]
    scale = options.long_side / max(first.height, first.width)
    height, width = round(first.height * scale), round(first.width * scale)
    return load_scene(case.capture, frames, height=height, width=width).to(options.device)


def smooth_fill(image: Tensor, known: Tensor) -> Tensor:
    """Fill unknown pixels from ever coarser means (3 H W, H W)."""
    if bool(known.all()) or min(known.shape) <= 2:
        mean = (image * known).sum((1, 2)) / known.sum().clamp_min(1)
        return torch.where(known, image, mean[:, None, None])
    weight = F.avg_pool2d(known[None, None].float(), 2, ceil_mode=True)
    coarse = F.avg_pool2d((image * known)[None], 2, ceil_mode=True) / weight.clamp_min(1e-6)
    coarse = smooth_fill(coarse[0], weight[0, 0] > 0)
    fine = F.interpolate(coarse[None], known.shape, mode="bilinear", align_corners=False)[0]
    return torch.where(known, image, fine)


def psnr(image: Tensor, truth: Tensor, mask: Tensor) -> float:
    """PSNR over a mask; NaN where it is empty."""
    error = (image - truth).square().mean(dim=0)[mask]
    return float(-10 * torch.log10(error.mean().clamp_min(1e-8))) if len(error) else float("nan")


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


def check_depth(cloud: PointCloud, case: Case, scene: Scene) -> tuple[float, float]:
    """Compare the trusted points' depth in the input views with SfM points that these see."""
    points, tracks = case.capture.points, case.capture.tracks
    assert points is not None
    assert tracks is not None
    depth = render_points(cloud[cloud.confidence >= 0.5], scene.cameras, points_per_pixel=1).depth
    hits, right = [], []
    for view, frame in enumerate(case.inputs):
        xyz = points.xyz[tracks.point[tracks.frame == frame]].to(depth)
        uv, z = project_points(xyz, scene.cameras[view])
        limit = torch.tensor([scene.cameras.width, scene.cameras.height], device=uv.device)
        inside = (z > 0) & ((uv >= 0) & (uv < limit)).all(-1)
        column, row = uv[inside].long().unbind(-1)
        found = depth[view, 0, row, column]
        hits.append(found > 0)
        right.append((found / z[inside] - 1).abs() < 0.05)
    hit, good = torch.cat(hits), torch.cat(right)
    return float(hit.float().mean()), float(good[hit].float().mean())


def measure(case: Case, scene: Scene, held: Scene, name: str) -> tuple[Row, Tensor]:
    """Run one source on one case; return its figures and a strip of pictures."""
    start = time.perf_counter()
    cloud = ESTIMATORS[name]().estimate(scene)
    seconds = time.perf_counter() - start
    frames, hit, filled = render_held_out(cloud, held)
    every = torch.ones_like(hit[0])
    tracks_hit, tracks_right = check_depth(cloud, case, scene)
    covered = [psnr(f, t, m) for f, t, m in zip(frames, held.images, hit, strict=True)]
    row = Row(
        case=case.name,
        gap=case.gap,
        estimator=name,
        seconds=seconds,
        trusted=float((cloud.confidence >= 0.5).float().mean()),
        covered=float(hit.float().mean()),
        psnr_covered=mean(covered),
        psnr_filled=mean([psnr(f, t, every) for f, t in zip(filled, held.images, strict=True)]),
        tracks_hit=tracks_hit,
        tracks_right=tracks_right,
    )
    return row, torch.cat([frames[0], filled[0]], dim=1)


def mean(values: list[float]) -> float:
    """Mean of the finite values; NaN where there are none."""
    finite = [v for v in values if not math.isnan(v)]
    return sum(finite) / len(finite) if finite else float("nan")


def draw_table(rows: list[Row], absent: dict[str, str]) -> str:
    """Return the Markdown table, by gap and source."""
    keys = ("trusted", "covered", "psnr_covered", "psnr_filled", "tracks_hit", "tracks_right")
    lines = [
        "| gap | source | cases | trusted | covered | PSNR there | PSNR filled | SfM points hit "
        "| right to 5 % | seconds |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for low, high in BINS:
        title = f"{low:.0f}-{high:.0f}°" if high < 180 else f"> {low:.0f}°"
        for name in dict.fromkeys(row.estimator for row in rows):
            chosen = [r for r in rows if r.estimator == name and low < r.gap <= high]
            if not chosen:
                continue
            figures = [mean([asdict(r)[key] for r in chosen]) for key in keys]
            cells = [
                f"{v:.2f}" if "psnr" in k else f"{100 * v:.0f} %"
                for k, v in zip(keys, figures, strict=True)
            ]
            seconds = f"{mean([r.seconds for r in chosen]):.1f}"
            lines.append(f"| {title} | {name} | {len(chosen)} | {' | '.join([*cells, seconds])} |")
    lines += [f"\n`{name}` was not run: {reason}" for name, reason in absent.items()]
    return "\n".join(lines) + "\n"


def compare(options: Options) -> None:
    """Measure all sources on all cases and write the results."""
    rows: list[Row] = []
    absent: dict[str, str] = {}
    for case in find_cases(options):
        scene = load_views(case, case.inputs, options)
        held = load_views(case, case.held_out, options)
        strips = [torch.cat([held.images[0], scene.images[0]], dim=1)]
        for name in options.estimators:
            try:
                row, strip = measure(case, scene, held, name)
            except (MissingDependencyError, WeightsError) as error:
                absent[name] = str(error).splitlines()[0][:200]
                continue
            except InputError as error:
                print(f"{case.name} {name}: {error}", flush=True)
                continue
            rows.append(row)
            strips.append(strip)
            print(f"{case.name} gap {case.gap:.0f} {name}: {numbers(row)}", flush=True)
        write_image(options.output / f"{case.name}.jpg", torch.cat(strips, dim=2).cpu())
        options_used = {k: str(v) for k, v in asdict(options).items()}
        content: dict[str, Any] = {"options": options_used, "rows": [asdict(r) for r in rows]}
        write_json(options.output / "cases.json", content)
    with atomic_path(options.output / "table.md") as path:
        path.write_text(draw_table(rows, absent), encoding="utf-8")
    print(draw_table(rows, absent))


def numbers(row: Row) -> str:
    """One line for the progress output."""
    return (
        f"covered {row.covered:.2f}, {row.psnr_covered:.2f} dB there, "
        f"{row.psnr_filled:.2f} dB filled, SfM points hit {row.tracks_hit:.2f}, "
        f"right {row.tracks_right:.2f}, {row.seconds:.1f} s"
    )


def main() -> int:
    """Run, and say in one sentence what went wrong where it did."""
    try:
        compare(tyro.cli(Options, description=__doc__))
    except FvgenError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
