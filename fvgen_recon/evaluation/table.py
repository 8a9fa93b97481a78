"""Results as Markdown tables."""

import math
from collections.abc import Sequence

from fvgen_recon.evaluation.result import FrameResult, RunResult, TrialResult, mean_of

_DIGITS = {
    "psnr": 2,
    "psnr_seen": 2,
    "psnr_unseen": 2,
    "psnr_hole": 2,
    "ssim": 3,
    "ssim_seen": 3,
    "frechet_efficientnet_lite0": 2,
}
DOWNSTREAM = ("psnr", "ssim", "st_lpips_alex")
"""Numbers in each cell of the downstream table."""
TITLES = {
    "psnr": "PSNR",
    "ssim": "SSIM",
    "psnr_seen": "PSNR seen",
    "psnr_unseen": "PSNR unseen",
    "ssim_seen": "SSIM seen",
    "seen_share": "seen",
    "st_lpips_alex": "ST-LPIPS (Alex)",
    "st_lpips_vgg": "ST-LPIPS (VGG)",
    "lpips_alex": "LPIPS (Alex)",
    "lpips_vgg": "LPIPS (VGG)",
    "stlpips_alex": "ST-LPIPS (Alex)",
    "stlpips_alex_hole": "ST-LPIPS holes",
    "psnr_hole": "PSNR holes",
    "sharp_hole": "sharpness holes",
    "sharp_trusted": "sharpness trusted",
    "flicker": "flicker",
    "unsteady": "unsteadiness",
    "frechet_efficientnet_lite0": "Frechet (EfficientNet-Lite0)",
    "kernel_efficientnet_lite0": "kernel (EfficientNet-Lite0)",
}
"""Headings of numbers."""


def number(key: str, value: float) -> str:
    """Return a number as text with as many digits as it deserves."""
    return "-" if math.isnan(value) else f"{value:.{_DIGITS.get(key, 3)}f}"


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def cell(trial: TrialResult | None, keys: Sequence[str] = DOWNSTREAM) -> str:
    """Return a trial's numbers with slashes between them."""
    if trial is None:
        return "failed"
    means = trial.means
    return " / ".join(number(key, means.get(key, math.nan)) for key in keys)


def downstream_table(result: RunResult) -> str:
    """Return PSNR / SSIM / ST-LPIPS by scene, views and method, with means over scenes."""
    methods = result.methods
    table = {(t.scene, t.num_views, t.method): t for t in result.trials}
    rows = []
    for views in sorted({t.num_views for t in result.trials}):
        scenes = sorted({t.scene for t in result.trials if t.num_views == views})
        for scene in scenes:
            rows.append([scene, str(views), *(cell(table.get((scene, views, m))) for m in methods)])
        rows.append(["mean", str(views), *(mean_cell(result, m, views) for m in methods)])
    return markdown(["scene", "views", *methods], rows)


def mean_cell(
    result: RunResult, method: str, num_views: int, keys: Sequence[str] = DOWNSTREAM
) -> str:
    """Return a method's means over scenes; it says where scenes are missing."""
    of_views = [t for t in result.trials if t.num_views == num_views]
    mine = [t for t in of_views if t.method == method]
    if not mine:
        return "-"
    means = mean_of(t.means for t in mine)
    text = " / ".join(number(key, means.get(key, math.nan)) for key in keys)
    missing = len({t.scene for t in of_views}) - len(mine)
    return f"{text} ({missing} scenes failed)" if missing else text


_FRAME_COLUMNS = (
    "psnr",
    "psnr_seen",
    "psnr_unseen",
    "psnr_hole",
    "ssim",
    "stlpips_alex",
    "st_lpips_vgg",
    "lpips_alex",
    "lpips_vgg",
    "frechet_efficientnet_lite0",
    "kernel_efficientnet_lite0",
    "sharp_hole",
    "unsteady",
)


def frame_columns(frames: Sequence[FrameResult]) -> tuple[str, ...]:
    """Return the numbers of the frames table that a run has; not every machine has all networks."""
    known = {key for row in frames for key in row.means}
    return tuple(column for column in _FRAME_COLUMNS if column in known)


def frames_table(result: RunResult) -> str:
    """Return the generators' own frames: means over scenes by views and generator."""
    columns = frame_columns(result.frames)
    head = ["views", "generator", "steps", *(TITLES[c] for c in columns), "s per clip"]
    rows = []
    for views in sorted({row.num_views for row in result.frames}):
        for method in dict.fromkeys(row.method for row in result.frames):
            mine = [r for r in result.frames if (r.num_views, r.method) == (views, method)]
            if mine:
                cells = _frame_cells(mine, columns)
                rows.append([str(views), method, str(mine[0].num_steps), *cells])
    return markdown(head, rows)


def _frame_cells(rows: Sequence[FrameResult], columns: Sequence[str]) -> list[str]:
    means = mean_of(row.means for row in rows)
    seconds = sum(row.seconds_generate for row in rows) / len(rows)
    return [*(number(c, means.get(c, math.nan)) for c in columns), f"{seconds:.2f}"]
