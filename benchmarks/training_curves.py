"""The committed trainings as one picture: losses and the discriminator's accuracy over updates.

Usage:
    python benchmarks/training_curves.py --out docs/figures/training_curves.png
"""

import io
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import tyro

from fvgen_recon.errors import FvgenError, InputError
from fvgen_recon.io.file import atomic_path, read_json

mpl.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from PIL import Image

HERE = Path(__file__).resolve().parent
ABLATIONS = "student_ablation*.json"
_BEFORE = "_one_step"
"""End of the name of the run before all steps were trained through; it is drawn dotted."""
_ADVERSARIAL = "adversarial"
_RECIPES = {
    r"(.*/)?gan-\d+": _ADVERSARIAL,
    r"gan-\d+/dmd-rkl-\d+": "rkl",
    r"gan-\d+/dmd-\d+": "soft_rkl",
    r"gan-\d+/dmd-inverse-\d+": "1/r",
    r"gan-\d+/dmd-anchored-\d+": "anchored soft_rkl",
    r"gan-\d+/dmd-high-\d+": "soft_rkl at high noise",
    r"dmd-rkl-\d+": "no start, rkl",
    r"dmd2-\d+": "DMD2 joint",
    r"ode-\d+/dmd-rkl-\d+": "CausVid-like",
}
"""What is drawn of the ablation, by the stages that lead to it."""
_NUM_COLOURS = 256
"""Of the picture, which keeps it small."""
_STUDENT, _JUDGE, _ACCURACY = "student/loss", "judge/loss", "disc/accuracy"


@dataclass(frozen=True)
class Options:
    """What to draw."""

    out: Path
    """PNG to write."""
    results: Path = HERE / "results"
    """Folder of the committed JSON files; every file of the ablation in it is drawn."""


@dataclass(frozen=True, kw_only=True)
class Curve:
    """One number over a training."""

    label: str
    x: tuple[float, ...]
    """Updates of the trained network (losses) or of the discriminator (accuracy)."""
    y: tuple[float, ...]
    is_before: bool = False
    """Whether it is of a run that others have replaced since."""


@dataclass(frozen=True, kw_only=True)
class Panel:
    """Curves that share axes."""

    title: str
    x: str
    """What the updates are of."""
    curves: tuple[Curve, ...]
    level: float | None = None
    """A line to compare with, such as the accuracy of a guess."""
    is_log: bool = False
    """Whether the ordinate is logarithmic."""


def pretraining_curves(results: Path) -> tuple[Curve, ...]:
    """Return the losses of the regression and of the three teachers."""
    compact = read_json(results / "compact_training.json")["curve"]
    later = read_json(results / "teacher_training.json")
    return (
        _pretraining("regression", [p for p in compact if p["stage"] == "regression"]),
        _pretraining("teacher", [p for p in compact if p["stage"] == "teacher"]),
        _pretraining("teacher, sharp (ships)", later["sharp"]["curve"]),
        _pretraining("teacher, firm", later["firm"]["curve"]),
    )


def _pretraining(label: str, points: Sequence[Mapping[str, Any]]) -> Curve:
    x, y = zip(*((point["step"], point["loss"]) for point in points), strict=True)
    return Curve(label=label, x=x, y=y)


def distillation_curves(results: Path, name: str, *, by: str) -> tuple[Curve, ...]:
    """Return one number of the first whole distillation, a curve a stage.

    Args:
        results: Folder of the JSON files.
        name: Which number.
        by: `step` for updates of the student, `turns` for those of the judges.
    """
    points = read_json(results / "student_training.json")["curve"]
    curves = []
    for stage in dict.fromkeys(point["stage"] for point in points):
        pairs = [
            (point[by], point["scalars"][name])
            for point in points
            if point["stage"] == stage and name in point["scalars"]
        ]
        if pairs:
            x, y = zip(*pairs, strict=True)
            curves.append(Curve(label=stage, x=x, y=y))
    return tuple(curves)


