"""Draw a page from benchmark results: tables, plots, pictures, all inside one file.

Usage:
    python benchmarks/report.py --results benchmarks/results/folder.json --out outputs/folder.html
"""

import json
import sys
from dataclasses import dataclass
from pathlib import Path

import tyro
from case import FROZEN, Case, numbers, plan_cases
from frames import PANEL
from job import RENDERS

from fvgen_recon.errors import FvgenError, InputError
from fvgen_recon.evaluation import html
from fvgen_recon.evaluation.fold import held_out_scene
from fvgen_recon.evaluation.report import (
    Gallery,
    downstream_section,
    failure_section,
    frames_section,
    gain_section,
    gallery_section,
    panel_section,
    plot_section,
    published_section,
    scene_section,
)
from fvgen_recon.evaluation.result import RunResult, read_result
from fvgen_recon.evaluation.score import read_renders
from fvgen_recon.io.file import atomic_path
from fvgen_recon.io.scenes import load_scene

PUBLISHED = Path(__file__).resolve().parent / "published.json"


@dataclass(frozen=True)
class Options:
    """What to draw."""

    results: tuple[Path, ...]
    """JSON files of runs; several are put on one page."""
    out: Path
    """HTML file to write."""
    data: Path | None = None
    """Folder of the scenes, where it is not the run's any more."""
    work: Path | None = None
    """Folder of the trials and of the generators' frames, likewise."""
    pictures: bool = True
    """Whether to show pictures, which need the scenes and the trials; those of the generators'
    frames need only their folder."""


def cases_of(result: RunResult, options: Options) -> list[Case]:
    """Return the cases of a run.

    Raises:
        InputError: Its scenes are not there; results hold no absolute path to them.
    """
    settings = result.settings
    splits, data = Path(settings["splits"]), options.data or Path(settings["data"])
    if not data.is_dir():
        raise InputError(
            f"The scenes of this run are not in {data}: say where with --data (and with --work "
            "where its trials are), or draw the page with --no-pictures."
        )
    return plan_cases(
        result.suite,
        data,
        views=numbers(settings["views"]),
        scenes=tuple(filter(None, settings["scenes"].split(","))),
        long_side=settings["long_side"],
        work=options.work or Path(settings["work"]),
        frozen=splits if splits.is_dir() else FROZEN,
    )


def find_panels(results: list[RunResult], options: Options) -> dict[Path, str]:
    """Return the pictures of the generators' frames with captions; missing ones are left out."""
    found = {}
    for result in results:
        work = options.work or Path(result.settings["work"])
        for row in result.frames:
            path = work / result.suite / row.folder / PANEL
            if row.folder and path.is_file():
                found[path] = f"{row.scene}, {row.num_views} input views"
    return found


def make_galleries(results: list[RunResult], options: Options) -> list[Gallery]:
    """Open photos and renders; scenes whose renders are not there are left out."""
    renders: dict[tuple[str, int], dict] = {}
    cases: dict[tuple[str, int], Case] = {}
    for result in results:
        for case in cases_of(result, options):
            key = (case.scene, case.num_views)
            cases.setdefault(key, case)
            mine = [t for t in result.trials if (t.scene, t.num_views) == key]
            for trial in mine:
                folder = case.folder.parent / trial.folder / RENDERS
                if folder.is_dir():
                    images = read_renders(folder, case.split.test, case.test_names)
                    found = dict(zip(case.split.test, images, strict=True))
                    renders.setdefault(key, {})[trial.method] = found
    return [_gallery(cases[key], found) for key, found in sorted(renders.items())]


def _gallery(case: Case, renders: dict) -> Gallery:
    fold = case.fold()
    size = {"height": fold.height, "width": fold.width}
    inputs = load_scene(case.capture, fold.inputs, **size).images
    truths = held_out_scene(case.capture, fold).images
    return Gallery(
        scene=case.scene,
        num_views=case.num_views,
        inputs=dict(zip(fold.inputs, inputs, strict=True)),
        truths=dict(zip(fold.test, truths, strict=True)),
        renders=renders,
    )


def write_report(options: Options) -> None:
    """Write the page.

    Raises:
        FvgenError: A result, a scene or a photo is missing.
    """
    results = [read_result(path) for path in options.results]
    trials = [trial for result in results for trial in result.trials]
    frames = [row for result in results for row in result.frames]
    failures = [row for result in results for row in result.failures]
    parts = [html.note(_origin(result)) for result in results]
    if trials:
        parts += downstream_section(trials) + gain_section(trials) + plot_section(trials)
        parts += scene_section(trials)
    if frames:
        parts += frames_section(frames)
    if frames and options.pictures:
        parts += panel_section(find_panels(results, options))
    parts += failure_section(failures)
    suite = results[0].suite
    parts += published_section(json.loads(PUBLISHED.read_text()), suite)
    if options.pictures and trials:
        galleries = make_galleries(results, options)
        parts.append(html.heading("Pictures"))
        parts += [part for gallery in galleries for part in gallery_section(gallery, trials)]
        if not galleries:
            parts.append(html.note("The renders of this run were not there (--work)."))
    with atomic_path(options.out) as temporary:
        temporary.write_text(html.page(f"fvgen-recon benchmark: {suite}", parts))


def _origin(result: RunResult) -> str:
    machine = result.machine
    where = machine["gpu"] or f"{machine['num_cpus']} CPU cores ({machine['cpu']})"
    return (
        f"Measured on {where}, torch {machine['torch']}, commit {machine['commit']}, "
        f"{machine['date']}, with: {machine['command']}"
    )


def main(options: Options) -> int:
    """Write the page, or say in one sentence why not."""
    try:
        write_report(options)
    except FvgenError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{options.out}: {options.out.stat().st_size / 2**20:.1f} MiB")
    return 0


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Options, description=__doc__)))
