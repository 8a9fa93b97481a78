"""Measure generators on held-out views of scenes: student, teacher, regression, render and fill.

Usage:
    python scripts/eval_student.py --scenes DIR --views 3 --out outputs/eval.json \
        --models teacher=runs/teacher@8 regression=runs/regression
"""

import math
import sys
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
import tyro
from torch import Tensor

from fvgen_recon.densify.generators import SHIPPED_WEIGHTS, GeneratorConfig, load_generator
from fvgen_recon.densify.size import working_size
from fvgen_recon.diffusion.generator import VideoGenerator
from fvgen_recon.errors import FvgenError, InputError
from fvgen_recon.evaluation.comparison import (
    Row,
    Score,
    Truth,
    by_gap,
    frechet,
    mean_over_scenes,
    mean_score,
    run_method,
    write_comparison,
)
from fvgen_recon.evaluation.efficientnet import EfficientNetLite0, load_efficientnet
from fvgen_recon.evaluation.feature import ShiftTolerantLpips, load_stlpips
from fvgen_recon.evaluation.path import HeldOutPath, gap_angle, plan_held_out
from fvgen_recon.evaluation.protocol import folder_split
from fvgen_recon.io.file import write_json
from fvgen_recon.io.scenes import Capture, load_capture, load_scene, photo_size
from fvgen_recon.pointcloud import ESTIMATORS
from fvgen_recon.render.guidance import render_guidance
from fvgen_recon.types import Cameras, PointCloud, Scene

_KINDS = ("student", "teacher", "regression")


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Measure generators on the held-out views of every scene in a folder."""

    scenes: Path
    """A scene, or a folder whose sub-folders are scenes, in any format that fvgen-recon reads."""
    out: Path
    """JSON file to write; pictures go beside it."""
    views: int = 3
    """Input views of each scene, evenly spread over those that are no test views."""
    models: tuple[str, ...] = ()
    """Compact models or pipelines as name=folder or name=folder@steps; a name begins with student,
    teacher or regression. What the package ships is measured too."""
    span: float = 1.0
    """Share of the photos, around the middle of their order, that take part: 1 goes all round,
    less is an arc with smaller gaps."""
    all_held_out: bool = False
    """Measure on every photo that is no input, not only on the test views."""
    clips: int | None = None
    """Most clips of a scene, those with the most held-out views first."""
    long_side: int = 256
    """Longer side of the frames in pixels."""
    num_frames: int = 16
    """Length of a clip."""
    estimator: str = "plane-sweep"
    """Source of the point cloud."""
    device: str = "cuda" if torch.cuda.is_available() else "cpu"
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class Bench:
    """What every scene is measured with."""

    args: Arguments
    generators: dict[str, VideoGenerator]
    judge: ShiftTolerantLpips
    eyes: EfficientNetLite0


@dataclass(frozen=True, kw_only=True)
class SceneResult:
    """What came of one scene."""

    name: str
    inputs: tuple[str, ...]
    held_out: tuple[str, ...]
    rows: tuple[Row, ...]
    features: dict[str, Tensor]
    """Local features of all frames of each method, and of the photos."""


def _parse_model(text: str, args: Arguments) -> tuple[str, VideoGenerator]:
    name, _, place = text.partition("=")
    folder, _, steps = place.partition("@")
    kind = next((k for k in _KINDS if name.startswith(k)), None)
    if kind is None or not folder or not (steps or "1").isdigit():
        raise InputError(
            f"A model as name=folder or name=folder@steps with a name that begins with one of "
            f"{', '.join(_KINDS)} was expected: {text} came."
        )
    config = GeneratorConfig(
        name=kind,
        weights=Path(folder),
        num_steps=int(steps) if steps else None,
        num_frames=args.num_frames,
        device=args.device,
    )
    return name, load_generator(config)


def make_bench(args: Arguments) -> Bench:
    """Load generators and feature networks."""
    if args.estimator not in ESTIMATORS:
        raise InputError(
            f"There is no point-cloud estimator `{args.estimator}`: choose one of "
            f"{', '.join(ESTIMATORS)}."
        )
    if not 0 < args.span <= 1:
        raise InputError(f"A span in (0, 1] was expected: {args.span:g} came.")
    generators = {
        name: load_generator(GeneratorConfig(name=name, num_frames=args.num_frames))
        for name in ("render", "fill")
    }
    named = [text.partition("=")[0] for text in args.models]
    shipped = [
        f"{kind}={SHIPPED_WEIGHTS / kind}"
        for kind in _KINDS
        if kind not in named and (SHIPPED_WEIGHTS / kind / "config.json").is_file()
    ]
    generators |= dict(_parse_model(text, args) for text in (*shipped, *args.models))
    return Bench(
        args=args,
        generators=generators,
        judge=load_stlpips("alex").to(args.device),
        eyes=load_efficientnet().to(args.device),
    )


def _split(capture: Capture, args: Arguments) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return frame indices of the inputs and of the held-out views."""
    order = sorted(range(len(capture.names)), key=lambda i: capture.names[i])
    count = max(args.views + 1, round(len(order) * args.span))
    start = (len(order) - count) // 2
    order = order[start : start + count]
    split = folder_split(len(order), args.views)
    test = split.test
    if args.all_held_out:
        test = tuple(i for i in range(len(order)) if i not in split.inputs)
    return tuple(order[i] for i in split.inputs), tuple(order[i] for i in test)


