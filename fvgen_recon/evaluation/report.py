"""The parts of a benchmark's page, made from its results."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from fvgen_recon.evaluation import html
from fvgen_recon.evaluation.comparison import caption
from fvgen_recon.evaluation.picture import animation_uri, error_map, jpeg_uri, shrink
from fvgen_recon.evaluation.plot import PARTS, metrics_plot, time_plot
from fvgen_recon.evaluation.result import Failure, FrameResult, TrialResult, mean_of, select
from fvgen_recon.evaluation.table import TITLES, frame_columns, number
from fvgen_recon.io.image import read_image

_LESS_IS_BETTER = ("lpips", "frechet", "kernel", "flicker")
_PICTURE_SIDE = 320
_PANEL_SIDE = 1600
_UNFAIR = (
    "Methods have different scenes here, as some failed or have not been run: their means cannot "
    "be compared."
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Gallery:
    """The pictures of one scene with one number of inputs."""

    scene: str
    num_views: int
    inputs: Mapping[int, Float[Tensor, "3 H W"]]
    """Input photos by view."""
    truths: Mapping[int, Float[Tensor, "3 H W"]]
    """Held-out photos by view."""
    renders: Mapping[str, Mapping[int, Float[Tensor, "3 H W"]]]
    """Each method's renders by view."""


def _best(values: Sequence[float], key: str) -> int | None:
    known = [v for v in values if not math.isnan(v)]
    if len(known) < 2:
        return None
    chosen = min(known) if any(word in key for word in _LESS_IS_BETTER) else max(known)
    return None if known.count(chosen) > 1 else list(values).index(chosen)


def downstream_section(trials: Sequence[TrialResult]) -> list[str]:
    """Return the means over scenes, one table for each number of inputs.

    The best mean is marked where all methods have the same scenes: others cannot be compared.
    """
    parts = [html.heading("Downstream: the splat that comes out")]
    metrics = list(dict.fromkeys(key for trial in trials for key in trial.means))
    for views in sorted({t.num_views for t in trials}):
        of_views = [t for t in trials if t.num_views == views]
        methods = list(dict.fromkeys(t.method for t in of_views))
        means = [mean_of(t.means for t in of_views if t.method == m) for m in methods]
        is_fair = len({frozenset(t.scene for t in of_views if t.method == m) for m in methods}) == 1
        best = []
        for column, key in enumerate(metrics):
            row = _best([m.get(key, math.nan) for m in means], key)
            if is_fair and row is not None and key != "seen_share":
                best.append((row, column + 2))
        rows = [
            [method, str(sum(t.method == method for t in of_views))]
            + [number(key, mean.get(key, math.nan)) for key in metrics]
            for method, mean in zip(methods, means, strict=True)
        ]
        parts.append(html.heading(f"{views} input views, mean over scenes", 3))
        head = ["method", "scenes", *(TITLES.get(key, key) for key in metrics)]
        parts.append(html.table(head, rows, best))
        if not is_fair:
            parts.append(html.note(_UNFAIR))
    return parts


def scene_section(trials: Sequence[TrialResult]) -> list[str]:
    """Return every trial: quality, time by part, memory, size and initialisation."""
    keys = ("psnr", "ssim", "st_lpips_alex")
    head = ["scene", "views", "method", *(TITLES[k] for k in keys)]
    head += [*(f"{part} s" for part in PARTS), "total s", "GiB", "Gaussians", "initialisation"]
    rows = []
    for trial in sorted(trials, key=lambda t: (t.num_views, t.scene)):
        seconds = [trial.seconds.get(part, math.nan) for part in (*PARTS, "total")]
        rows.append(
            [trial.scene, str(trial.num_views), trial.method]
            + [number(key, trial.means.get(key, math.nan)) for key in keys]
            + ["-" if math.isnan(s) else f"{s:.1f}" for s in seconds]
            + ["-" if trial.peak_gib is None else f"{trial.peak_gib:.1f}"]
            + ["-" if trial.num_gaussians is None else f"{trial.num_gaussians:,}"]
            + [trial.initialisation]
        )
    leaks = any(trial.initialisation == "dataset" for trial in trials)
    words = (
        "Points named `dataset` were triangulated with every photo of a scene, held-out ones "
        "included: such rows reproduce others' protocol and say nothing about sparse views."
    )
    rules: dict[str, set[str]] = {}
    for trial in trials:
        rules.setdefault(trial.rule, set()).add(f"{trial.scene} ({trial.num_views})")
    splits = [f"{rule}: {', '.join(sorted(scenes))}" for rule, scenes in sorted(rules.items())]
    return [
        html.heading("Every scene"),
        html.table(head, rows),
        *([html.note(words)] if leaks else []),
        html.note("Splits. " + ". ".join(splits) + "."),
    ]


