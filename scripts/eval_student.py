r"""Measure generators on held-out views of scenes: student, teacher, regression, render and fill.

Usage:
    python scripts/eval_student.py --scenes DIR --views 3 --out outputs/eval.json \
        --models teacher=runs/teacher@8 regression=runs/regression
"""

import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import torch
import tyro

from fvgen_recon.densify.generators import (
    COMPACT_TEACHER,
    SHIPPED_WEIGHTS,
    GeneratorConfig,
    load_generator,
)
from fvgen_recon.densify.size import working_size
from fvgen_recon.diffusion.generator import VideoGenerator
from fvgen_recon.errors import FvgenError, InputError
from fvgen_recon.evaluation.comparison import (
    Row,
    Score,
    by_gap,
    mean_over_scenes,
    mean_score,
    write_comparison,
)
from fvgen_recon.evaluation.efficientnet import load_efficientnet
from fvgen_recon.evaluation.feature import ShiftTolerantLpips, load_stlpips
from fvgen_recon.evaluation.held_out import (
    TRUTH,
    ClipSettings,
    HeldOutClips,
    Outcome,
    build_clips,
    measure_clips,
)
from fvgen_recon.evaluation.machine import describe_machine, plain_settings
from fvgen_recon.evaluation.moment import add_moments, frechet_between
from fvgen_recon.evaluation.protocol import folder_split
from fvgen_recon.evaluation.result import without_nan
from fvgen_recon.io.file import write_json
from fvgen_recon.io.scenes import Capture, load_capture, photo_size, posed_scenes
from fvgen_recon.pointcloud import make_estimator
from fvgen_recon.pointcloud.mvs.semantic import EfficientNetLite0

_KINDS = ("student", "teacher", "regression")


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Measure generators on the held-out views of every scene in a folder."""

    scenes: Path
    """A scene, or a folder whose sub-folders are scenes, each with poses: transforms.json, COLMAP
    or SEVA."""
    out: Path
    """JSON file to write; pictures go beside it."""
    views: int = 3
    """Input views of each scene, evenly spread over those that are no test views."""
    models: tuple[str, ...] = ()
    """Compact models or pipelines as name=folder or name=folder@steps; a name begins with student,
    teacher or regression. What the package ships is measured too."""
    teacher: bool = True
    """Whether the checkout's compact teacher is measured too, where it is there and no other
    teacher is named. Its 50 steps are slow on a CPU: take fewer (--teacher-steps) or none."""
    teacher_steps: tuple[int, ...] = ()
    """Numbers of steps at which every teacher without one of its own is measured, such as 50 8 4 1;
    its default where none is given."""
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
    """Source of the point cloud: plane-sweep, mvs, stereo, dataset, dust3r or random."""
    pictures: int = 4
    """Most clips in the picture of a scene."""
    features: Path | None = None
    """File of packed feature networks, for machines without their packages."""
    device: str = "cuda" if torch.cuda.is_available() else "cpu"
    """Where to run."""
    seed: int = 0
    """Seed of the generators."""
    commit: str = ""
    """Commit to note where git cannot tell."""


@dataclass(frozen=True, kw_only=True)
class Bench:
    """What every scene is measured with."""

    args: Arguments
    generators: dict[str, VideoGenerator]
    judge: ShiftTolerantLpips
    eyes: EfficientNetLite0
    machine: Mapping[str, object]
    """What is measured on: GPU, CPU, versions, commit, command and date."""


@dataclass(frozen=True, kw_only=True)
class SceneResult:
    """What came of one scene."""

    name: str
    clips: HeldOutClips
    outcome: Outcome


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
    make_estimator(args.estimator)  # Before any work.
    if not 0 < args.span <= 1:
        raise InputError(f"A span in (0, 1] was expected: {args.span:g} came.")
    if (args.clips is not None and args.clips < 1) or args.pictures < 0:
        raise InputError(
            f"At least one clip and no negative number of pictures were expected: {args.clips} and "
            f"{args.pictures} came."
        )
    generators = {
        name: load_generator(GeneratorConfig(name=name, num_frames=args.num_frames))
        for name in ("render", "fill")
    }
    for text in (*_unnamed_models(args), *args.models):
        generators |= dict(_parse_model(one, args) for one in _with_steps(text, args.teacher_steps))
    return Bench(
        args=args,
        generators=generators,
        judge=load_stlpips("alex", path=args.features).to(args.device),
        eyes=load_efficientnet(features=args.features).to(args.device),
        machine=describe_machine(args.commit),
    )


def _unnamed_models(args: Arguments) -> list[str]:
    """Return what is measured unasked: the package's models and the checkout's teacher."""
    named = [text.partition("=")[0] for text in args.models]
    places = {kind: SHIPPED_WEIGHTS / kind for kind in _KINDS if kind not in named}
    places["teacher"] = COMPACT_TEACHER
    if not args.teacher or any(name.startswith("teacher") for name in named):
        del places["teacher"]
    return [f"{k}={place}" for k, place in places.items() if (place / "config.json").is_file()]


def _with_steps(text: str, steps: tuple[int, ...]) -> list[str]:
    """Name a teacher once for each number of steps."""
    name, _, place = text.partition("=")
    if not name.startswith("teacher") or "@" in place or not steps:
        return [text]
    return [f"{name}_{count}={place}@{count}" for count in steps]


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


def measure_scene(folder: Path, bench: Bench) -> SceneResult:
    """Run every generator on every clip of a scene and write its picture."""
    args = bench.args
    capture = load_capture(folder)
    inputs, held_out = _split(capture, args)
    multiple = max(g.size_multiple for g in bench.generators.values())
    size = working_size(*photo_size(capture, inputs[0]), args.long_side, multiple)
    settings = ClipSettings(
        height=size[0],
        width=size[1],
        num_frames=args.num_frames,
        max_clips=args.clips,
        has_bare=any(generator.is_raw for generator in bench.generators.values()),
        device=args.device,
    )
    estimator = make_estimator(args.estimator)
    clips = build_clips(folder.name, capture, inputs, held_out, estimator, settings)
    outcome = measure_clips(clips, bench.generators, bench.judge, bench.eyes, seed=args.seed)
    if args.pictures > 0:
        picture = args.out.parent / f"{args.out.stem}_{folder.name}.png"
        names = ["input", *bench.generators, TRUTH]
        write_comparison(picture, names, outcome.lines[: args.pictures])
    return SceneResult(name=folder.name, clips=clips, outcome=outcome)


def _line(score: Score, seconds: float, distance: float) -> str:
    return (
        f"PSNR {score.psnr:6.2f}  holes {score.psnr_hole:6.2f}  SSIM {score.ssim:.3f}  ST-LPIPS "
        f"{score.stlpips_alex:.4f}  holes {score.stlpips_alex_hole:.4f}  Frechet {distance:7.2f}  "
        f"sharp {score.sharp_hole:5.2f} / {score.sharp_trusted:.2f}  flicker {score.flicker:.4f}  "
        f"unsteady {score.unsteady:5.2f}  {seconds:6.2f} s"
    )


def _distance(parts: list[SceneResult], method: str) -> float:
    """Frechet distance of a method's frames to the photos, over scenes together."""
    ours, photos = (
        add_moments([p.outcome.moments[name] for p in parts]) for name in (method, TRUTH)
    )
    return frechet_between(ours, photos)


