"""The compact model's whole training on the example scene, as its script runs it."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from room_folder import write_room

from fvgen_recon.diffusion.compact.checkpoint import load_compact
from fvgen_recon.errors import InputError
from scripts.pack_scenes import Arguments as PackArguments
from scripts.pack_scenes import main as pack
from scripts.train_compact import Arguments, main

pytestmark = pytest.mark.slow
ROOM = Path(__file__).resolve().parents[2] / "examples" / "room"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Arguments:
    base = tmp_path_factory.mktemp("compact")
    (base / "scenes").mkdir()
    (base / "scenes" / "room").symlink_to(ROOM)
    pack(PackArguments(scenes=base / "scenes", out=base / "room.bin", features=base / "eyes.bin"))
    args = Arguments(
        train=base / "room.bin",
        val=base / "room.bin",
        features=base / "eyes.bin",
        out=base / "run",
        recipe="debug",
        stages=("regression", "teacher", "gan", "dmd"),
        steps=(2, 2, 2, 2),
        num_workers=0,
        num_plans=2,
    )
    main(args)
    return args


def test_every_stage_leaves_weights_and_is_measured(trained: Arguments) -> None:
    log = json.loads((trained.out / "log.json").read_text())
    assert [row["stage"] for row in log["curve"]] == list(trained.stages)
    assert log["machine"]["torch"] == torch.__version__
    assert log["args"]["stages"] == list(trained.stages)
    assert str(trained.out.parent) not in json.dumps(log)
    measured = {row["stage"] for row in log["validation"]}
    assert measured == {"blend", *trained.stages}
    for stage in trained.stages:
        assert load_compact(trained.out / stage)[1].role == stage
    assert (trained.out / "panel.jpg").stat().st_size > 1000


def test_it_goes_on_from_what_it_left(trained: Arguments, capsys: pytest.CaptureFixture) -> None:
    again = replace(
        trained,
        out=trained.out.parent / "again",
        bank=trained.out / "bank",
        init=trained.out / "dmd",
        teacher=trained.out / "teacher",
        stages=("dmd",),
        steps=(1,),
    )
    main(again)
    assert "stage dmd: 1 updates" in capsys.readouterr().out
    cards = [load_compact(folder / "dmd")[1] for folder in (trained.out, again.out)]
    assert cards[0].config == cards[1].config
    assert cards[0].sha256 != cards[1].sha256


def test_an_unknown_recipe_is_told(tmp_path: Path) -> None:
    nowhere = tmp_path / "nothing"
    args = Arguments(train=nowhere, val=nowhere, features=nowhere, out=tmp_path, recipe="nope")
    with pytest.raises(InputError, match=r"no recipe `nope`: choose one of full, sharp, debug"):
        main(args)


def test_captures_without_photos_between_others_are_refused(tmp_path: Path) -> None:
    write_room(tmp_path / "scenes" / "pair", num_photos=3, height=64, width=80)
    pack(PackArguments(scenes=tmp_path / "scenes", out=tmp_path / "pair.bin"))
    args = Arguments(
        train=tmp_path / "pair.bin",
        val=tmp_path / "pair.bin",
        features=tmp_path / "none.bin",
        out=tmp_path / "run",
        recipe="debug",
        num_workers=0,
    )
    with pytest.raises(InputError, match="lie between two others"):
        main(args)
