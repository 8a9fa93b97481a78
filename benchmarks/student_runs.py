r"""Several runs of the ablation as one table: means and spreads over all their seeds.

Usage:
    python benchmarks/student_runs.py benchmarks/results/student_ablation.json \
        benchmarks/results/student_ablation_second.json
"""

import math
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from fvgen_recon.errors import FvgenError, InputError
from fvgen_recon.evaluation.table import markdown
from fvgen_recon.io.file import read_json

COLUMNS = {
    "psnr": ("PSNR", 2),
    "ssim": ("SSIM", 3),
    "perceptual": ("ST-LPIPS", 3),
    "frechet": ("Frechet", 1),
    "sharp_hole": ("hole sharpness", 2),
    "seconds": ("seconds", 2),
}
"""Titles and digits; `seconds` are those of all clips of a row, on a GPU that other trainings may
use at the time."""


@dataclass(frozen=True)
class Options:
    """Which runs to put together."""

    results: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """What `student_ablation.py` wrote, one file a run."""
    num_steps: int = 4
    """Steps of the samplers to show; recipes that were not measured at so many are left out."""
    figure: Path | None = None
    """Picture of PSNR against ST-LPIPS over all runs, each recipe at its most steps."""


@dataclass(frozen=True, kw_only=True)
class Sample:
    """A number over some trainings."""

    count: int
    """How many trainings."""
    mean: float
    """Of the number over them."""
    spread: float | None
    """Standard deviation (n - 1), or none of one training or where nobody kept it."""


def pool(samples: Sequence[Sample]) -> Sample:
    """Return the sample of all trainings together.

    The spread is that over single trainings, as if all had been in one run: within runs and between
    them. It is not known where a run of several trainings did not keep its own.
    """
    count = sum(sample.count for sample in samples)
    mean = sum(sample.count * sample.mean for sample in samples) / count
    within = [0.0 if sample.count == 1 else sample.spread for sample in samples]
    known = [spread for spread in within if spread is not None]
    if count < 2 or len(known) < len(samples):
        return Sample(count=count, mean=mean, spread=None)
    squares = sum(
        (sample.count - 1) * spread**2 + sample.count * (sample.mean - mean) ** 2
        for sample, spread in zip(samples, known, strict=True)
    )
    return Sample(count=count, mean=mean, spread=math.sqrt(squares / (count - 1)))


def _all_rows(options: Options, num_steps: int) -> list[Mapping[str, Any]]:
    rows = []
    for path in options.results:
        content = read_json(path)
        if not isinstance(content, dict) or "rows" not in content or "legs" not in content:
            raise InputError(
                f"A file that student_ablation.py wrote was expected: {path} holds no rows and "
                "legs."
            )
        rows += [row for row in content["rows"] if row["num_steps"] == num_steps]
    return rows


def read_rows(options: Options) -> list[Mapping[str, Any]]:
    """Return the rows of all runs at the number of steps.

    Raises:
        InputError: A file is none of the ablation's, or runs are measured on other clips.
    """
    rows = _all_rows(options, options.num_steps)
    if not rows:
        raise InputError(f"No row at {options.num_steps} steps is in these files: choose others.")
    clips = sorted({row["clips"] for row in rows})
    if len(clips) > 1:
        raise InputError(
            f"Runs on the same clips were expected: {' and '.join(map(str, clips))} came. Give "
            "each group a table of its own."
        )
    return rows


def pooled_rows(options: Options) -> list[dict[str, Any]]:
    """Return what a picture shows: a row for each recipe and sampler over all runs.

    Raises:
        InputError: As for `read_rows`.
    """
    groups: dict[tuple[str, str, int], list[Mapping[str, Any]]] = {}
    for steps in (1, 2, 4, 8, 50):
        for row in _all_rows(options, steps):
            groups.setdefault((row["recipe"], row["kind"], steps), []).append(row)
    rows = []
    for (recipe, kind, steps), group in groups.items():
        row = {"recipe": recipe, "kind": kind, "num_steps": steps}
        row["updates"] = max(r["updates"] for r in group)
        for key in ("psnr", "perceptual"):
            whole = _pooled(group, key)
            row |= {key: whole.mean, f"{key}_spread": whole.spread}
        rows.append(row)
    return rows


def runs_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return one line a recipe and sampler, in the order in which they come, as Markdown."""
    groups: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["recipe"], row["kind"]), []).append(row)
    head = ["recipe", "sampler", "runs", "n", "updates", *(title for title, _ in COLUMNS.values())]
    lines = []
    for (recipe, kind), group in groups.items():
        count = str(sum(row["seeds"] for row in group))
        cells = [_cell(group, key, digits) for key, (_, digits) in COLUMNS.items()]
        lines.append([recipe, kind, str(len(group)), count, _updates(group), *cells])
    return markdown(head, lines)


def _cell(group: Sequence[Mapping[str, Any]], key: str, digits: int) -> str:
    """Return mean and spread of a number over the trainings that have it."""
    if all(row.get(key) is None for row in group):
        return "-"
    whole = _pooled(group, key)
    missing = sum(row["seeds"] for row in group) - whole.count
    text = f"{whole.mean:.{digits}f}"
    text += "" if whole.spread is None else f" ± {whole.spread:.{digits}f}"
    return f"{text} (n {whole.count})" if missing else text


def _pooled(group: Sequence[Mapping[str, Any]], key: str) -> Sample:
    return pool(
        [
            Sample(count=row["seeds"], mean=row[key], spread=row.get(f"{key}_spread"))
            for row in group
            if row.get(key) is not None
        ]
    )


def _updates(group: Sequence[Mapping[str, Any]]) -> str:
    """Return how long recipes were trained; a training that ran out of time is not hidden."""
    least = round(min(row["least_updates"] for row in group))
    mean = statistics.mean(row["updates"] for row in group)
    most = round(max(row["updates"] for row in group))
    return f"{most}" if least == round(mean) == most else f"{least} to {most}"


def main(options: Options) -> int:
    """Print the table, draw the picture."""
    try:
        rows = read_rows(options)
        if options.figure is not None:
            from student_table import draw

            draw(pooled_rows(options), options.figure)
    except FvgenError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(runs_table(rows))
    print(
        f"\nMean ± standard deviation (n - 1) over n trainings, or measurements of a model that no "
        f"run trains; steps: {options.num_steps}, clips: {rows[0]['clips']}; seconds of all clips."
    )
    return 0


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Options, description=__doc__)))
