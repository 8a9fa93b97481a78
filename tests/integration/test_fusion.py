"""From scenes to a network that puts renders and frames together: the commands at small size."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from fvgen_recon.fusion.checkpoint import read_fusion_card
from fvgen_recon.fusion.example import read_examples

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.slow


def _call(folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, *command], cwd=folder, env=environment, capture_output=True, text=True,
        check=False,
    )  # fmt: skip


def test_samples_are_made_a_network_is_trained_and_goes_on(tmp_path: Path) -> None:
    for scene in ("room", "other"):
        shutil.copytree(ROOT / "examples" / "room", tmp_path / "scenes" / scene)
    answer = _call(
        tmp_path, str(ROOT / "benchmarks" / "fusion_samples.py"), "--data", "scenes",
        "--out", "samples", "--work", "work", "--views", "3", "--choices", "1", "--targets", "2",
        "--iterations", "5", "--long-side", "96", "--generator-sides", "96", "--parallel", "2",
        "--device", "cpu",
    )  # fmt: skip
    assert answer.returncode == 0, answer.stderr[-4000:]
    index = json.loads((tmp_path / "samples" / "index.json").read_text())
    assert index["scenes"] == ["other", "room"]
    examples = read_examples(tmp_path / "samples")
    assert len(examples) == index["num_views"] == 4
    for example in examples:
        facts = example.sample.facts
        assert (facts.share, facts.num_inputs, facts.num_members) == (0.5, 3, 1)
        splat, frame, photo = example.sample.planes[:9].float().unflatten(0, (3, 3))
        # All three show the same.
        assert float((frame - photo).abs().mean()) < 30
        assert float((splat - photo).abs().mean()) < 60

    train = (
        str(ROOT / "scripts" / "train_fusion.py"), "--samples", "samples", "--out", "fusion",
        "--num-held-out", "1", "--settings.perceptual-weight", "0", "--settings.batch-size", "2",
        "--settings.crop", "32", "--settings.log-every", "2", "--device", "cpu",
        "--network.widths", "8", "8", "--network.num-blocks", "1", "1",
    )  # fmt: skip
    answer = _call(tmp_path, *train, "--settings.max-steps", "4")
    assert answer.returncode == 0, answer.stderr[-4000:]
    assert "| mean | learned |" in answer.stdout
    answer = _call(tmp_path, *train, "--settings.max-steps", "6")
    assert "goes on from step 4" in answer.stdout, answer.stderr[-4000:]
    log = json.loads((tmp_path / "fusion" / "curve.json").read_text())
    assert [line["step"] for line in log["curve"]] == [2, 4, 6]
    assert len(log["looks"]) == 2
    assert log["machine"]["command"].startswith("python scripts/train_fusion.py --samples samples")
    card = read_fusion_card(tmp_path / "fusion" / "weights")
    (seen,) = card.training["scenes"]
    answer = _call(
        tmp_path, str(ROOT / "benchmarks" / "run.py"), "folder", "--data", "scenes",
        "--scenes", seen, "--methods", "fvgen-splat-none+refine=fill:learned", "--views", "3",
        "--weights", "fusion=fusion/weights", "--device", "cpu", "--out", "run.json",
    )  # fmt: skip
    assert answer.returncode == 2
    assert f"it has seen {seen}" in answer.stderr
    assert card.training["held_out"] == log["held_out"]
    best = max(look["gain"] for look in log["looks"])
    assert card.training["gain"] == pytest.approx(best, abs=1e-3)

    trained = sorted({"other", "room"} - set(log["held_out"]))
    assert len(trained) == 1
    assert card.training["scenes"] == trained
    answer = _call(tmp_path, *train, "--held-out", *trained)
    assert answer.returncode == 2
    assert "name the same scenes or give another --out" in answer.stderr
    answer = _call(tmp_path, *train, "--held-out", "cellar")
    assert answer.returncode == 2
    assert "no samples of the scenes cellar" in answer.stderr