def _bin(rows: tuple[Row, ...]) -> dict | None:
    if not rows:
        return None
    return {**asdict(mean_score(rows)), "num_frames": sum(r.num_frames for r in rows)}


def summarise(name: str, results: list[SceneResult]) -> dict:
    """Return a method's numbers: over all scenes, by width of the gap, and for each scene."""
    mine = {r.name: [row for row in r.outcome.rows if row.method == name] for r in results}
    rows = [row for part in mine.values() for row in part]
    return {
        "mean": {
            **asdict(mean_over_scenes(rows)),
            "frechet_efficientnet_lite0": _distance(results, name),
            "seconds": sum(r.seconds for r in rows) / len(rows),
            "num_frames": sum(r.num_frames for r in rows),
        },
        "by_gap": {
            key: _bin(part)
            for key, part in zip(("up to 15", "15 to 30", "over 30"), by_gap(rows), strict=True)
        },
        "scenes": {
            r.name: {
                **asdict(mean_score(mine[r.name])),
                "frechet_efficientnet_lite0": _distance([r], name),
            }
            for r in results
        },
    }


def report(
    args: Arguments, bench: Bench, results: list[SceneResult], skipped: dict[str, str]
) -> dict:
    """Sum up all scenes, print the table and return what is written."""
    methods = {}
    for name, generator in bench.generators.items():
        numbers = summarise(name, results)
        methods[name] = {
            "num_steps": generator.num_steps,
            "weights_hash": generator.weights_hash,
            **numbers,
        }
        mean = numbers["mean"]
        score = Score(**{field.name: mean[field.name] for field in fields(Score)})
        line = _line(score, mean["seconds"], mean["frechet_efficientnet_lite0"])
        print(f"{name:>14}  {line}")
    return {
        "machine": bench.machine,
        "settings": plain_settings(asdict(args)),
        "scenes": {
            r.name: {
                "inputs": r.clips.inputs,
                "held_out": r.clips.held_out,
                "seconds_points": r.clips.seconds_points,
                "seconds_render": r.clips.seconds_render,
            }
            for r in results
        },
        "skipped": skipped,
        "methods": methods,
        "rows": [asdict(row) for r in results for row in r.outcome.rows],
    }


def main(args: Arguments) -> None:
    """Measure every scene."""
    folders = posed_scenes(args.scenes)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    bench = make_bench(args)
    results, skipped, start = [], {}, time.perf_counter()
    for index, folder in enumerate(folders):
        try:
            results.append(measure_scene(folder, bench))
        except InputError as error:
            skipped[folder.name] = str(error)
            print(f"{folder.name} is left out: {error}", file=sys.stderr)
        spent = time.perf_counter() - start
        left = spent / (index + 1) * (len(folders) - index - 1)
        print(f"{folder.name}: {spent:.0f} s so far, about {left:.0f} s left", flush=True)
        if results:
            write_json(args.out, without_nan(report(args, bench, results, skipped)))
    if not results:
        raise InputError(f"None of the {len(folders)} scenes could be measured.")


if __name__ == "__main__":
    try:
        main(tyro.cli(Arguments, description=__doc__))
    except FvgenError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
