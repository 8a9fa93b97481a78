"""Generators' own frames at the poses of held-out photos: the frames table.

Held-out photos are opened here to compare with. Nothing that is made here is trained on.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from case import Case
from methods import Method

from fvgen_recon.densify.generators import DEFAULT_GENERATOR, GeneratorConfig, load_generator
from fvgen_recon.densify.size import working_size
from fvgen_recon.diffusion.generator import VideoGenerator
from fvgen_recon.errors import InputError
from fvgen_recon.evaluation.comparison import Row, mean_score, write_comparison
from fvgen_recon.evaluation.held_out import (
    TRUTH,
    ClipSettings,
    HeldOutClips,
    Outcome,
    build_clips,
    measure_clips,
)
from fvgen_recon.evaluation.judge import Jury
from fvgen_recon.evaluation.moment import frechet_between, kernel_between
from fvgen_recon.evaluation.result import Failure, FrameResult, frame_from_json, without_nan
from fvgen_recon.io.file import read_json, write_json
from fvgen_recon.io.scenes import photo_size
from fvgen_recon.pointcloud import ESTIMATORS

_ESTIMATOR = "plane-sweep"
_YARDSTICKS = ("render", "fill")
"""Generators without a network: what every other one must beat."""
_NUM_PICTURES = 4


@dataclass(frozen=True, kw_only=True)
class FramesJob:
    """The measurement of several generators on one case."""

    case: Case
    generators: tuple[str, ...]
    """Names of generators, with the weights that the package brings, or NAME=FOLDER@STEPS."""
    long_side: int
    """Longer side of the frames in pixels."""
    device: str
    seed: int

    @property
    def folder(self) -> Path:
        """Where it is kept."""
        key = f"{self.generators} {self.long_side} {self.seed}"
        return self.case.folder / f"frames_{hashlib.sha256(key.encode()).hexdigest()[:8]}"

    @property
    def table_file(self) -> Path:
        """Where its rows are kept."""
        return self.folder / "frames.json"

    @property
    def is_finished(self) -> bool:
        """Whether its rows are there, of the split of today."""
        return self.case.has_fold and self.table_file.is_file()

    @property
    def title(self) -> str:
        """What it is called while a run goes on."""
        return f"{self.case.scene}, {self.case.num_views} views, frames"


def names_of_generators(methods: Sequence[Method]) -> tuple[str, ...]:
    """Return the generators of methods, after those that need no network."""
    used = [name for method in methods for name in (method.generator, method.refine)]
    named = [DEFAULT_GENERATOR if name == "default" else name for name in used]
    return tuple(dict.fromkeys([*_YARDSTICKS, *(n for n in named if n not in {"none", ""})]))


def with_weights(name: str, weights: Mapping[str, tuple[Path, int | None]]) -> str:
    """Return a generator's name with its weights, where there are any for it."""
    if name not in weights:
        return name
    folder, steps = weights[name]
    return f"{name}={folder}" + (f"@{steps}" if steps else "")


def load_generators(names: Sequence[str], device: str) -> dict[str, VideoGenerator]:
    """Load generators; `teacher=FOLDER@8` is a teacher of that folder at eight steps.

    Raises:
        FvgenError: One of them is unknown or has no weights.
    """
    found = {}
    for text in names:
        name, _, place = text.partition("=")
        folder, _, steps = place.partition("@")
        if steps and not steps.isdigit():
            raise InputError(f"A generator as NAME=FOLDER@STEPS was expected: {text} came.")
        config = GeneratorConfig(
            name=name.partition("_")[0],
            weights=Path(folder) if folder else None,
            num_steps=int(steps) if steps else None,
            device=device,
        )
        found[name] = load_generator(config)
    return found


def measure_frames(
    job: FramesJob, generators: Mapping[str, VideoGenerator], jury: Jury
) -> tuple[FrameResult, ...] | Failure:
    """Measure every generator, unless that was done before."""
    done = job.table_file
    if done.is_file():
        return tuple(frame_from_json(row) for row in read_json(done))
    case = job.case
    inputs, test = case.split.inputs, case.split.test
    multiple = max(generator.size_multiple for generator in generators.values())
    size = working_size(*photo_size(case.capture, inputs[0]), job.long_side, multiple)
    settings = ClipSettings(
        height=size[0],
        width=size[1],
        has_bare=any(generator.is_raw for generator in generators.values()),
        device=job.device,
    )
    try:
        clips = build_clips(
            case.scene, case.capture, inputs, test, ESTIMATORS[_ESTIMATOR](), settings
        )
    except InputError as error:
        return Failure(
            scene=case.scene, method="frames", num_views=case.num_views, reason=str(error)
        )
    judge = jury.judges["st_lpips_alex"]
    outcome = measure_clips(clips, generators, judge, jury.eyes, seed=job.seed)
    rows = tuple(
        _sum_up(case, name, generator, clips, outcome) for name, generator in generators.items()
    )
    write_comparison(
        job.folder / "panel.png", ["input", *generators, TRUTH], outcome.lines[:_NUM_PICTURES]
    )
    write_json(done, [without_nan(asdict(row)) for row in rows])
    return rows


def _sum_up(
    case: Case, name: str, generator: VideoGenerator, clips: HeldOutClips, outcome: Outcome
) -> FrameResult:
    rows = [row for row in outcome.rows if row.method == name]
    means = asdict(mean_score(rows))
    if outcome.moments:
        ours, photos = outcome.moments[name], outcome.moments[TRUTH]
        means["frechet_efficientnet_lite0"] = frechet_between(ours, photos)
        means["kernel_efficientnet_lite0"] = kernel_between(ours, photos)
    timed = rows[1:] or rows
    return FrameResult(
        scene=case.scene,
        method=name,
        num_views=case.num_views,
        num_steps=generator.num_steps,
        num_clips=len(rows),
        num_frames=sum(row.num_frames for row in rows),
        seconds_points=clips.seconds_points,
        seconds_render=clips.seconds_render,
        seconds_generate=sum(row.seconds for row in timed) / len(timed),
        peak_gib=_peak(rows),
        means=means,
    )


def _peak(rows: Sequence[Row]) -> float | None:
    known = [row.peak_gib for row in rows if row.peak_gib is not None]
    return max(known) if known else None
