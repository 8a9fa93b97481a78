"""The command line: both stages, a stop, going on, and a student that generators load."""

import json
from pathlib import Path

import pytest
from factories import make_guidance

from fvgen_recon.diffusion.compact.generator import load_generator
from scripts.distill import Options, main


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


def test_mistakes_are_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(Options(recipe="paper", output=tmp_path, cpu=True)) == 2
    assert "needs a teacher" in capsys.readouterr().err
