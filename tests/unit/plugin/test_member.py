"""How many members a splat has: by the inputs, by a user's choice, again in a finished run."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from nerfstudio.plugins.types import MethodSpecification
from pipelines import advance, open_pipeline, start_run, write_room

from fvgen_nerfstudio import gate
from fvgen_nerfstudio.camera import to_nerfstudio
from fvgen_nerfstudio.datamanager import FvgenDatamanagerConfig
from fvgen_nerfstudio.dataparser import FvgenDataParser, FvgenDataParserConfig
from fvgen_nerfstudio.gate import Judge
from fvgen_nerfstudio.member import choose_members, describe_members
from fvgen_nerfstudio.method import fvgen_splat, fvgen_splat_cpu
from fvgen_nerfstudio.pipeline import FvgenPipeline
from fvgen_nerfstudio.source import SceneSource
from fvgen_recon.errors import InputError, WeightsError
from fvgen_recon.types import PointCloud

THREE = ("stereo", "mvs", "plane-sweep")
SOURCES = ("plane-sweep", "plane-sweep")


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a scene of three photos."""
    folder = tmp_path_factory.mktemp("room")
    write_room(folder)
    return folder


def _open(room: Path, **options) -> FvgenPipeline:
    return open_pipeline(room, generator="none", **{"strategy": "none", **options})


def _parser(method: MethodSpecification) -> FvgenDataParserConfig:
    data = method.config.pipeline.datamanager
    assert isinstance(data, FvgenDatamanagerConfig)
    return data.dataparser


def test_the_method_for_a_gpu_has_three_members_up_to_three_photos():
    config = _parser(fvgen_splat())
    counts = [len(config.sources(num_inputs)) for num_inputs in (2, 3, 4, 9)]
    assert counts == [3, 3, 0, 0]
    assert config.ensemble == THREE
    small = _parser(fvgen_splat_cpu())
    assert small.sources(3) == ()
    assert replace(config, ensemble=()).sources(3) == ()  # How lists of ablations ask for one.
    assert replace(config, ensemble_views=0).sources(3) == ()
    assert replace(config, ensemble_views=9).sources(9) == THREE


@pytest.mark.parametrize(
    ("model", "parser", "kept"),
    [
        ({}, {}, THREE),
        ({"strategy": "mcmc"}, {}, ()),
        ({"random_init": True}, {}, ()),
        ({}, {"estimator": "dataset"}, ()),
        ({}, {"estimator": "plane-sweep"}, THREE),
        ({}, {"estimator": "dataset", "ensemble": ("mvs", "stereo")}, ("mvs", "stereo")),
        ({"strategy": "default"}, {"ensemble": ("mvs",)}, ("mvs",)),
    ],
)
def test_the_method_s_own_ensemble_gives_way_to_a_user_s_choice(model, parser, kept, capsys):
    method = fvgen_splat()
    config = method.config.pipeline
    for owner, changes in ((config.model, model), (_parser(method), parser)):
        for name, value in changes.items():
            setattr(owner, name, value)
    choose_members(config.model, config.datamanager)
    assert _parser(method).ensemble == kept
    said = capsys.readouterr().out
    assert ("No ensemble, as" in said) == (kept == ())


@pytest.mark.parametrize("model", [{"strategy": "mcmc"}, {"random_init": True}])
def test_members_and_what_they_cannot_have_are_refused_where_there_are_members(room, model):
    method = fvgen_splat()
    config, parser = method.config.pipeline, _parser(method)
    for name, value in model.items():
        setattr(config.model, name, value)
    parser.data, parser.ensemble, parser.ensemble_views = room, ("mvs", "stereo"), 2
    choose_members(config.model, config.datamanager)  # Three photos have one member anyway.
    parser.ensemble_views = 3
    parser.data, config.datamanager.data = Path(), room  # As --data has it.
    with pytest.raises(InputError, match="There cannot be an ensemble, as its members"):
        choose_members(config.model, config.datamanager)


def test_an_ensemble_that_a_user_asks_for_is_not_taken_for_the_method_s_own(room):
    """The CPU method has none, so that the sources of the other method are a user's choice here."""
    method = fvgen_splat_cpu()
    config, parser = method.config.pipeline, _parser(method)
    choose_members(config.model, config.datamanager)
    assert parser.ensemble == ()
    parser.data, parser.ensemble = room, THREE
    with pytest.raises(InputError, match="There cannot be an ensemble, as its members"):
        choose_members(config.model, config.datamanager)


@pytest.mark.parametrize(("ensemble_views", "count"), [(3, 2), (2, 1), (0, 1)])
def test_the_number_follows_the_inputs(room, tmp_path, capsys, ensemble_views, count):
    pipeline = _open(room, ensemble=SOURCES, ensemble_views=ensemble_views)
    assert pipeline.model.config.num_members == len(pipeline.datamanager.depth_targets) == count
    assert int(pipeline.model.strategy_state["member"].max()) == count - 1
    capsys.readouterr()
    start_run(pipeline, tmp_path)
    said = " ".join(capsys.readouterr().out.split())
    if count == 2:
        assert "2 members: plane-sweep, plane-sweep." in said
    else:
        assert f"1 member: random. An ensemble is for up to {ensemble_views} input photos" in said


