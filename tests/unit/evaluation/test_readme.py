"""The README shows what the committed results say."""

import json
import math
from pathlib import Path

import pytest

from fvgen_recon.errors import InputError
from fvgen_recon.evaluation.result import (
    Failure,
    FrameResult,
    RunResult,
    TrialResult,
    read_result,
    write_result,
)
from fvgen_recon.evaluation.score import ViewScore
from fvgen_recon.evaluation.table import downstream_table
from scripts.update_readme import END, START, Options, main

MACHINE = {
    "gpu": None,
    "num_cpus": 2,
    "commit": "abc1234",
    "date": "2026-01-01",
    "command": "python benchmarks/run.py folder --data x",
}


def make_trial(scene: str, method: str, psnr: float, num_views: int = 3) -> TrialResult:
    view = ViewScore(
        view=4,
        psnr=psnr,
        ssim=0.5,
        psnr_seen=psnr,
        psnr_unseen=math.nan,
        ssim_seen=0.5,
        seen_share=1.0,
        distances={"st_lpips_alex": 0.25},
    )
    return TrialResult(
        scene=scene,
        method=method,
        num_views=num_views,
        inputs=(0, 1, 2),
        rule="by hand",
        height=8,
        width=8,
        initialisation="plane-sweep",
        iterations=10,
        seed=0,
        overrides=(),
        seconds={"train": 1.0, "total": 1.0},
        peak_gib=None,
        num_gaussians=5,
        folder="",
        views=(view,),
        frechet=None,
        kernel=None,
    )


def make_run(*trials: TrialResult, failures: tuple[Failure, ...] = ()) -> RunResult:
    frame = FrameResult(
        scene="a",
        method="fill",
        num_views=3,
        num_steps=0,
        num_clips=1,
        num_frames=2,
        seconds_points=1.0,
        seconds_render=0.1,
        seconds_generate=0.2,
        peak_gib=None,
        means={"psnr": 12.5, "psnr_hole": math.nan},
    )
    return RunResult(
        suite="folder",
        machine=MACHINE,
        settings={},
        trials=trials,
        frames=(frame,),
        failures=failures,
    )


@pytest.fixture
def options(tmp_path: Path) -> Options:
    results = tmp_path / "results"
    trials = (make_trial("a", "ours", 20.0), make_trial("b", "ours", 30.0))
    write_result(results / "run.json", make_run(*trials, make_trial("a", "stock", 10.0)))
    (results / "readme.json").write_text(json.dumps([{"title": "Few", "results": ["run.json"]}]))
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{START}\nlast year\n{END}\nafter\n")
    return Options(readme=readme, results=results)


def test_the_table_is_written_between_the_markers(options: Options) -> None:
    assert main(options) == 0
    text = options.readme.read_text()
    assert text.startswith(f"before\n{START}\n### Few\n")
    assert text.endswith(f"{END}\nafter\n")
    assert "| ours | 25.00 / 0.500 / 0.250 |" in text
    assert "| stock | 10.00 / 0.500 / 0.250 (1 scenes failed) |" in text
    assert "12.50" in text
    assert "2 CPU cores, commit abc1234" in text
    assert "last year" not in text


def test_a_stale_readme_fails_and_a_fresh_one_does_not(options: Options) -> None:
    check = Options(check=True, readme=options.readme, results=options.results)
    before = options.readme.read_text()
    assert main(check) == 1
    assert options.readme.read_text() == before
    main(options)
    assert main(check) == 0
    write_result(options.results / "run.json", make_run(make_trial("a", "ours", 21.0)))
    assert main(check) == 1


def test_runs_fill_each_others_gaps_and_methods_can_be_chosen(options: Options) -> None:
    more = make_run(make_trial("b", "stock", 20.0), make_trial("a", "ours", 29.0))
    write_result(options.results / "more.json", more)
    entry = {"title": "Few", "results": ["run.json", "more.json"], "methods": ["stock"]}
    (options.results / "readme.json").write_text(json.dumps([entry]))
    assert main(options) == 0
    text = options.readme.read_text()
    assert "| stock | 15.00 / 0.500 / 0.250 |" in text
    assert "failed" not in text
    assert "| ours |" not in text


def test_a_part_of_a_file_can_be_chosen_and_later_files_count_more(options: Options) -> None:
    again = (make_trial("a", "ours", 40.0), make_trial("b", "ours", 40.0))
    other = (make_trial("a", "stock", 99.0), make_trial("a", "ours", 99.0, num_views=9))
    failure = Failure(scene="b", method="ours", num_views=9, reason="it broke")
    write_result(options.results / "more.json", make_run(*again, *other, failures=(failure,)))
    part = {"file": "more.json", "views": [3], "methods": ["ours"]}
    entry = {"title": "Few", "results": ["run.json", part]}
    (options.results / "readme.json").write_text(json.dumps([entry]))
    assert main(options) == 0
    text = options.readme.read_text()
    assert "| ours | 40.00 / 0.500 / 0.250 |" in text
    assert "| stock | 10.00 / 0.500 / 0.250 (1 scenes failed) |" in text
    assert "9 views" not in text
    assert "trials failed" not in text
    assert "[`more.json`]" in text


def test_a_method_without_results_gets_a_sentence(options: Options, capsys) -> None:
    entry = {"title": "Few", "results": ["run.json"], "methods": ["theirs"]}
    (options.results / "readme.json").write_text(json.dumps([entry]))
    assert main(options) == 2
    assert "No results of theirs" in capsys.readouterr().err


def test_a_readme_without_markers_gets_a_sentence(options: Options, capsys) -> None:
    options.readme.write_text("nothing")
    assert main(options) == 2
    assert "once each" in capsys.readouterr().err


def test_results_survive_a_round_trip(tmp_path: Path) -> None:
    failure = Failure(scene="a", method="x", num_views=3, reason="it broke")
    run = make_run(make_trial("a", "ours", 20.0), failures=(failure,))
    write_result(tmp_path / "run.json", run)
    text = (tmp_path / "run.json").read_text()
    assert "NaN" not in text
    again = read_result(tmp_path / "run.json")
    assert again.failures == run.failures
    assert again.trials[0].means["psnr"] == 20.0
    assert math.isnan(again.trials[0].views[0].psnr_unseen)
    assert downstream_table(again) == downstream_table(run)


def test_results_of_another_form_get_a_sentence(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    write_result(path, make_run(make_trial("a", "ours", 20.0)))
    content = json.loads(path.read_text())
    for broken in ({**content, "schema_version": 1}, {**content, "trials": [{}]}, []):
        path.write_text(json.dumps(broken))
        with pytest.raises(InputError, match="run the benchmark again"):
            read_result(path)


def test_the_committed_readme_is_fresh() -> None:
    assert main(Options(check=True)) == 0
