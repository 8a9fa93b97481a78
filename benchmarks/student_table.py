"""Means and spreads over the seeds of the ablation, as rows, as a table and as a picture."""

import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

METRICS = ("psnr", "psnr_hole", "ssim", "perceptual", "frechet", "sharp_hole")
"""Means over frames; `perceptual` is ST-LPIPS (AlexNet), `frechet` the distance on features of
EfficientNet-Lite0."""

_TITLES = {
    "psnr": "PSNR",
    "psnr_hole": "in holes",
    "ssim": "SSIM",
    "perceptual": "ST-LPIPS",
    "frechet": "Frechet",
    "sharp_hole": "sharp",
}
_TRAINED = ("updates", "judge_turns", "training_seconds")


def collect(
    runs: Mapping[str, Sequence[Sequence[Path]]], results: Mapping[Path, Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """Return a row for each recipe and sampler over the runs that are finished.

    Args:
        runs: The legs of each seed's run, by recipe.
        results: What the finished legs wrote.
    """
    rows = []
    for recipe, chains in runs.items():
        finished = [
            [results[leg] for leg in legs] for legs in chains if all(leg in results for leg in legs)
        ]
        if finished:
            rows += _rows(recipe, finished)
    return rows


def _rows(recipe: str, runs: Sequence[Sequence[Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """Rows of one recipe: what its runs took in all legs, and what their last leg measured."""
    took: dict[str, float] = {}
    for name in _TRAINED:
        sums = [sum(leg.get(name, 0) for leg in legs) for legs in runs]
        took |= {name: statistics.mean(sums), f"least_{name}": min(sums)}
    rows = []
    for measured in zip(*(legs[-1]["rows"] for legs in runs), strict=True):
        first = measured[0]
        row: dict[str, Any] = {"recipe": recipe, "seeds": len(runs), **took}
        row |= {"num_steps": first["num_steps"], "kind": first["kind"], "clips": first["clips"]}
        for name in METRICS:
            row[name], row[f"{name}_spread"] = _mean([m[name] for m in measured])
        gaps = [
            _mean(list(values)) for values in zip(*(m["psnr_gap"] for m in measured), strict=True)
        ]
        row["psnr_gap"], row["psnr_gap_spread"] = [g[0] for g in gaps], [g[1] for g in gaps]
        row["seconds"], row["seconds_spread"] = _mean([m["seconds"] for m in measured])
        rows.append(row)
    return rows


def _mean(values: list[float]) -> tuple[float | None, float | None]:
    """Mean and standard deviation; none for NaN, and no deviation of a single run."""
    if any(math.isnan(v) for v in values):
        return None, None
    return statistics.mean(values), statistics.stdev(values) if len(values) > 1 else None


def _cell(mean: float | None, spread: float | None, digits: int) -> str:
    if mean is None:
        return "-"
    return f"{mean:.{digits}f}" + ("" if spread is None else f" ± {spread:.{digits}f}")


def show(rows: Sequence[Mapping[str, Any]]) -> None:
    """Print a Markdown table."""
    titles = ["recipe", "steps", "seeds", *_TITLES.values(), "gaps <= 15 / 15-30 / > 30 deg"]
    titles += ["updates", "judges' turns", "training s"]
    print("| " + " | ".join(titles) + " |\n|" + "---|" * len(titles))
    for row in rows:
        digits = {"psnr": 2, "psnr_hole": 2, "frechet": 2, "sharp_hole": 2}
        cells = [_cell(row[k], row[f"{k}_spread"], digits.get(k, 3)) for k in METRICS]
        gaps = " / ".join(_cell(g, None, 2) for g in row["psnr_gap"])
        took = [f"{row[name]:.0f}" for name in _TRAINED]
        steps = f"{row['num_steps']} {row['kind']}"
        print(
            "| " + " | ".join([row["recipe"], steps, str(row["seeds"]), *cells, gaps, *took]) + " |"
        )


def draw(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draw PSNR against ST-LPIPS: recipes at their most steps with spreads, and the references."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axis = plt.subplots(figsize=(7.2, 4.6))
    axis.set_prop_cycle(color=plt.colormaps["tab20"].colors)
    groups: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for row in rows:
        is_trained = row["updates"] > 0
        groups.setdefault((row["recipe"], "" if is_trained else row["kind"]), []).append(row)
    for (recipe, kind), group in groups.items():
        shown = group if kind else [max(group, key=lambda row: row["num_steps"])]
        axis.errorbar(
            [row["perceptual"] for row in shown],
            [row["psnr"] for row in shown],
            xerr=[row["perceptual_spread"] or 0.0 for row in shown],
            yerr=[row["psnr_spread"] or 0.0 for row in shown],
            marker="s" if kind else "o",
            linestyle=":" if kind else "none",
            capsize=2,
            label=f"{recipe}, {kind}" if len(group) > 1 and kind else recipe,
        )
        for row in shown if kind else ():
            place = (row["perceptual"], row["psnr"])
            axis.annotate(
                str(row["num_steps"]), place, (3, 3), textcoords="offset points", fontsize=7
            )
    axis.set_xlabel("ST-LPIPS (left is better)")
    axis.set_ylabel("PSNR in dB (up is better)")
    axis.grid(alpha=0.3)
    axis.legend(fontsize=7)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)
