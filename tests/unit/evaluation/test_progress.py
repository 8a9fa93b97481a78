"""What a benchmark says about the time that is left."""

import importlib
from pathlib import Path

import pytest
from scene_folder import write_scene

BENCHMARKS = Path(__file__).resolve().parents[3] / "benchmarks"


class _Clock:
    """A clock that is set by hand."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_what_was_finished_before_says_nothing_about_the_rest(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    clock = _Clock()
    progress = importlib.import_module("progress").Progress([True, True, False, True, False], clock)
    assert progress.step("a") == "1 of 5 done (a)"
    assert progress.step("b") == "2 of 5 done (b)"
    clock.now += 30
    assert progress.step("c") == "3 of 5 done (c), about 30 s left"
    assert progress.step("d") == "4 of 5 done (d), about 30 s left"
    clock.now += 20
    assert progress.step("e") == "5 of 5 done (e), about 0 s left"


def test_a_run_that_has_nothing_left_to_make_says_so_at_once(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    progress = importlib.import_module("progress").Progress([True, True])
    assert progress.step("a").endswith("about 0 s left")


@pytest.mark.parametrize("long_side", [0, 16])
def test_a_trial_of_another_size_is_not_finished(monkeypatch, tmp_path, long_side):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    plan_cases = importlib.import_module("case").plan_cases
    trials_of_case = importlib.import_module("job").trials_of_case
    write_scene(tmp_path / "scenes" / "row", num_views=8)

    def plan(side: int):
        (case,) = plan_cases(
            "folder", tmp_path / "scenes", views=(3,), scenes=(), long_side=side, work=tmp_path
        )
        said = {
            "methods": "fvgen-splat-none", "label": "", "weights": (), "iterations": 1,
            "estimator": "random", "seed": 0, "overrides": (), "device": "cpu",
        }  # fmt: skip
        return trials_of_case(case, said)[0]

    first = plan(0)
    assert not first.is_finished
    first.case.fold()
    first.folder.mkdir()
    first.score_file.write_text("{}")
    assert first.is_finished
    assert plan(long_side).is_finished == (long_side == 0)