def ablation_curves(results: Path, name: str, *, by: str) -> tuple[Curve, ...]:
    """Return one number of the ablation's legs; a leg that goes on counts on from the one before.

    Args:
        results: Folder of the JSON files.
        name: Which number.
        by: `step` for updates of the student, `turns` for those of the judges.
    """
    curves = []
    for path in sorted(results.glob(ABLATIONS)):
        legs = read_json(path)["legs"]
        for place, leg in legs.items():
            stages, _, seed = place.rpartition("/")
            label = next((v for k, v in _RECIPES.items() if re.fullmatch(k, stages)), None)
            start = legs.get(f"{stages.rpartition('/')[0]}/{seed}")
            shift = start["curve"][by][-1] if start else 0
            values = leg["curve"].get(name, ())
            pairs = [
                (step + shift, value)
                for step, value in zip(leg["curve"][by], values, strict=bool(values))
                if value is not None
            ]
            if label and pairs:
                x, y = zip(*pairs, strict=True)
                is_before = path.stem.endswith(_BEFORE)
                curves.append(Curve(label=label, x=x, y=y, is_before=is_before))
    return tuple(sorted(curves, key=lambda curve: list(_RECIPES.values()).index(curve.label)))


def panels_of(results: Path) -> tuple[Panel, ...]:
    """Return what is drawn.

    Raises:
        InputError: A file is missing or has another form.
    """
    student, judges = "updates of the student", "updates of the discriminator"
    try:
        losses = ablation_curves(results, _STUDENT, by="step")
        return (
            Panel(
                title="regression and teachers: loss",
                x="updates",
                curves=pretraining_curves(results),
                is_log=True,
            ),
            Panel(
                title="first distillation: student's loss",
                x=student,
                curves=distillation_curves(results, _STUDENT, by="step"),
            ),
            Panel(
                title="first distillation: discriminator's accuracy",
                x=judges,
                curves=distillation_curves(results, _ACCURACY, by="turns"),
                level=0.5,
            ),
            Panel(
                title="ablation: student's loss, adversarial",
                x=student,
                curves=tuple(curve for curve in losses if curve.label == _ADVERSARIAL),
            ),
            Panel(
                title="ablation: student's loss, matching",
                x=student,
                curves=tuple(curve for curve in losses if curve.label != _ADVERSARIAL),
                is_log=True,
            ),
            Panel(
                title="ablation: discriminator's accuracy",
                x=judges,
                curves=ablation_curves(results, _ACCURACY, by="turns"),
                level=0.5,
            ),
        )
    except KeyError as error:
        raise InputError(
            f"Trainings as they are committed were expected in {results}: one has no {error}."
        ) from error


def draw(panels: Sequence[Panel], path: Path) -> None:
    """Draw panels, three a row."""
    figure, axes = plt.subplots(-(-len(panels) // 3), 3, figsize=(13, 7.4), squeeze=False)
    for axis, panel in zip(axes.flat, panels, strict=True):
        _draw_panel(axis, panel)
    figure.tight_layout()
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=90, format="png")
    plt.close(figure)
    picture = (
        Image.open(buffer).convert("RGB").quantize(_NUM_COLOURS, method=Image.Quantize.FASTOCTREE)
    )
    with atomic_path(path) as temporary:
        picture.save(temporary, format="PNG", optimize=True)


def _draw_panel(axis: Axes, panel: Panel) -> None:
    colours = {
        label: f"C{i}" for i, label in enumerate(dict.fromkeys(c.label for c in panel.curves))
    }
    for label, colour in colours.items():
        axis.plot([], [], color=colour, label=label)
    for curve in panel.curves:
        axis.plot(
            curve.x,
            curve.y,
            color=colours[curve.label],
            linestyle=":" if curve.is_before else "-",
            marker=".",
            markersize=4,
            linewidth=1,
        )
    if panel.level is not None:
        axis.axhline(panel.level, color="grey", linestyle=":", linewidth=1)
    if panel.is_log:
        axis.set_yscale("log")
    axis.set_title(panel.title, fontsize=10)
    axis.set_xlabel(panel.x, fontsize=9)
    axis.grid(alpha=0.3)
    axis.legend(fontsize=6.5, framealpha=0.6, ncols=2 if len(colours) > 4 else 1)


def main(options: Options) -> int:
    """Draw the picture, or say in one sentence why not."""
    try:
        draw(panels_of(options.results), options.out)
    except FvgenError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{options.out}: {options.out.stat().st_size / 1000:.0f} kB")
    return 0


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Options, description=__doc__)))