def _prepare(
    folder: Path, bench: Bench
) -> tuple[Capture, Scene, Scene, PointCloud, tuple[HeldOutPath, ...]]:
    """Open inputs and held-out views, estimate the cloud, plan the clips.

    Paths index the held-out scene.
    """
    args = bench.args
    capture = load_capture(folder)
    inputs, held_out = _split(capture, args)
    multiple = max(g.size_multiple for g in bench.generators.values())
    size = working_size(*photo_size(capture, inputs[0]), args.long_side, multiple)
    scene = load_scene(capture, inputs, height=size[0], width=size[1])
    photos = load_scene(capture, held_out, height=size[0], width=size[1])
    cloud = ESTIMATORS[args.estimator]().estimate(replace(scene.to(args.device), points=None))
    both = Cameras(
        c2w=torch.cat([scene.cameras.c2w, photos.cameras.c2w]),
        K=torch.cat([scene.cameras.K, photos.cameras.K]),
        height=size[0],
        width=size[1],
    )
    first = len(scene)
    paths = plan_held_out(
        both, tuple(range(first)), tuple(range(first, first + len(photos))), args.num_frames
    )
    paths = tuple(replace(p, photos=tuple(i - first for i in p.photos)) for p in paths)
    return capture, scene.to(args.device), photos.to(args.device), cloud, paths[: args.clips]


def _typical_depth(cloud: PointCloud, scene: Scene) -> float:
    trusted = cloud.confidence >= 0.5
    camera = scene.cameras[0]
    depth = (cloud.xyz[trusted] - camera.position) @ camera.direction
    return float(depth[depth > 0].median()) if bool((depth > 0).any()) else 1.0


def measure_scene(folder: Path, bench: Bench) -> SceneResult:
    """Run every generator on every clip of a scene and write its picture."""
    args = bench.args
    _, scene, photos, cloud, paths = _prepare(folder, bench)
    depth = _typical_depth(cloud, scene)
    rows: list[Row] = []
    lines: list[list[Tensor]] = []
    features: dict[str, list[Tensor]] = {}
    for index, path in enumerate(paths):
        trajectory = replace(path.trajectory, cameras=path.trajectory.cameras.to(args.device))
        truth = Truth(
            guidance=render_guidance(scene, cloud, trajectory),
            frames=path.frames,
            photos=photos.images[list(path.photos)],
            scene=folder.name,
            clip=index,
            gap_deg=gap_angle(trajectory, depth),
        )
        made = {}
        for name, generator in bench.generators.items():
            row, made[name] = run_method(name, generator, truth, bench.judge, seed=args.seed)
            rows.append(row)
        made = {name: frames[list(truth.frames)] for name, frames in made.items()}
        made["truth"] = truth.photos
        for name, frames in made.items():
            features.setdefault(name, []).append(bench.eyes.local_features(frames.clamp(0, 1)))
        middle = len(truth.frames) // 2
        lines.append([truth.guidance.frames[0], *(f[middle] for f in made.values())])
    picture = args.out.parent / f"{args.out.stem}_{folder.name}.png"
    write_comparison(picture, ["input", *bench.generators, "truth"], lines[:4])
    return SceneResult(
        name=folder.name,
        inputs=scene.names,
        held_out=photos.names,
        rows=tuple(rows),
        features={name: torch.cat(parts).cpu() for name, parts in features.items()},
    )


