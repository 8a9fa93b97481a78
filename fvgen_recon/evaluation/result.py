"""What a benchmark run has found: its records, as JSON and back."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fvgen_recon.errors import InputError
from fvgen_recon.evaluation.score import ViewScore, mean_scores
from fvgen_recon.io.file import read_json, write_json

SCHEMA_VERSION = 2


@dataclass(frozen=True, kw_only=True, slots=True)
class TrialResult:
    """One method on one split of one scene."""

    scene: str
    method: str
    num_views: int
    """Number of input views."""
    inputs: tuple[int, ...]
    """Their ids."""
    rule: str
    """How inputs and test views were chosen."""
    height: int
    """Height of training and test images in pixels."""
    width: int
    """Width likewise."""
    initialisation: str
    """Source of the points to start from; `dataset` was made with held-out photos too."""
    iterations: int | None
    """Training steps; none for imported renders."""
    seed: int | None
    overrides: tuple[str, ...]
    """Settings that differ from the method's own."""
    seconds: Mapping[str, float]
    """Wall-clock seconds by part: points, plan, render, generate, train, total; where a trained
    splat is rendered again also refine_load, refine (all views) and refine_view (one)."""
    peak_gib: float | None
    """Most GPU memory in use, or none without a GPU."""
    num_gaussians: int | None
    folder: str
    """Where its renders are, within the run's working folder."""
    views: tuple[ViewScore, ...]
    """Scores of the test views."""
    frechet: float | None
    """Frechet distance on EfficientNet-Lite0 features to the held-out photos; not FID."""
    kernel: float | None
    """Kernel distance on the same features; not KID."""

    @property
    def means(self) -> dict[str, float]:
        """Every number averaged over the test views."""
        means = mean_scores(self.views)
        means["frechet_efficientnet_lite0"] = math.nan if self.frechet is None else self.frechet
        means["kernel_efficientnet_lite0"] = math.nan if self.kernel is None else self.kernel
        return means


@dataclass(frozen=True, kw_only=True, slots=True)
class FrameResult:
    """One generator's own frames at the held-out poses of one scene."""

    scene: str
    method: str
    num_views: int
    num_steps: int
    """Network evaluations a clip."""
    num_clips: int
    num_frames: int
    """Frames that have a photo."""
    seconds_points: float
    """Time of the point cloud of the scene."""
    seconds_render: float
    """Mean time to render the guidance of a clip."""
    seconds_generate: float
    """Mean time of the generator for a clip, the first one left out where there are more."""
    peak_gib: float | None
    means: Mapping[str, float]
    """Scores averaged over the frames."""
    folder: str = ""
    """Where its picture is, within the run's working folder; empty in old results."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Failure:
    """A trial that did not end with renders; it is part of the result."""

    scene: str
    method: str
    num_views: int
    reason: str
    """The last thing that it said."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RunResult:
    """All that one command has measured."""

    suite: str
    machine: Mapping[str, Any]
    """GPU, CPU, versions, commit, command and date."""
    settings: Mapping[str, Any]
    """Options of the command."""
    trials: tuple[TrialResult, ...]
    """The downstream table."""
    frames: tuple[FrameResult, ...]
    """The frames table."""
    failures: tuple[Failure, ...]

    @property
    def methods(self) -> tuple[str, ...]:
        """Methods of the downstream table, in order."""
        return tuple(dict.fromkeys(trial.method for trial in self.trials))


def write_result(path: Path, result: RunResult) -> None:
    """Write a run as JSON; numbers that are not defined become null."""
    content = {"schema_version": SCHEMA_VERSION, **without_nan(asdict(result))}
    for trial, row in zip(result.trials, content["trials"], strict=True):
        row["means"] = without_nan(trial.means)
    write_json(path, content)


def read_result(path: Path) -> RunResult:
    """Read a run.

    Raises:
        InputError: The file is missing, no result, or of another version.
    """
    content = read_json(path)
    if not isinstance(content, dict) or content.get("schema_version") != SCHEMA_VERSION:
        raise _foreign(path)
    try:
        return _run_from_json(content)
    except (KeyError, TypeError) as error:
        raise _foreign(path) from error


def _foreign(path: Path) -> InputError:
    return InputError(
        f"{path} is not a benchmark result of schema version {SCHEMA_VERSION}: run the benchmark "
        "again."
    )


def _run_from_json(content: Mapping[str, Any]) -> RunResult:
    return RunResult(
        suite=content["suite"],
        machine=content["machine"],
        settings=content["settings"],
        trials=tuple(trial_from_json(row) for row in content["trials"]),
        frames=tuple(frame_from_json(row) for row in content["frames"]),
        failures=tuple(Failure(**row) for row in content["failures"]),
    )


def trial_from_json(row: Mapping[str, Any]) -> TrialResult:
    """Turn one JSON row back into a trial."""
    fields = {key: value for key, value in row.items() if key != "means"}
    for key in ("inputs", "overrides"):
        fields[key] = tuple(fields[key])
    fields["views"] = tuple(ViewScore(**_with_nan(view)) for view in row["views"])
    return TrialResult(**fields)


def frame_from_json(row: Mapping[str, Any]) -> FrameResult:
    """Turn one JSON row back into the measurement of a generator."""
    return FrameResult(**{**row, "means": _with_nan(row["means"])})


def trial_to_json(trial: TrialResult) -> dict[str, Any]:
    """Turn a trial into a JSON row."""
    return without_nan(asdict(trial))


def mean_of(rows: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """Average each number over the rows that have it; scenes count alike."""
    values: dict[str, list[float]] = {}
    for row in rows:
        for key, value in row.items():
            known = values.setdefault(key, [])
            if not math.isnan(value):
                known.append(value)
    return {k: sum(v) / len(v) if v else math.nan for k, v in values.items()}


def select(
    trials: Sequence[TrialResult], *, method: str, num_views: int
) -> tuple[TrialResult, ...]:
    """Return the trials of a method at a number of views."""
    return tuple(t for t in trials if t.method == method and t.num_views == num_views)


def without_nan(value: Any) -> Any:
    """Return what JSON can hold: numbers that are not finite become null, paths become strings."""
    if isinstance(value, Mapping):
        return {k: without_nan(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [without_nan(v) for v in value]
    if isinstance(value, Path):
        return str(value)
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _with_nan(row: Mapping[str, Any]) -> dict[str, Any]:
    return {key: math.nan if value is None else value for key, value in row.items()}
