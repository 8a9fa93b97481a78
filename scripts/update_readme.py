"""Write the benchmark tables of README.md from the committed results.

`benchmarks/results/readme.json` says which results are shown, as a list of objects with a `title`,
the `results` files and, where not all shall be shown, names of `methods`. A file is a name, or
`{"file": NAME, "views": [3], "methods": [...]}` where only the trials of these numbers of inputs or
of these methods shall count. The text between the markers is made from them and from nothing else.

Usage:
    python scripts/update_readme.py           # writes
    python scripts/update_readme.py --check   # fails where the README is stale
"""

import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import tyro

from fvgen_recon.errors import FvgenError, InputError
from fvgen_recon.evaluation.result import Failure, RunResult, TrialResult, read_result
from fvgen_recon.evaluation.table import frames_table, markdown, mean_cell
from fvgen_recon.io.file import atomic_path, read_json

ROOT = Path(__file__).resolve().parent.parent
START, END = "<!-- benchmark:start -->", "<!-- benchmark:end -->"
INDEX = "readme.json"


@dataclass(frozen=True)
class Options:
    """What to write."""

    check: bool = False
    """Write nothing and fail where the README is not what the results say."""
    readme: Path = ROOT / "README.md"
    """The README."""
    results: Path = ROOT / "benchmarks" / "results"
    """Folder of the results and of `readme.json`."""


def join(results: list[RunResult]) -> RunResult:
    """Put the trials and frames of several runs together.

    A trial that two runs made counts once, as the later one made it, and one that failed in a run
    and not in another has not failed.
    """
    trials = {(t.method, t.scene, t.num_views): t for run in results for t in run.trials}
    failures = {(f.method, f.scene, f.num_views): f for run in results for f in run.failures}
    return replace(
        results[0],
        trials=tuple(trials.values()),
        frames=tuple(row for result in results for row in result.frames),
        failures=tuple(failure for key, failure in failures.items() if key not in trials),
    )


def describe(name: str, result: RunResult) -> str:
    """Return where the numbers of a file come from, as one line."""
    machine, inits = result.machine, sorted({t.initialisation for t in result.trials})
    where = machine["gpu"] or f"{machine['num_cpus']} CPU cores"
    start = f", points to start from: {', '.join(inits)}" if inits else ""
    return (
        f"[`{name}`](benchmarks/results/{name}): {where}, commit {machine['commit']}, "
        f"{machine['date']}{start}; `{machine['command']}`"
    )


def load(source: str | dict[str, Any], folder: Path) -> tuple[str, RunResult]:
    """Return the name of a results file of the index and the part of it that counts."""
    if isinstance(source, str):
        return source, read_result(folder / source)
    result = read_result(folder / source["file"])
    views, methods = source.get("views"), source.get("methods")

    def counts(row: TrialResult | Failure) -> bool:
        is_chosen = methods is None or row.method in methods
        return is_chosen and (views is None or row.num_views in views)

    return source["file"], replace(
        result,
        trials=tuple(filter(counts, result.trials)),
        failures=tuple(filter(counts, result.failures)),
    )


def section(entry: dict[str, Any], folder: Path) -> str:
    """Return one titled table with its origin.

    Raises:
        InputError: The index names no results, or one is missing.
    """
    sources = entry.get("results") or []
    if not sources:
        raise InputError(f"{folder / INDEX} has an entry without results: {entry}.")
    loaded = [load(source, folder) for source in sources]
    result = join([run for _, run in loaded])
    parts = [f"### {entry['title']}", ""]
    if result.trials:
        views = sorted({t.num_views for t in result.trials})
        methods = entry.get("methods") or result.methods
        unknown = set(methods) - set(result.methods)
        if unknown:
            raise InputError(f"No results of {', '.join(sorted(unknown))} are in {sources}.")
        rows = [[m, *(mean_cell(result, m, v) for v in views)] for m in methods]
        num_scenes = len({t.scene for t in result.trials})
        head = ["method", *(f"{v} views" for v in views)]
        words = f"PSNR / SSIM / ST-LPIPS (Alex), mean over {num_scenes} scenes, held-out photos."
        parts += [words, "", markdown(head, rows), ""]
    if result.frames:
        parts += ["The generators' own frames at held-out poses:", "", frames_table(result), ""]
    if result.failures:
        parts += [f"{len(result.failures)} trials failed; the JSON says why.", ""]
    origins = {name: run for name, run in loaded if run.trials or run.frames}
    parts += ["- " + describe(name, run) for name, run in origins.items()]
    return "\n".join(parts)


def benchmark_text(folder: Path) -> str:
    """Return what belongs between the markers."""
    index = read_json(folder / INDEX)
    if not index:
        return "No results have been committed yet."
    return "\n\n".join(section(entry, folder) for entry in index)


def updated(text: str, inside: str) -> str:
    """Return a README with new text between its markers.

    Raises:
        InputError: The markers are not there once each and in order.
    """
    if text.count(START) != 1 or text.count(END) != 1 or text.index(START) > text.index(END):
        raise InputError(f"The README needs {START} and {END} once each, in this order.")
    before, after = text[: text.index(START)], text[text.index(END) + len(END) :]
    return f"{before}{START}\n{inside}\n{END}{after}"


def main(options: Options) -> int:
    """Write the README, or say whether it is stale."""
    try:
        old = options.readme.read_text(encoding="utf-8")
        new = updated(old, benchmark_text(options.results))
    except FvgenError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if options.check:
        if old != new:
            print(
                f"error: {options.readme.name} is stale: run `python scripts/update_readme.py`.",
                file=sys.stderr,
            )
        return int(old != new)
    with atomic_path(options.readme) as temporary:
        temporary.write_text(new, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Options, description=__doc__)))
