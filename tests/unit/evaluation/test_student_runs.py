"""Runs of the ablation put together: spreads are those of all trainings, and nothing is hidden."""

import json
import statistics
from pathlib import Path
from typing import Any

import pytest

from benchmarks.student_runs import COLUMNS, Options, Sample, main, pool, pooled_rows
from benchmarks.student_table import collect

FIRST, SECOND = [1.0, 2.0, 6.0], [4.0, 9.0]


def sample(values: list[float]) -> Sample:
    spread = statistics.stdev(values) if len(values) > 1 else None
    return Sample(count=len(values), mean=statistics.mean(values), spread=spread)


def make_row(recipe: str, values: list[float], num_steps: int = 4, **more: Any) -> dict[str, Any]:
    of_all = sample(values)
    numbers = {key: of_all.mean for key in COLUMNS}
    numbers |= {f"{key}_spread": of_all.spread for key in COLUMNS}
    return {
        "recipe": recipe, "kind": "sde", "num_steps": num_steps, "clips": 36, "updates": 70.0,
        "least_updates": 70, "seeds": len(values), **numbers, **more,
    }  # fmt: skip


def write_run(path: Path, *rows: dict[str, Any]) -> Path:
    path.write_text(json.dumps({"rows": rows, "legs": {}}))
    return path


def test_pooled_runs_are_as_one_run_of_all_trainings() -> None:
    together = [*FIRST, *SECOND]
    for parts in ((FIRST, SECOND), ([1.0], [2.0, 6.0], [4.0], [9.0])):
        whole = pool([sample(part) for part in parts])
        assert whole.count == 5
        assert whole.mean == pytest.approx(statistics.mean(together))
        assert whole.spread == pytest.approx(statistics.stdev(together))
    assert pool([sample([3.0])]) == Sample(count=1, mean=3.0, spread=None)
    # What a run has not kept is not made up.
    assert pool([Sample(count=2, mean=1.0, spread=None), sample([3.0])]).spread is None


def test_one_line_a_recipe_over_all_files(tmp_path: Path, capsys) -> None:
    first = write_run(
        tmp_path / "a.json",
        make_row("GAN only", FIRST),
        make_row("GAN only", FIRST, num_steps=1),
        make_row("no start", [2.0]),
    )
    short = make_row("GAN only", SECOND, updates=61.5, least_updates=53, ssim=None)
    second = write_run(tmp_path / "b.json", short)
    assert main(Options(results=(first, second))) == 0
    lines = capsys.readouterr().out.splitlines()
    head, gan, alone = (lines[i].strip("| ").split(" | ") for i in (0, 2, 3))
    assert head[:5] == ["recipe", "sampler", "runs", "n", "updates"]
    assert head[5:] == ["PSNR", "SSIM", "ST-LPIPS", "Frechet", "hole sharpness", "seconds"]
    assert gan[:5] == ["GAN only", "sde", "2", "5", "53 to 70"]
    assert gan[5] == "4.40 ± 3.21"
    assert gan[6] == "3.000 ± 2.646 (n 3)"  # the second run has none
    assert gan[-1] == "4.40 ± 3.21"
    assert alone[:5] == ["no start", "sde", "1", "1", "70"]
    assert alone[5:] == ["2.00", "2.000", "2.000", "2.0", "2.00", "2.00"]
    assert len(lines) == 6


def test_a_run_keeps_the_spread_of_every_column() -> None:
    """Else the table of several runs cannot say it."""
    measured = [
        {"rows": [{**make_row("", [value]), "psnr_hole": 1.0, "psnr_gap": [1.0]}]}
        for value in SECOND
    ]
    legs = {Path(str(seed)): leg for seed, leg in enumerate(measured)}
    (row,) = collect({"GAN only": [[leg] for leg in legs]}, legs)
    assert all(row[f"{key}_spread"] == statistics.stdev(SECOND) for key in COLUMNS)


@pytest.mark.parametrize(
    ("rows", "num_steps", "sentence"),
    [
        ([make_row("a", [1.0]), make_row("b", [1.0], clips=12)], 4, "12 and 36 came"),
        ([make_row("a", [1.0])], 2, "No row at 2 steps"),
        (None, 4, "student_ablation.py wrote was expected"),
    ],
)
def test_what_cannot_be_compared_is_refused(tmp_path, capsys, rows, num_steps, sentence) -> None:
    path = tmp_path / "a.json"
    path.write_text("{}") if rows is None else write_run(path, *rows)
    assert main(Options(results=(path,), num_steps=num_steps)) == 2
    assert sentence in capsys.readouterr().err


def test_the_picture_shows_each_recipe_over_all_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(Path(__file__).resolve().parents[3] / "benchmarks")
    first = write_run(tmp_path / "a.json", make_row("GAN", [1.0, 3.0]), make_row("GAN", [9.0], 2))
    second = write_run(tmp_path / "b.json", make_row("GAN", [5.0]))
    options = Options(results=(first, second), figure=tmp_path / "f.png")
    rows = {row["num_steps"]: row for row in pooled_rows(options)}
    assert rows[4]["psnr"] == pytest.approx(3.0)
    assert rows[4]["psnr_spread"] == pytest.approx(2.0)
    assert (rows[2]["psnr"], rows[2]["psnr_spread"]) == (9.0, None)
    assert main(options) == 0
    assert (tmp_path / "f.png").stat().st_size > 5000
