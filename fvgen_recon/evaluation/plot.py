"""Plots of benchmark results as inline SVG."""

import io
from collections.abc import Sequence

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from fvgen_recon.evaluation.result import TrialResult, mean_of, select
from fvgen_recon.evaluation.table import TITLES

PARTS = ("points", "plan", "render", "generate", "train")
"""Parts of a trial's time, in the order in which they happen."""


def _svg(figure: Figure) -> str:
    """Return a figure as an SVG element and close it."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", bbox_inches="tight", metadata={"Date": None})
    plt.close(figure)
    text = buffer.getvalue()
    return text[text.index("<svg") :]


def metrics_plot(trials: Sequence[TrialResult], metrics: Sequence[str]) -> str:
    """Plot means over scenes against the number of inputs, one panel a metric."""
    methods = list(dict.fromkeys(trial.method for trial in trials))
    views = sorted({trial.num_views for trial in trials})
    figure, axes = plt.subplots(1, len(metrics), figsize=(4 * len(metrics), 3), squeeze=False)
    for axis, metric in zip(axes[0], metrics, strict=True):
        for method in methods:
            parts = [select(trials, method=method, num_views=count) for count in views]
            points = [
                (count, mean_of(t.means for t in part).get(metric))
                for count, part in zip(views, parts, strict=True)
                if part
            ]
            axis.plot(*zip(*points, strict=True), marker="o", label=method)
        axis.set_title(TITLES.get(metric, metric))
        axis.set_xticks(views)
        axis.set_xlabel("input views")
        axis.grid(alpha=0.3)
    axes[0][0].legend(fontsize=8)
    return _svg(figure)


def time_plot(trials: Sequence[TrialResult]) -> str:
    """Plot the mean seconds of each part as one bar a method and number of inputs."""
    keys = list(dict.fromkeys((t.method, t.num_views) for t in trials if t.seconds))
    figure, axis = plt.subplots(figsize=(8, 0.35 * len(keys) + 1))
    left = [0.0] * len(keys)
    for part in PARTS:
        widths = [
            sum(t.seconds.get(part, 0.0) for t in rows) / len(rows)
            for rows in (select(trials, method=m, num_views=v) for m, v in keys)
        ]
        axis.barh(range(len(keys)), widths, left=left, label=part)
        left = [a + b for a, b in zip(left, widths, strict=True)]
    axis.set_yticks(range(len(keys)), [f"{method}, {views} views" for method, views in keys])
    axis.invert_yaxis()
    axis.set_xlabel("seconds a scene")
    axis.legend(fontsize=8)
    return _svg(figure)