@pytest.mark.parametrize("is_old", [False, True])
@pytest.mark.parametrize("count", [1, 2])
def test_a_finished_run_has_the_members_that_it_was_trained_with(
    room, tmp_path, monkeypatch, count, is_old
):
    trained = _open(room, ensemble=SOURCES, ensemble_views=3 if count == 2 else 2)
    advance(trained, start_run(trained, tmp_path), range(3))
    text = yaml.dump(trained.config)
    if is_old:  # From before there was a limit, and of more inputs than the limit of today.
        lines = [line for line in text.splitlines() if "ensemble_views" not in line]
        assert len(lines) == len(text.splitlines()) - 1
        text = "\n".join(lines)
        monkeypatch.setattr(FvgenDataParserConfig, "ensemble_views", 2)
    again = yaml.load(text, Loader=yaml.Loader).setup(device="cpu", test_mode="inference")
    again.load_pipeline(trained.state_dict(), 2)
    assert again.model.config.num_members == count
    camera = to_nerfstudio(trained.datamanager.scene.cameras[1])
    with torch.no_grad():
        shown = [x.eval().model.get_outputs_for_camera(camera)["rgb"] for x in (trained, again)]
    torch.testing.assert_close(*shown)


def test_a_checkpoint_of_another_number_of_members_is_refused(room):
    one, two = _open(room), _open(room, ensemble=SOURCES)
    two.load_pipeline(two.state_dict(), 1)
    with pytest.raises(WeightsError, match="holds 2 members and this run has 1: give"):
        one.load_pipeline(two.state_dict(), 1)
    state = one.state_dict()
    state.pop("_model._extra_state")  # From before there were members.
    with pytest.raises(WeightsError, match="holds 1 members and this run has 2"):
        two.load_pipeline(state, 1)
    one.load_pipeline(state, 1)


def test_a_source_that_finds_too_few_points_gives_no_member(room, monkeypatch):
    parser = FvgenDataParserConfig(data=room, ensemble=("mvs", "plane-sweep")).setup()
    find = FvgenDataParser._points_of

    def find_few(self: FvgenDataParser, estimator: str) -> PointCloud:
        cloud = find(self, "plane-sweep")
        return cloud[:9] if estimator == "mvs" else cloud

    monkeypatch.setattr(FvgenDataParser, "_points_of", find_few)
    outputs = parser.get_dataparser_outputs("train")
    assert parser.sources == ("plane-sweep",)
    assert set(outputs.metadata["points3D_member"].tolist()) == {0}
    line = describe_members(parser)
    assert line == "1 member: plane-sweep. Too few trusted points came from mvs."


def test_stereo_has_the_points_of_its_two_sources_already(room, monkeypatch):
    parser = FvgenDataParserConfig(
        data=room, estimator="stereo", ensemble=("stereo", "mvs", "plane-sweep")
    ).setup()
    side = parser.config.estimator_long_side
    alone = {name: parser.source.estimate_points(name, side) for name in ("mvs", "plane-sweep")}
    asked = []
    find = SceneSource.estimate_points

    def count(self: SceneSource, estimator: str, long_side: int) -> PointCloud:
        asked.append(estimator)
        return find(self, estimator, long_side)

    monkeypatch.setattr(SceneSource, "estimate_points", count)
    for name, wanted in alone.items():
        found = parser._points_of(name)
        torch.testing.assert_close(found.xyz, wanted.xyz)
        torch.testing.assert_close(found.confidence, wanted.confidence)
    assert asked == ["stereo"]


@pytest.mark.parametrize(("ensemble_views", "count"), [(3, 2), (2, 1)])
def test_the_gate_s_splats_have_as_many_members_as_the_run(
    room, tmp_path, monkeypatch, ensemble_views, count
):
    """With a photo left out there are two inputs, which alone would have members in both runs."""
    seen = []
    monkeypatch.setattr(
        gate, "train_briefly", lambda fold, *_: seen.append(fold.model.config.num_members)
    )
    pipeline = open_pipeline(
        room,
        ensemble=SOURCES,
        ensemble_views=ensemble_views,
        strategy="none",
        generator="render",
        gate_folds=1,
        gate_steps=2,
        gate_long_side=48,
    )
    judge = Judge(
        config=pipeline.config,
        optimizers=fvgen_splat_cpu().config.optimizers,
        num_steps=10,
        names=pipeline.datamanager.dataparser.source.capture.names,
        device="cpu",
    )
    judge.judge(0, tmp_path / "gate")
    assert seen == [count, count]
