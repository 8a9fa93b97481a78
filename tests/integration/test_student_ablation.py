"""The ablation's command at tiny size: all recipes from one untrained teacher."""

import json
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from unit.distill.compact_bank import CONFIG, CPU, make_clips

from fvgen_recon.distill.cast import make_cast
from fvgen_recon.distill.clip import save_clips
from fvgen_recon.evaluation.judge import pack_features

ROOT = Path(__file__).resolve().parents[2]
RECIPES = [
    "no start", "GAN only", "GAN + rkl", "GAN + soft_rkl", "GAN + 1/r", "DMD2 joint",
    "CausVid-like",
]  # fmt: skip
TOTAL = 3
WARMUP, JUDGES = 3, 2
pytestmark = pytest.mark.slow


@dataclass(frozen=True)
class Ablation:
    """What a first and a second call left."""

    folder: Path
    first: dict[str, Any]
    """Two seeds of one recipe."""
    again: dict[str, Any]
    """One seed of all recipes, on what the first call had finished."""
    kept: bool
    """Whether the second call left a finished leg alone."""
    output: str


def _call(folder: Path, *more: str) -> subprocess.CompletedProcess[str]:
    command = [
        sys.executable, str(ROOT / "benchmarks" / "student_ablation.py"),
        "--features", "eyes.bin", "--bank", "bank", "--teacher", "teacher",
        "--regression", "teacher", "--out", "out.json", "--recipe", "debug",
        "--gan-updates", "1", "--dmd-updates", str(TOTAL - 1), "--ode-updates", "1",
        "--warmup-turns", str(WARMUP), "--judge-turns", str(JUDGES), "--batch-size", "1",
        "--max-clips", "4", "--teacher-steps", "1", "2", "--per-gpu", "2", *more,
    ]  # fmt: skip
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


def _read(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "out.json").read_text())


def _write_inputs(folder: Path) -> None:
    for part, count in (("train", 2), ("val", 1)):
        (folder / "bank" / part).mkdir(parents=True)
        for index in range(count):
            save_clips(folder / "bank" / part / f"{index}.safetensors", make_clips(seed=index))
    pack_features(folder / "eyes.bin", {"alex": 5, "vgg": 4})
    cast = make_cast(CONFIG, init=None, teacher=None, device=CPU, seed=0)
    cast.save(folder / "teacher", role="teacher", num_steps=50, sampler="ode")


@pytest.fixture(scope="module")
def ablation(tmp_path_factory: pytest.TempPathFactory) -> Ablation:
    folder = tmp_path_factory.mktemp("ablation")
    _write_inputs(folder)
    call = _call(folder, "--seeds", "2", "--recipes", "DMD2 joint")
    assert call.returncode == 0, call.stdout + call.stderr
    first = _read(folder)
    leg = folder / "out" / f"dmd2-{TOTAL}" / "seed0" / "result.json"
    time = leg.stat().st_mtime_ns
    call = _call(folder, "--seeds", "1", "--figure", "figure.png")
    assert call.returncode == 0, call.stdout + call.stderr
    return Ablation(
        folder=folder,
        first=first,
        again=_read(folder),
        kept=leg.stat().st_mtime_ns == time,
        output=call.stdout,
    )


def test_seeds_differ_and_their_spread_is_told(ablation: Ablation) -> None:
    rows = [row for row in ablation.first["rows"] if row["recipe"] == "DMD2 joint"]
    assert [(row["num_steps"], row["seeds"]) for row in rows] == [(4, 2), (2, 2), (1, 2)]
    assert all(row["psnr_spread"] > 0 and row["frechet"] > 0 for row in rows)


def test_every_recipe_has_the_same_updates(ablation: Ablation) -> None:
    rows = {r["recipe"]: r for r in ablation.again["rows"] if r["num_steps"] == 4}
    assert list(rows) == RECIPES
    assert {row["updates"] for row in rows.values()} == {TOTAL}
    one = WARMUP + (TOTAL - 1) * JUDGES
    two = 2 * WARMUP + (TOTAL - 2) * JUDGES
    turns = {name: row["judge_turns"] for name, row in rows.items()}
    assert turns == dict(zip(RECIPES, (one, two, two, two, two, one, WARMUP + JUDGES), strict=True))
    assert len({row["psnr"] for row in rows.values()}) > 1


def test_recipes_that_begin_alike_share_a_leg(ablation: Ablation) -> None:
    legs = ablation.again["legs"]
    assert len(legs) == len(RECIPES) + 2  # one adversarial start, one regression on paths
    assert legs["gan-1/seed0"]["updates"] == 1
    assert legs["gan-1/gan-2/seed0"]["updates"] == TOTAL - 1
    assert legs["gan-1/seed0"]["curve"]["disc/temperature"][-1] > 0
    assert legs["dmd2-3/seed0"]["curve"]["step"] == [0, 0, 0, 1, 2, 3]
    assert "disc/accuracy" in legs["dmd2-3/seed0"]["curve"]


def test_it_goes_on_where_it_stopped(ablation: Ablation) -> None:
    assert ablation.kept
    assert not ablation.again["failures"]


def test_references_are_measured(ablation: Ablation) -> None:
    rows = [(r["recipe"], r["num_steps"], r["kind"]) for r in ablation.again["rows"]]
    assert rows[:3] == [("teacher", 1, "sde"), ("teacher", 2, "sde"), ("teacher", 2, "ode")]
    assert rows[3] == ("regression", 1, "sde")
    assert "| GAN + soft_rkl | 4 sde | 1 |" in ablation.output
    assert (ablation.folder / "figure.png").read_bytes().startswith(b"\x89PNG")


def test_after_the_limit_nothing_starts(ablation: Ablation) -> None:
    call = _call(ablation.folder, "--seeds", "3", "--limit-s", "0")
    assert call.returncode == 0, call.stderr
    assert "17 legs are missing" in call.stderr
    assert {r["seeds"] for r in _read(ablation.folder)["rows"]} == {1, 2}


def test_a_leg_that_fails_is_told_and_stops_what_builds_on_it(ablation: Ablation) -> None:
    shutil.copytree(ablation.folder / "bank", ablation.folder / "broken")
    (ablation.folder / "broken" / "train" / "0.safetensors").write_bytes(b"no clips")
    call = _call(
        ablation.folder, "--bank", "broken", "--out", "bad.json", "--recipes", "GAN only",
        "--seeds", "1", "--max-clips", "8",
    )  # fmt: skip
    assert call.returncode == 1
    assert "2 legs are missing" in call.stderr
    content = json.loads((ablation.folder / "bad.json").read_text())
    assert set(content["failures"]) == {"gan-1/seed0"}
    assert {row["recipe"] for row in content["rows"]} == {"teacher", "regression"}


def test_what_all_legs_need_is_looked_at_first(ablation: Ablation) -> None:
    for option, value, said in (
        ("--bank", "nowhere", "no clips"),
        ("--features", "bare.bin", "EfficientNet"),
    ):
        save_file({"nothing": torch.zeros(1)}, ablation.folder / "bare.bin")
        call = _call(ablation.folder, option, value, "--out", "early.json")
        assert call.returncode == 2
        assert said in call.stderr
        assert not (ablation.folder / "early").exists()


def test_unknown_recipes_are_refused(tmp_path: Path) -> None:
    call = _call(tmp_path, "--recipes", "magic")
    assert call.returncode == 2
    assert "magic came" in call.stderr
