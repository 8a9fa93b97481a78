"""Rounds on a tiny real scene: what lands in the bank, in the splat and in the next round."""

from pathlib import Path

import pytest
from pipelines import advance, open_pipeline, start_run, write_room
from scene_folder import read_meta, write_meta

from fvgen_nerfstudio.method import fvgen_splat_cpu
from fvgen_recon.densify.bank import Bank
from fvgen_recon.errors import InputError, WeightsError
from fvgen_recon.io.file import write_json


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("room")
    write_room(folder)
    return folder


def test_later_rounds_are_conditioned_on_the_splat(room, tmp_path):
    pipeline = open_pipeline(room, rounds=(0.0, 0.5))
    callbacks = start_run(pipeline, tmp_path)
    advance(pipeline, callbacks, range(4))
    bank = Bank(tmp_path / "bank")
    assert bank.num_rounds == 1
    first = {e.origin.guidance_hash for e in bank.entries}
    pipeline.model.opacities.data.fill_(8.0)
    pipeline.model.scales.data.fill_(-1.0)
    advance(pipeline, callbacks, range(4, 6))
    bank = Bank(tmp_path / "bank")
    assert bank.num_rounds == 2
    second = {e.origin.guidance_hash for e in bank.entries if e.origin.round == 1}
    assert second
    assert not second & first
    assert {e.origin.round for e in pipeline.datamanager._entries} == {1}


def test_checkpoints_hold_the_splat_alone(room, tmp_path):
    pipeline = open_pipeline(room)
    before = set(pipeline.state_dict())
    advance(pipeline, start_run(pipeline, tmp_path), range(2))
    assert set(pipeline.state_dict()) == before
    assert all(key.startswith("_model.") for key in before)


def test_a_resumed_run_takes_over_the_bank_and_generates_nothing_again(room, tmp_path):
    first = open_pipeline(room)
    advance(first, start_run(first, tmp_path / "one"), range(1))
    second = open_pipeline(room)
    stamp = (tmp_path / "one" / "bank" / "manifest.json").read_bytes()
    advance(second, start_run(second, tmp_path / "two", tmp_path / "one"), range(5, 6))
    assert (tmp_path / "two" / "bank" / "manifest.json").read_bytes() == stamp
    assert len(second.datamanager._entries) == len(Bank(tmp_path / "one" / "bank")) > 0


def test_a_finished_bank_is_trained_from_as_it_is(room, tmp_path):
    maker = open_pipeline(room)
    advance(maker, start_run(maker, tmp_path / "one"), range(1))
    user = open_pipeline(room, bank=tmp_path / "one" / "bank", generator="replay")
    advance(user, start_run(user, tmp_path / "two"), range(1))
    assert len(Bank(tmp_path / "two" / "bank")) == len(Bank(tmp_path / "one" / "bank"))
    absent = open_pipeline(room, bank=tmp_path / "absent")
    with pytest.raises(InputError, match="no bank with frames"):
        start_run(absent, tmp_path / "three")
    Bank(tmp_path / "one" / "bank").restart(maker.datamanager.dataparser.input_cameras)
    broken_off = open_pipeline(room, bank=tmp_path / "one" / "bank")
    with pytest.raises(InputError, match="no bank with frames of a whole round"):
        start_run(broken_off, tmp_path / "three")


def test_a_bank_of_other_photos_is_never_trained_from(room, tmp_path):
    """Its frames may show what is held out now, and its world lies elsewhere."""
    first = open_pipeline(room, views=("0.png", "2.png"))
    advance(first, start_run(first, tmp_path / "one"), range(1))
    for settings, folder, resumed in (
        ({}, "one", None),  # The same run folder, by --timestamp.
        ({"bank": tmp_path / "one" / "bank"}, "two", None),
        ({}, "three", tmp_path / "one"),
    ):
        other = open_pipeline(room, views=("0.png", "1.png"), **settings)
        with pytest.raises(InputError, match="made from other input photos"):
            start_run(other, tmp_path / folder, resumed)
    assert not (tmp_path / "two").exists()
    again = open_pipeline(room, views=("0.png", "2.png"))
    advance(again, start_run(again, tmp_path / "one"), range(1))
    assert len(again.datamanager._entries) == len(Bank(tmp_path / "one" / "bank"))


def test_what_the_gate_dropped_is_not_dropped_for_other_photos(room, tmp_path):
    first = open_pipeline(room, views=("0.png", "2.png"))
    start_run(first, tmp_path)
    verdict = tmp_path / "bank" / "gate_00.json"
    write_json(verdict, {"keeps": False})
    resumed = open_pipeline(room, views=("0.png", "2.png"))
    start_run(resumed, tmp_path, tmp_path)
    assert resumed.num_rounds_done == 1
    other = open_pipeline(room, views=("0.png", "1.png"))
    with pytest.raises(InputError, match="made from other input photos"):
        start_run(other, tmp_path)
    start_run(open_pipeline(room, views=("0.png", "2.png")), tmp_path)
    assert not verdict.exists()  # A new run in the same folder is judged anew.


def test_a_new_run_in_an_old_folder_trains_on_its_own_frames(room, tmp_path):
    def run(generator: str) -> set[str]:
        pipeline = open_pipeline(room, generator=generator)
        advance(pipeline, start_run(pipeline, tmp_path), range(1))
        return {entry.origin.generator for entry in pipeline.datamanager._entries}

    assert run("render") == {"render"}
    stamps = {path: path.stat().st_mtime_ns for path in (tmp_path / "bank").glob("*.png")}
    assert run("render") == {"render"}
    assert stamps == {path: path.stat().st_mtime_ns for path in stamps}  # Not generated again.
    assert run("fill") == {"fill"}


