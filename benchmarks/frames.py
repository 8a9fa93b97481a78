"""Generators' own frames at the poses of held-out photos: the frames table.

Held-out photos are opened here to compare with. Nothing that is made here is trained on.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import torch
from case import SEEN_ESTIMATOR, Case
from jaxtyping import Float
from methods import Method
from torch import Tensor

from fvgen_recon.densify.generators import DEFAULT_GENERATOR, GeneratorConfig, load_generator
from fvgen_recon.densify.size import working_size
from fvgen_recon.diffusion.generator import VideoGenerator
from fvgen_recon.errors import FvgenError, InputError
from fvgen_recon.evaluation.comparison import Row, Truth, mean_score, write_comparison
from fvgen_recon.evaluation.covisibility import seen_by_inputs
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
from fvgen_recon.evaluation.score import HeldOut, ViewScore, mean_scores, score_renders
from fvgen_recon.io.file import read_json, write_json
from fvgen_recon.io.scenes import load_scene, photo_size
from fvgen_recon.pointcloud import make_estimator
from fvgen_recon.types import Cameras

PANEL = "panel.png"
"""Picture with a row a clip and a column a generator, in the folder of a job."""
_YARDSTICKS = ("render", "fill")
"""Generators without a network: what every other one must beat."""
_NUM_PICTURES = 4
_MAIN_JUDGE = "st_lpips_alex"
"""The distance that every row has already, in holes too."""
_MORE = ("psnr_seen", "psnr_unseen", "ssim_seen", "seen_share")


@dataclass(frozen=True, kw_only=True)
class FramesJob:
    """The measurement of several generators on one case."""

    case: Case
    generators: tuple[str, ...]
    """Names of generators, with the weights that the package brings, or NAME=FOLDER@STEPS."""
    long_side: int
    """Longer side of the frames in pixels."""
    estimator: str
    """Source of the points, one of `pointcloud.ESTIMATORS`; as the methods' own."""
    device: str
    seed: int

    @property
    def folder(self) -> Path:
        """Where it is kept."""
        key = f"{self.generators} {self.long_side} {self.estimator} {self.seed}"
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


@dataclass(frozen=True, kw_only=True)
class Closer:
    """Measures more of the frames than a generator's row has: by what inputs see, all distances."""

    jury: Jury
    """Without what the row has."""
    seen: tuple[Tensor, ...]
    """For each clip where the inputs see what its photos show, [N 1 H W]."""
    scores: dict[str, list[ViewScore]] = field(default_factory=dict)
    """Of all frames so far, by generator."""

    def __call__(self, name: str, truth: Truth, frames: Float[Tensor, "N 3 H W"]) -> None:
        """Score a clip's frames that have a photo."""
        seen = self.seen[truth.clip]
        photos = HeldOut(views=truth.frames, photos=truth.photos, seen=seen)
        scores, _ = score_renders(list(frames), photos, self.jury)
        self.scores.setdefault(name, []).extend(scores)

    def means(self, name: str) -> dict[str, float]:
        """Average over a generator's frames."""
        means = mean_scores(self.scores[name])
        return {key: means[key] for key in (*_MORE, *self.jury.judges) if key in means}


def look_closer(case: Case, clips: HeldOutClips, jury: Jury) -> Closer:
    """Find what the inputs see of the photos; the same points say so for every method."""
    ways = [truth.cameras[list(truth.frames)] for truth in clips.truths]
    cameras = Cameras(
        c2w=torch.cat([way.c2w for way in ways]),
        K=torch.cat([way.K for way in ways]),
        height=ways[0].height,
        width=ways[0].width,
    )
    size = {"height": cameras.height, "width": cameras.width}
    scene = load_scene(case.capture, case.split.inputs, **size).to(jury.device)
    seen = seen_by_inputs(scene, cameras, make_estimator(SEEN_ESTIMATOR))
    others = {name: judge for name, judge in jury.judges.items() if name != _MAIN_JUDGE}
    return Closer(
        jury=replace(jury, judges=others, eyes=None),
        seen=seen.split([len(truth.frames) for truth in clips.truths]),
    )


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
            case.scene, case.capture, inputs, test, make_estimator(job.estimator), settings
        )
    except FvgenError as error:
        return Failure(
            scene=case.scene, method="frames", num_views=case.num_views, reason=str(error)
        )
    closer = look_closer(case, clips, jury)
    judge = jury.judges[_MAIN_JUDGE]
    outcome = measure_clips(clips, generators, judge, jury.eyes, seed=job.seed, watch=closer)
    rows = tuple(
        _sum_up(job, name, generator, clips, outcome, closer)
        for name, generator in generators.items()
    )
    write_comparison(
        job.folder / PANEL, ["input", *generators, TRUTH], outcome.lines[:_NUM_PICTURES]
    )
    write_json(done, [without_nan(asdict(row)) for row in rows])
    return rows


def _sum_up(
    job: FramesJob,
    name: str,
    generator: VideoGenerator,
    clips: HeldOutClips,
    outcome: Outcome,
    closer: Closer,
) -> FrameResult:
    rows = [row for row in outcome.rows if row.method == name]
    means = {**asdict(mean_score(rows)), **closer.means(name)}
    if outcome.moments:
        ours, photos = outcome.moments[name], outcome.moments[TRUTH]
        means["frechet_efficientnet_lite0"] = frechet_between(ours, photos)
        means["kernel_efficientnet_lite0"] = kernel_between(ours, photos)
    timed = rows[1:] or rows
    return FrameResult(
        scene=job.case.scene,
        method=name,
        num_views=job.case.num_views,
        num_steps=generator.num_steps,
        num_clips=len(rows),
        num_frames=sum(row.num_frames for row in rows),
        seconds_points=clips.seconds_points,
        seconds_render=clips.seconds_render,
        seconds_generate=sum(row.seconds for row in timed) / len(timed),
        peak_gib=_peak(rows),
        means=means,
        folder=f"{job.case.folder.name}/{job.folder.name}",
    )


def _peak(rows: Sequence[Row]) -> float | None:
    known = [row.peak_gib for row in rows if row.peak_gib is not None]
    return max(known) if known else None
