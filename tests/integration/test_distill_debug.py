"""The command line: both stages, a stop, going on, and a student that generators load."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from factories import make_guidance
from room_folder import write_room

from fvgen_recon.diffusion.compact.generator import load_generator
from fvgen_recon.distill.config import TrainSettings
from fvgen_recon.distill.shard_build import build_shards, settle_plan
from fvgen_recon.distill.shard_plan import ShardSettings, make_plan
from fvgen_recon.errors import InputError
from fvgen_recon.recipes.distill import RECIPES
from scripts.distill import Options, chosen_recipe, describe_renders, main


def test_debug_recipe_stops_goes_on_and_writes_a_student(tmp_path: Path) -> None:
    first = Options(recipe="debug", output=tmp_path, cpu=True, stop_after=7)
    assert main(first) == 0
    assert not (tmp_path / "student").exists()
    assert main(Options(recipe="debug", output=tmp_path, cpu=True)) == 0
    lines = [json.loads(x) for x in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [x["step"] for x in lines] == [1, 2, 3, 4, 5, 6]
    assert [x["phase"] for x in lines] == ["gan"] * 3 + ["dmd"] * 3
    assert "validation/psnr" in lines[2]
    assert list(tmp_path.glob("validation-*.png"))
    generator = load_generator(tmp_path / "student", fast=False)
    frames = generator.generate(make_guidance(num_frames=4), seed=0)
    assert frames.shape == (4, 3, 32, 48)


def test_debug_recipe_trains_on_prepared_shards(tmp_path: Path) -> None:
    write_room(tmp_path / "rooms" / "room", seed=0, num_photos=8)
    settings = ShardSettings(num_frames=4, height=32, width=48, clips_per_shard=1)
    for part in ("train", "validation"):
        folder = tmp_path / "data" / part
        plan = settle_plan(folder, make_plan(tmp_path / "rooms", settings)[0])
        build_shards(tmp_path / "rooms", folder, plan, report=lambda record: None)
    where = tmp_path / "run"
    options = Options(recipe="debug", data=tmp_path / "data", output=where, cpu=True, stop_after=9)
    clips = tmp_path / "data" / "train"
    assert describe_renders(clips, RECIPES["debug"]()) == ""
    assert "prepare them with --is-raw" in describe_renders(clips, RECIPES["paper"]())
    assert main(options) == 0
    lines = [json.loads(x) for x in (where / "metrics.jsonl").read_text().splitlines()]
    assert [x["step"] for x in lines] == [1, 2, 3]
    assert "validation/psnr" in lines[2]


def test_mistakes_are_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(Options(recipe="paper", output=tmp_path, cpu=True)) == 2
    assert "needs a teacher" in capsys.readouterr().err


def test_ways_of_running_are_settings(tmp_path: Path) -> None:
    def train(**changes: object) -> TrainSettings:
        options = Options(recipe="paper", output=tmp_path)
        return chosen_recipe(replace(options, **changes)).train

    assert train().half_weights
    assert not train(parallel="fsdp").half_weights
    recorded = train(fast="recorded")
    assert recorded.record_calls
    assert not recorded.activation_checkpointing
    assert train(fast="fused", recompute=True).activation_checkpointing
    with pytest.raises(InputError, match="is for copies"):
        train(fast="fused", parallel="fsdp")
