"""How long a whole scene takes, part by part: points, renders, generation, training.

Six photos make five clips; with 7,000 training steps the goal is three minutes on one H100. Trials
run one at a time, so that nothing disturbs the clock. Generators are also timed alone, and set
beside what the paper states. Both tables are printed and written beside the JSON, as Markdown.

Usage:
    python benchmarks/scene_time.py --data scenes/ --methods fvgen-splat-student --out time.json
"""

import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import tyro
from case import Case
from frames import load_generators
from job import Settings, Trial, score_trial, train_trial
from options import SceneOptions

from fvgen_recon.densify.bank import MANIFEST, Bank
from fvgen_recon.densify.densifier import Densifier, DensifyConfig
from fvgen_recon.densify.generators import COMPACT_TEACHER
from fvgen_recon.errors import FvgenError
from fvgen_recon.evaluation.judge import Jury, load_jury
from fvgen_recon.evaluation.machine import describe_machine
from fvgen_recon.evaluation.plot import PARTS
from fvgen_recon.evaluation.result import Failure, without_nan
from fvgen_recon.evaluation.table import markdown
from fvgen_recon.io.file import atomic_path, write_json
from fvgen_recon.io.scenes import load_scene
from fvgen_recon.types import Guidance

GOAL_SECONDS = 180.0
PAPER = {
    "source": "FVGen (ICCV 2025), as a third-party note quotes it: frames of one clip at 320x512",
    "machine": "one H100",
    "size": [320, 512],
    "rows": [
        {"generator": "ViewCrafter", "num_steps": 50, "seconds": 66.3},
        {"generator": "FVGen", "num_steps": 4, "seconds": 5.1},
    ],
}
"""What others state; nothing of it is measured here."""
_HAS_TEACHER = (COMPACT_TEACHER / "config.json").is_file()


@dataclass(frozen=True, kw_only=True)
class Options(SceneOptions):
    """What to time."""

    methods: str = "fvgen-splat-none,fvgen-splat"
    """Names of methods, separated by commas."""
    generators: str = f"teacher={COMPACT_TEACHER},student" if _HAS_TEACHER else "student"
    """Generators to time alone, separated by commas, as NAME or NAME=FOLDER@STEPS; the teacher's 50
    steps are slow on a CPU. None where empty."""
    views: int = 6
    """Number of input views; the clips are one less."""
    iterations: int = 7000
    """Training steps."""
    work: Path = Path("outputs/scene_time")
    """Where folds and trials are kept."""
    estimator: str = "stereo"
    """Where the points come from."""
    repeats: int = 3
    """Clips of each generator that are timed after one that warms it up."""
    generator_size: tuple[int, int] = (320, 512)
    """Height and width at which generators are timed alone."""


def time_scene(case: Case, method: str, options: Options, jury: Jury) -> dict[str, Any]:
    """Run one method on one scene, alone, and return its seconds by part."""
    settings = Settings(
        iterations=options.iterations,
        estimator=options.estimator,
        seed=0,
        overrides=(),
        device=options.device,
    )
    trial = Trial(case=case, method=method, label=method, settings=settings)
    fold = case.fold()
    start = time.perf_counter()
    train_trial(trial, fold)
    command_seconds = time.perf_counter() - start
    result = score_trial(trial, fold, jury)
    if isinstance(result, Failure):
        return asdict(result)
    return {
        "scene": case.scene,
        "method": method,
        "num_views": case.num_views,
        "num_clips": _count_clips(trial.folder),
        "size": [fold.height, fold.width],
        "seconds": dict(result.seconds),
        "command_seconds": command_seconds,
        "peak_gib": result.peak_gib,
        "num_gaussians": result.num_gaussians,
        "psnr": result.means["psnr"],
    }


def _count_clips(folder: Path) -> int:
    """Count the clips in the bank of a trial; none where it generated nothing."""
    manifests = list(folder.glob(f"run/**/bank/{MANIFEST}"))
    entries = Bank(manifests[0].parent).entries if manifests else ()
    return len({(entry.origin.round, entry.origin.trajectory) for entry in entries})