def _line(score: Score, seconds: float, distance: float) -> str:
    return (
        f"PSNR {score.psnr:6.2f}  holes {score.psnr_hole:6.2f}  SSIM {score.ssim:.3f}  ST-LPIPS "
        f"{score.stlpips_alex:.4f}  holes {score.stlpips_alex_hole:.4f}  Frechet {distance:7.2f}  "
        f"sharp {score.sharp_hole:5.2f}  flicker {score.flicker:.4f}  {seconds:6.2f} s"
    )


def _summary(rows: list[Row], features: list[dict[str, Tensor]], method: str) -> dict:
    ours = torch.cat([f[method] for f in features])
    truth = torch.cat([f["truth"] for f in features])
    return {
        **asdict(mean_over_scenes(rows)),
        "frechet_efficientnet_lite0": frechet(ours, truth),
        "seconds": sum(r.seconds for r in rows) / len(rows),
        "num_frames": sum(r.num_frames for r in rows),
    }


def report(args: Arguments, bench: Bench, results: list[SceneResult]) -> dict:
    """Sum up all scenes, print the table and return what is written."""
    rows = [row for result in results for row in result.rows]
    features = [result.features for result in results]
    methods: dict[str, dict] = {}
    for name, generator in bench.generators.items():
        mine = [row for row in rows if row.method == name]
        whole = _summary(mine, features, name)
        bins = [
            None if not b else {**asdict(mean_score(b)), "num_frames": sum(r.num_frames for r in b)}
            for b in by_gap(mine)
        ]
        per_scene = {
            r.name: {
                **asdict(mean_score([row for row in r.rows if row.method == name])),
                "frechet_efficientnet_lite0": frechet(r.features[name], r.features["truth"]),
            }
            for r in results
        }
        methods[name] = {
            "num_steps": generator.num_steps,
            "weights_hash": generator.weights_hash,
            "mean": whole,
            "by_gap": dict(zip(("up to 15", "15 to 30", "over 30"), bins, strict=True)),
            "scenes": per_scene,
        }
        score = mean_over_scenes(mine)
        distance = whole["frechet_efficientnet_lite0"]
        print(f"{name:>14}  {_line(score, whole['seconds'], distance)}")
    return {
        "settings": {k: str(v) if isinstance(v, Path) else v for k, v in asdict(args).items()},
        "scenes": {r.name: {"inputs": r.inputs, "held_out": r.held_out} for r in results},
        "methods": methods,
        "rows": [asdict(row) for row in rows],
    }


def _without_nan(value: object) -> object:
    """JSON has no NaN: undefined numbers become null."""
    if isinstance(value, dict):
        return {k: _without_nan(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_nan(v) for v in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def _scene_folders(folder: Path) -> list[Path]:
    if (folder / "transforms.json").is_file():
        return [folder]
    if not folder.is_dir():
        raise InputError(f"A folder of scenes was expected: {folder} is not there.")
    return sorted(p for p in folder.iterdir() if (p / "transforms.json").is_file())


def main(args: Arguments) -> None:
    """Measure every scene."""
    folders = _scene_folders(args.scenes)
    if not folders:
        raise InputError(f"No scene with a transforms.json was found in {args.scenes}.")
    args.out.parent.mkdir(parents=True, exist_ok=True)
    bench = make_bench(args)
    results, start = [], time.perf_counter()
    for index, folder in enumerate(folders):
        results.append(measure_scene(folder, bench))
        spent = time.perf_counter() - start
        left = spent / (index + 1) * (len(folders) - index - 1)
        print(f"{folder.name}: {spent:.0f} s so far, about {left:.0f} s left", flush=True)
    write_json(args.out, _without_nan(report(args, bench, results)))


if __name__ == "__main__":
    try:
        main(tyro.cli(Arguments, description=__doc__))
    except FvgenError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