def test_a_bank_in_the_run_folder_does_not_take_the_place_of_the_users(room, tmp_path):
    for name, seed in (("one", 0), ("two", 1)):
        maker = open_pipeline(room, seed=seed)
        advance(maker, start_run(maker, tmp_path / name), range(1))
    user = open_pipeline(room, bank=tmp_path / "one" / "bank")
    with pytest.raises(InputError, match="another bank in"):
        start_run(user, tmp_path / "two")
    start_run(user, tmp_path / "three")
    start_run(user, tmp_path / "three")  # Its own copy is no other bank.


def test_a_checkpoint_of_other_photos_is_refused(room):
    first = open_pipeline(room, views=("0.png", "2.png"), generator="none")
    state = first.state_dict()
    open_pipeline(room, views=("0.png", "2.png"), generator="none").load_pipeline(state, 3)
    for views in (("0.png", "1.png"), ()):
        other = open_pipeline(room, views=views, generator="none")
        with pytest.raises(WeightsError, match="trained on other photos"):
            other.load_pipeline(state, 3)
    old = {key: value for key, value in state.items() if "exposure" not in key}
    open_pipeline(room, views=("0.png", "1.png"), generator="none").load_pipeline(old, 3)


def test_photos_that_have_moved_since_are_not_called_others(tmp_path):
    """Poses that come from the photos change with every photo that is added or removed."""
    write_room(tmp_path)
    first = open_pipeline(tmp_path, generator="none")
    names = first.datamanager.dataparser.input_names
    meta = read_meta(tmp_path)
    meta["frames"][1]["transform_matrix"][1][3] += 0.3
    write_meta(tmp_path, meta)
    later = open_pipeline(tmp_path, generator="none")
    later.datamanager.dataparser.config.trained_views = names
    with pytest.raises(WeightsError, match="have other poses now"):
        later.load_pipeline(first.state_dict(), 3)


def test_tools_that_open_a_run_end_with_one_sentence(tmp_path, capsys):
    write_room(tmp_path)
    run = open_pipeline(tmp_path, views=("0.png", "2.png"), generator="none")
    other = open_pipeline(tmp_path, views=("0.png", "1.png"), generator="none")
    tool = other.config.setup(device="cpu", test_mode="test")
    with pytest.raises(SystemExit, match="2"):
        tool.load_pipeline(run.state_dict(), 3)
    assert "trained on other photos" in capsys.readouterr().err
    (tmp_path / "images" / "2.png").write_bytes(b"junk")
    with pytest.raises(SystemExit, match="2"):
        tool.get_average_eval_image_metrics()
    assert "2.png cannot be read" in capsys.readouterr().err


def test_a_bank_that_cannot_be_trained_from_is_told_before_anything_is_written(room, tmp_path):
    first = open_pipeline(room, views=("0.png", "2.png"))
    advance(first, start_run(first, tmp_path / "one"), range(1))
    bank = tmp_path / "one" / "bank"
    fits = open_pipeline(room, views=("0.png", "2.png"), bank=bank)
    assert fits.check_bank(tmp_path / "new", None) == bank
    assert fits.check_bank(bank, None) is None
    other = open_pipeline(room, views=("0.png", "1.png"))
    for folder, resumed in ((bank, None), (tmp_path / "new", tmp_path / "one")):
        with pytest.raises(InputError, match="made from other input photos"):
            other.check_bank(folder, resumed)
    assert not (tmp_path / "new").exists()


def test_without_a_generator_there_is_no_bank(room, tmp_path):
    pipeline = open_pipeline(room, generator="none")
    advance(pipeline, start_run(pipeline, tmp_path), range(2))
    assert pipeline.datamanager.bank is None
    assert not (tmp_path / "bank").exists()


@pytest.mark.parametrize(
    ("name", "value", "sentence"),
    [
        ("dropout", 2.0, r"model.dropout must be in [0, 1): 2.0 came"),
        ("dropout", -0.1, "model.dropout"),
        ("dropout", float("nan"), "model.dropout"),
        ("export_opacity", 0.0, "model.export-opacity must be above 0"),
        ("seed_opacity", (0.0, 0.2), "model.seed-opacity must be in (0, 1): 0 0.2 came"),
    ],
)
def test_numbers_beyond_their_limits_are_told_before_anything_is_read(
    name, value, sentence, capsys
):
    config = fvgen_splat_cpu().config.pipeline
    setattr(config.model, name, value)
    with pytest.raises(SystemExit, match="2"):
        config.setup(device="cpu")
    assert sentence in capsys.readouterr().err


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"generator": "magic"}, "no generator `magic`"),
        ({"planner": "magic"}, "no trajectory planner `magic`"),
        ({"planner": "file"}, "needs a camera path"),
        ({"planner": "file", "camera_path": Path("gone.json")}, "gone.json was expected"),
        ({"weights": Path("absent")}, "no weights at absent"),
        ({"rounds": (0.5, 0.1)}, "rising fractions"),
        ({"planner": "file", "gate_folds": 1}, "gate cannot judge a camera path"),
    ],
)
def test_settings_that_cannot_work_end_with_one_sentence(room, settings, sentence, capsys):
    with pytest.raises(SystemExit) as stop:
        open_pipeline(room, **settings)
    assert stop.value.code == 2
    assert sentence in capsys.readouterr().err