def first_guidance(case: Case, options: Options) -> Guidance:
    """Render the first clip of a scene at the size that generators are timed at."""
    height, width = options.generator_size
    scene = load_scene(case.capture, case.split.inputs[:2], height=height, width=width)
    config = DensifyConfig(long_side=max(height, width))
    return Densifier(config).run(scene.to(options.device)).clips[0].guidance


def time_generators(case: Case, options: Options) -> list[dict[str, Any]]:
    """Time each generator on one clip, after a first run that warms it up."""
    names = tuple(filter(None, options.generators.split(",")))
    if not names:
        return []
    guidance = first_guidance(case, options)
    rows = []
    for name in names:
        ((label, generator),) = load_generators((name,), options.device).items()
        seconds = []
        for index in range(options.repeats + 1):
            _wait()
            start = time.perf_counter()
            generator.generate(guidance, seed=index)
            _wait()
            seconds.append(time.perf_counter() - start)
        rows.append(
            {
                "generator": label,
                "num_steps": generator.num_steps,
                "num_frames": len(guidance),
                "size": list(guidance.frames.shape[-2:]),
                "first_seconds": seconds[0],
                "seconds": sorted(seconds[1:])[options.repeats // 2],
            }
        )
    return rows


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def scene_table(rows: list[dict[str, Any]]) -> str:
    """Return the seconds of every scene by part, as Markdown."""
    head = ["scene", "method", "clips", *PARTS, "total", "whole command", "within the goal"]
    lines = []
    for row in rows:
        if "reason" in row:
            lines.append([row["scene"], row["method"], row["reason"], *[""] * (len(head) - 3)])
            continue
        parts = [f"{row['seconds'].get(part, 0.0):.1f}" for part in (*PARTS, "total")]
        is_within = "yes" if row["command_seconds"] <= GOAL_SECONDS else "no"
        whole = f"{row['command_seconds']:.1f}"
        lines.append([row["scene"], row["method"], str(row["num_clips"]), *parts, whole, is_within])
    return markdown(head, lines)


def clip_table(content: dict[str, Any]) -> str:
    """Return the seconds that generators take for a clip beside the paper's, as Markdown.

    Args:
        content: What a run has written: `generators`, `machine`, `paper`.
    """
    machine, paper = content["machine"], content["paper"]
    where = machine["gpu"] or f"{machine['num_cpus']} CPU cores"
    head = ["generator", "steps", "frames", "size", "seconds a clip", "where"]
    lines = [
        [
            row["generator"],
            str(row["num_steps"]),
            str(row["num_frames"]),
            _size_words(row["size"]),
            f"{row['seconds']:.2f}",
            f"here: {where}",
        ]
        for row in content["generators"]
    ]
    stated = f"not measured here: {paper['machine']}, {paper['source']}"
    for row in paper["rows"]:
        steps, seconds = str(row["num_steps"]), f"{row['seconds']:.1f}"
        lines.append([row["generator"], steps, "-", _size_words(paper["size"]), seconds, stated])
    return markdown(head, lines)


def _size_words(size: list[int]) -> str:
    return f"{size[0]}x{size[1]}"


def tables(content: dict[str, Any]) -> str:
    """Return both tables."""
    parts = [scene_table(content["scenes"]), clip_table(content)]
    return "\n\n".join(parts) + "\n"


def run(options: Options) -> dict[str, Any]:
    """Time everything and return what is written."""
    cases = options.plan(str(options.views))
    jury = load_jury(options.device, options.features)
    rows = []
    content: dict[str, Any] = {
        "machine": describe_machine(options.commit),
        "goal_seconds": GOAL_SECONDS,
        "paper": PAPER,
        "generators": time_generators(cases[0], options),
        "scenes": rows,
    }
    for case in cases:
        for method in options.methods.split(","):
            rows.append(time_scene(case, method, options, jury))
            write_json(options.out, without_nan(content))
            with atomic_path(options.out.with_suffix(".md")) as temporary:
                temporary.write_text(tables(content))
    return content


def main(options: Options) -> int:
    """Time, write the JSON and the tables, and print them."""
    try:
        content = run(options)
    except FvgenError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(tables(content))
    return 1 if any("reason" in row for row in content["scenes"]) else 0


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Options, description=__doc__)))
