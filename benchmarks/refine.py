r"""Render the splat of a finished trial again: with a generator's frame in each view, or as a file.

Nothing is trained. The splat comes from the trial's checkpoint, photos and points from the fold,
in which no held-out photo exists.

Usage:
    python benchmarks/refine.py --fold outputs/fold --trained outputs/trial --out outputs/refined \
        --overrides pipeline.refine.generator=regression
    python benchmarks/refine.py --fold outputs/fold --trained outputs/trial --out outputs/file \
        --file black
"""

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import tyro
import yaml
from methods import replace_missing_lpips
from trial import apply_override, finish, render_test_views

from fvgen_recon.errors import InputError
from fvgen_recon.evaluation.fold import read_fold
from fvgen_recon.io.file import read_json


@dataclass(frozen=True)
class Options:
    """Which splat is rendered, and how."""

    fold: Path
    """Folder of the fold."""
    trained: Path
    """Folder of the finished trial."""
    out: Path
    """Folder for the rendered test views and `trial.json`."""
    method: str = "refined"
    """Name in the results."""
    device: str = "cuda" if torch.cuda.is_available() else "cpu"
    """Where to render."""
    overrides: tuple[str, ...] = ("pipeline.refine.generator=regression",)
    """Settings of the configuration as `path.to.field=value`."""
    file: Literal["", "black", "white"] = ""
    """Shows, instead of refined renders, what viewers of an exported file do: all Gaussians at
    once on this colour, holes not filled."""


class TimedSource:
    """A source of frames under a stopwatch."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner
        self.settings = inner.settings
        self.seconds: list[float] = []
        """What each view took beside the splat's render."""

    def frame(self, camera: Any) -> Any:
        """Return what the source returns."""
        start = _now()
        frame = self.inner.frame(camera)
        self.seconds.append(_now() - start)
        return frame

    def fuse(self, view: Any) -> Any:
        """Return what the source returns; counts for the view whose frame was made last."""
        start = _now()
        image = self.inner.fuse(view)
        self.seconds[-1] += _now() - start
        return image


def _now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def load_pipeline(options: Options) -> Any:
    """Return the pipeline of a finished trial with what refines its renders.

    Raises:
        FvgenError: The trial is not there, its method cannot be refined, or weights are missing.
    """
    from fvgen_nerfstudio.checkpoint import find_checkpoint, read_checkpoint
    from fvgen_nerfstudio.pipeline import FvgenPipelineConfig

    configs = sorted((options.trained / "run").glob("*/trial/config.yml"))
    if len(configs) != 1:
        raise InputError(f"A finished trial was expected in {options.trained} and is not there.")
    # nerfstudio's own format, written by the trial a moment ago: it names classes.
    config = yaml.load(configs[0].read_text(), Loader=yaml.Loader)
    if not isinstance(config.pipeline, FvgenPipelineConfig):
        raise InputError(f"Only splats of fvgen-splat can be refined: {config.method_name} came.")
    for override in () if options.file else options.overrides:
        apply_override(config, override)
    replace_missing_lpips()
    pipeline = config.pipeline.setup(device=options.device, test_mode="inference")
    state = read_checkpoint(find_checkpoint(configs[0].parent / "nerfstudio_models", None))
    pipeline.load_pipeline(state["pipeline"], state["step"])
    return pipeline


def show_file(model: Any, color: str) -> None:
    """Let a splat render as a viewer draws its exported file, in the exposure of the photos."""
    from nerfstudio.utils.colors import get_color

    model.eval()
    model.frame_source = None  # A file holds no frames, whatever the run was set to show.
    model.gauss_params["opacities"].data = model.opacities.data  # Those that are exported.
    model.config.num_members, model.config.near = 1, 0.0
    model.config.unknown, model.config.background_color = "color", color
    model.background_color = get_color(color)


def run(options: Options, say: Callable[[str], None] = print) -> dict[str, Any]:
    """Render the test views and return what `trial.json` holds."""
    fold = read_fold(options.fold)
    note = read_json(options.trained / "trial.json")
    if options.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    start = _now()
    pipeline = load_pipeline(options)
    loading = _now() - start
    if options.file:
        show_file(pipeline.model, options.file)
        render_test_views(pipeline, fold, options.out / "renders")
        return {**note, "method": options.method}
    source = TimedSource(pipeline.model.frame_source)
    pipeline.model.frame_source = source
    render_test_views(pipeline, fold, options.out / "renders")
    peak = torch.cuda.max_memory_allocated() / 2**30 if options.device == "cuda" else None
    spent = sum(source.seconds)
    say(f"{options.method}: {spent:.1f} s for {len(source.seconds)} views")
    seconds = {
        **note["seconds"],
        "refine_load": loading,
        "refine": spent,
        "refine_view": spent / max(1, len(source.seconds)),
        "total": note["seconds"]["total"] + loading + spent,
    }
    return {
        **note,
        "method": options.method,
        "overrides": [*note["overrides"], *options.overrides],
        "seconds": seconds,
        "peak_gib": None if peak is None else max(peak, note["peak_gib"] or 0.0),
    }


def main(options: Options) -> int:
    """Render the test views and write `trial.json`."""
    return finish(lambda: run(options), options.out)


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Options, description=__doc__)))
