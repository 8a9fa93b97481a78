"""Where a trial starts when the scene's own points are asked for."""

import importlib
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest

from fvgen_recon.errors import InputError

BENCHMARKS = Path(__file__).resolve().parents[3] / "benchmarks"


@dataclass
class _Parser:
    """Stands in for a data parser with so many points."""

    num_points: int
    estimator: str = "dataset"

    def setup(self) -> SimpleNamespace:
        if self.num_points == 0:
            raise InputError("The scene holds no points that two of the input views see.")
        return SimpleNamespace(points=range(self.num_points))


@pytest.mark.parametrize(
    ("parser", "estimator", "is_random"),
    [
        (_Parser(300), "dataset", False),
        (_Parser(9), "random", True),
        (_Parser(0), "random", True),
        (_Parser(0, "plane-sweep"), "plane-sweep", False),
    ],
)
def test_too_few_points_of_the_scene_are_no_start(monkeypatch, parser, estimator, is_random):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    trial = importlib.import_module("trial")
    model = SimpleNamespace(random_init=False)
    data = SimpleNamespace(dataparser=parser)
    config = SimpleNamespace(pipeline=SimpleNamespace(datamanager=data, model=model))
    noted = trial.start_anywhere(config)
    assert (parser.estimator, model.random_init) == (estimator, is_random)
    assert noted.startswith(estimator)
    assert (str(parser.num_points) in noted) == is_random