def gain_section(
    trials: Sequence[TrialResult], *, stock: str = "splatfacto", splat: str = "fvgen-splat-none"
) -> list[str]:
    """Return what the splat for sparse views gains over stock, and what generated frames add."""
    names = {t.method for t in trials}
    others = sorted(name for name in names if name not in {stock, splat})
    if not {stock, splat} <= names:
        return []
    rows = []
    for views in sorted({t.num_views for t in trials}):
        base, ours = (select(trials, method=m, num_views=views) for m in (stock, splat))
        rows.append([str(views), f"{splat} over {stock}", *_gain(base, ours)])
        for name in others:
            mine = select(trials, method=name, num_views=views)
            rows.append([str(views), f"{name} over {splat}", *_gain(ours, mine)])
    head = ["views", "step", "scenes", "PSNR dB", "SSIM", "ST-LPIPS", "worst scene dB"]
    return [html.heading("Where the gain comes from"), html.table(head, rows)]


def _gain(before: Sequence[TrialResult], after: Sequence[TrialResult]) -> list[str]:
    """Return the mean differences over the scenes that both have."""
    old = {t.scene: t.means for t in before}
    pairs = [(old[t.scene], t.means) for t in after if t.scene in old]
    if not pairs:
        return ["0", "-", "-", "-", "-"]
    means = mean_of({k: b[k] - a[k] for k in a if k in b} for a, b in pairs)
    worst = min(b["psnr"] - a["psnr"] for a, b in pairs)
    shown = [(means.get(k, math.nan), d) for k, d in (("psnr", 2), ("ssim", 3))]
    shown += [(means.get("st_lpips_alex", math.nan), 3), (worst, 2)]
    return [str(len(pairs)), *("-" if math.isnan(v) else f"{v:+.{d}f}" for v, d in shown)]


def frames_section(frames: Sequence[FrameResult]) -> list[str]:
    """Return the table of the generators' own frames at held-out poses."""
    columns = frame_columns(frames)
    head = ["views", "generator", "steps", "frames", *(TITLES[c] for c in columns)]
    head += ["points s", "render s/clip", "generate s/clip", "GiB"]
    rows = []
    for views in sorted({row.num_views for row in frames}):
        for method in dict.fromkeys(row.method for row in frames):
            mine = [r for r in frames if (r.num_views, r.method) == (views, method)]
            if mine:
                rows.append([str(views), method, *_frame_cells(mine, columns)])
    words = (
        "Clips pass through the held-out poses between two inputs; the frames there are compared "
        "with the photos. Holes are pixels without a trusted point. Nothing made here is trained "
        "on."
    )
    return [
        html.heading("Frames: the generators' own novel views"),
        html.table(head, rows),
        html.note(words),
    ]


def _frame_cells(rows: Sequence[FrameResult], columns: Sequence[str]) -> list[str]:
    means = mean_of(row.means for row in rows)
    count = len(rows)
    peaks = [row.peak_gib for row in rows if row.peak_gib is not None]
    return [
        str(rows[0].num_steps),
        str(sum(row.num_frames for row in rows)),
        *(number(column, means.get(column, math.nan)) for column in columns),
        f"{sum(r.seconds_points for r in rows) / count:.2f}",
        f"{sum(r.seconds_render for r in rows) / count:.2f}",
        f"{sum(r.seconds_generate for r in rows) / count:.2f}",
        f"{max(peaks):.1f}" if peaks else "-",
    ]


def panel_section(panels: Mapping[Path, str]) -> list[str]:
    """Return the pictures of the generators' own frames, one a scene and number of inputs.

    Args:
        panels: Captions by picture file.
    """
    if not panels:
        return [html.note("The pictures of the generators' frames were not there (--work).")]
    rows = (
        "Each row is a clip: the first input photo, the middle one of the frames that have a photo "
        "by every generator, and the photo."
    )
    figures = [
        html.figure(jpeg_uri(shrink(read_image(path), _PANEL_SIDE)), words)
        for path, words in panels.items()
    ]
    return [html.note(rows), *(html.strip([figure]) for figure in figures)]


