"""What a trial is told: settings by name, and where it starts."""

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


def test_overrides_keep_the_type_of_a_setting(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    trial = importlib.import_module("trial")
    method = importlib.import_module("fvgen_nerfstudio.method")
    config = method.fvgen_splat().config
    parser, model = config.pipeline.datamanager.dataparser, config.pipeline.model
    for override in (
        "pipeline.datamanager.dataparser.ensemble=mvs,plane-sweep",
        "pipeline.model.seed_opacity=0.1,0.3",
        "pipeline.datamanager.dataparser.match_exposure=False",
        "max_num_iterations=70",
    ):
        trial.apply_override(config, override)
    assert parser.ensemble == ("mvs", "plane-sweep")
    assert model.seed_opacity == (0.1, 0.3)
    assert parser.match_exposure is False
    assert config.max_num_iterations == 70
    trial.apply_override(config, "pipeline.datamanager.dataparser.ensemble=")
    assert parser.ensemble == ()
    with pytest.raises(InputError, match="no field"):
        trial.apply_override(config, "pipeline.model.nothing=1")


def test_a_seed_reaches_all_that_chance_decides(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    trial = importlib.import_module("trial")
    fold = SimpleNamespace(folder=tmp_path, split=tmp_path / "split.json")
    seeds = []
    for seed in (0, 3):
        options = trial.Options(fold=tmp_path, out=tmp_path, device="cpu", seed=seed)
        data = trial.build_config(options, fold).pipeline.datamanager
        seeds.append((data.train_cameras_sampling_seed, data.dataparser.seed))
    assert seeds[0][0] != seeds[1][0]
    assert seeds[0][1] != seeds[1][1]
