"""Compare point-cloud sources on real scenes: how much they trust, and how right that is.

Input views are chosen with a wanted angle between neighbours. Held-out photos and the scene's
own SfM points serve to measure and are never shown to an estimator (but `dataset` is made of the
latter, so that its depth figures only say how many points there are).

Usage:
    python scripts/compare_pointclouds.py --scenes VAL --output outputs/clouds
"""

import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import tyro
from torch import Tensor

from fvgen_recon.errors import FvgenError, InputError, MissingDependencyError, WeightsError
from fvgen_recon.evaluation.depth import (
    GAP_BINS,
    find_cases,
    finite_mean,
    masked_psnr,
    pair_angles,
    render_held_out,
    sparse_points,
)
from fvgen_recon.evaluation.machine import describe_machine, plain_settings
from fvgen_recon.geometry.projection import project_points
from fvgen_recon.io.file import atomic_path, write_json
from fvgen_recon.io.image import write_image
from fvgen_recon.io.scenes import Capture, load_capture, load_scene, posed_scenes
from fvgen_recon.pointcloud import ESTIMATORS, make_estimator
from fvgen_recon.render.point import render_points
from fvgen_recon.types import PointCloud, Scene


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


def list_cases(options: Options) -> Iterator[Case]:
    """All cases of all scenes."""
    for folder in [folder for path in options.scenes for folder in posed_scenes(path)]:
        capture = load_capture(folder)
        points = sparse_points(capture, folder)
        usable = [capture.has_photo(i) for i in range(len(capture))]
        angles = pair_angles(capture.cameras, points, usable)
        found = find_cases(
            angles, options.angles, num_views=options.views, max_held_out=options.max_held_out
        )
        for wanted, case in found:
            name = f"{folder.name}_{wanted:.0f}deg"
            yield Case(name, capture, case.gap_deg, case.inputs, case.held_out)


def load_views(case: Case, frames: tuple[int, ...], options: Options) -> Scene:
    """Load frames at the working size, all of the shape of the case's first input."""
    first = case.capture.cameras[case.inputs[0]]
    scale = options.long_side / max(first.height, first.width)
    height, width = round(first.height * scale), round(first.width * scale)
    return load_scene(case.capture, frames, height=height, width=width).to(options.device)


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
    cloud = make_estimator(name).estimate(scene)
    seconds = time.perf_counter() - start
    frames, hit, filled = render_held_out(cloud, held)
    every = torch.ones_like(hit[0])
    tracks_hit, tracks_right = check_depth(cloud, case, scene)
    covered = [masked_psnr(f, t, m) for f, t, m in zip(frames, held.images, hit, strict=True)]
    row = Row(
        case=case.name,
        gap=case.gap,
        estimator=name,
        seconds=seconds,
        trusted=float((cloud.confidence >= 0.5).float().mean()),
        covered=float(hit.float().mean()),
        psnr_covered=finite_mean(covered),
        psnr_filled=finite_mean(
            [masked_psnr(f, t, every) for f, t in zip(filled, held.images, strict=True)]
        ),
        tracks_hit=tracks_hit,
        tracks_right=tracks_right,
    )
    return row, torch.cat([frames[0], filled[0]], dim=1)


def draw_table(rows: list[Row], absent: dict[str, str]) -> str:
    """Return the Markdown table, by gap and source."""
    keys = ("trusted", "covered", "psnr_covered", "psnr_filled", "tracks_hit", "tracks_right")
    lines = [
        "| gap | source | cases | trusted | covered | PSNR there | PSNR filled | SfM points hit "
        "| right to 5 % | seconds |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for low, high in GAP_BINS:
        title = f"{low:.0f}-{high:.0f}°" if high < 180 else f"> {low:.0f}°"
        for name in dict.fromkeys(row.estimator for row in rows):
            chosen = [r for r in rows if r.estimator == name and low < r.gap <= high]
            if not chosen:
                continue
            figures = [finite_mean([asdict(r)[key] for r in chosen]) for key in keys]
            cells = [
                f"{v:.2f}" if "psnr" in k else f"{100 * v:.0f} %"
                for k, v in zip(keys, figures, strict=True)
            ]
            seconds = f"{finite_mean([r.seconds for r in chosen]):.1f}"
            lines.append(f"| {title} | {name} | {len(chosen)} | {' | '.join([*cells, seconds])} |")
    lines += [f"\n`{name}` was not run: {reason}" for name, reason in absent.items()]
    return "\n".join(lines) + "\n"


def compare(options: Options) -> None:
    """Measure all sources on all cases and write the results."""
    for name in options.estimators:
        make_estimator(name)  # Before any work.
    rows: list[Row] = []
    absent: dict[str, str] = {}
    for case in list_cases(options):
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
        content = {
            "machine": describe_machine(),
            "options": plain_settings(asdict(options)),
            "rows": [asdict(row) for row in rows],
        }
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