def plot_section(trials: Sequence[TrialResult]) -> list[str]:
    """Return quality against the number of inputs, and time by part."""
    known = {key for trial in trials for key in trial.means}
    metrics = [key for key in ("psnr", "ssim", "st_lpips_alex") if key in known]
    parts = [html.heading("Plots"), metrics_plot(trials, metrics)]
    if any(trial.seconds for trial in trials):
        parts.append(time_plot(trials))
    return parts


def failure_section(failures: Sequence[Failure]) -> list[str]:
    """Return what did not work, where there is anything."""
    if not failures:
        return []
    rows = [[f.scene, str(f.num_views), f.method, f.reason] for f in failures]
    return [
        html.heading("Failed"),
        html.table(["scene", "views", "method", "what it said last"], rows),
    ]


def published_section(published: Mapping[str, Any], suite: str) -> list[str]:
    """Return published rows in tables of their own, each with its protocol and source."""
    blocks = [block for block in published["blocks"] if block["suite"] == suite]
    if not blocks:
        return []
    parts = [html.heading("Published by others"), html.note(published["note"])]
    for block in blocks:
        head = ["method"]
        for views in block["views"]:
            ending = f", {views} views" if views else ""
            head += [column + ending for column in block["columns"]]
        rows = [
            [name, *(f"{value:g}" for group in groups for value in group)]
            for name, groups in block["rows"].items()
        ]
        parts.append(html.table(head, rows))
        parts.append(html.note(f"Protocol: {block['protocol']}. Source: {block['source']}."))
    return parts


def gallery_section(gallery: Gallery, trials: Sequence[TrialResult]) -> list[str]:
    """Return inputs, one test view by every method with its errors, and all test views in motion.

    The view shown is the one of middling PSNR by the first method, so that nobody has chosen it.
    """
    parts = [html.heading(f"{gallery.scene}, {gallery.num_views} input views", 3)]
    inputs = [
        html.figure(jpeg_uri(shrink(image, _PICTURE_SIDE // 2)), f"input {index}")
        for index, image in gallery.inputs.items()
    ]
    parts.append(html.strip(inputs))
    view = _middling_view(gallery, trials)
    truth = gallery.truths[view]
    nearest = min(gallery.inputs, key=lambda index: abs(index - view))
    pair = [truth, gallery.inputs[nearest]]
    figures = [_column(pair, f"photo of test view {view}; below it the input {nearest}")]
    for method, renders in gallery.renders.items():
        value = _psnr_of(trials, gallery, method, view)
        words = f"{method}, {value}; below it its error: black is 0, yellow 0.5"
        figures.append(_column([renders[view], error_map(renders[view], truth)], words))
    parts.append(html.strip(figures))
    if len(gallery.truths) > 1:
        words = "all test views: the photo and every method"
        parts.append(html.strip([html.figure(animation_uri(_motion(gallery)), words)]))
    return parts


def _column(pictures: Sequence[Tensor], words: str) -> str:
    """Return pictures on top of each other as one figure."""
    return html.figure(jpeg_uri(torch.cat([shrink(p, _PICTURE_SIDE) for p in pictures], 1)), words)


def _middling_view(gallery: Gallery, trials: Sequence[TrialResult]) -> int:
    first = next(iter(gallery.renders))
    rows = [
        view
        for t in trials
        if (t.scene, t.num_views, t.method) == (gallery.scene, gallery.num_views, first)
        for view in t.views
    ]
    ordered = sorted(rows, key=lambda view: view.psnr)
    return ordered[len(ordered) // 2].view


def _psnr_of(trials: Sequence[TrialResult], gallery: Gallery, method: str, view: int) -> str:
    for t in trials:
        if (t.scene, t.num_views, t.method) == (gallery.scene, gallery.num_views, method):
            return next(f"{v.psnr:.2f} dB" for v in t.views if v.view == view)
    return "not scored"


def _motion(gallery: Gallery) -> list[Tensor]:
    """Return one frame a test view: the photo and every method side by side under their names."""
    frames = []
    for view, truth in gallery.truths.items():
        pictures = {"photo": truth, **{m: r[view] for m, r in gallery.renders.items()}}
        columns = []
        for name, picture in pictures.items():
            small = shrink(picture, _PICTURE_SIDE)
            columns.append(torch.cat([caption(small.shape[-1], name), small], dim=-2))
        frames.append(torch.cat(columns, dim=-1))
    return frames
