"""The comparison of the compact model's shapes at tiny size."""

import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from unit.distill.compact_bank import make_clips

from fvgen_recon.diffusion.compact.backbone import CompactBackbone
from fvgen_recon.distill.clip import save_clips
from fvgen_recon.evaluation.judge import pack_features

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.slow


def _call(folder: Path, *more: str) -> subprocess.CompletedProcess[str]:
    command = [
        sys.executable, str(ROOT / "benchmarks" / "design.py"), "--bank", "bank",
        "--features", "eyes.bin", "--out", "design.json", "--recipe", "debug", "--updates", "2",
        "--batch-size", "1", *more,
    ]  # fmt: skip
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


def test_variants_are_trained_alike_and_kept(tmp_path: Path) -> None:
    for part in ("train", "val"):
        (tmp_path / "bank" / part).mkdir(parents=True)
        save_clips(tmp_path / "bank" / part / "0.safetensors", make_clips(seed=0))
    pack_features(tmp_path / "eyes.bin", {"alex": 5, "vgg": 4})
    call = _call(tmp_path, "--variants", "no attention", "teacher, velocity")
    assert call.returncode == 0, call.stdout + call.stderr
    regression, teacher = json.loads((tmp_path / "design.json").read_text())["variants"]
    assert regression["config"]["num_attention"] == 0
    assert [row["num_steps"] for row in regression["rows"]] == [1]
    assert teacher["prediction"] == "velocity"
    assert [row["num_steps"] for row in teacher["rows"]] == [1, 4, 8]
    assert regression["updates"] == teacher["updates"] == 2
    kept = next((tmp_path / "design").glob("no_attention.json")).stat().st_mtime_ns
    again = _call(tmp_path, "--variants", "no attention")
    assert again.returncode == 0, again.stderr
    assert next((tmp_path / "design").glob("no_attention.json")).stat().st_mtime_ns == kept
    other = _call(tmp_path, "--variants", "no attention", "--seed", "1")
    assert other.returncode == 0, other.stderr
    anew = json.loads((tmp_path / "design.json").read_text())["variants"][0]
    assert anew["settings"]["seed"] == 1
    assert anew["curve"] != regression["curve"]


def test_unknown_variants_and_missing_clips_are_told(tmp_path: Path) -> None:
    unknown = _call(tmp_path, "--variants", "square")
    assert unknown.returncode == 2
    assert unknown.stderr.startswith("Variants out of ")
    assert "square came" in unknown.stderr
    missing = _call(tmp_path)
    assert missing.returncode == 2
    assert "has no clips: build them" in missing.stderr


def test_every_variant_can_be_built_at_full_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    design = importlib.import_module("design")
    options = design.Options(bank=Path("b"), features=Path("f"), out=Path("o.json"))
    with torch.device("meta"):
        sizes = {
            name: sum(p.numel() for p in CompactBackbone(design.shape(options, v)).parameters())
            for name, v in design.VARIANTS.items()
        }
    # As bfloat16 all but the widest stays below 32 MB.
    assert max(size for name, size in sizes.items() if name != "wide") < 30e6
    assert len(set(sizes.values())) > 6


def test_processes_get_gpus_out_of_those_that_may_be_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    machine = importlib.import_module("fvgen_recon.evaluation.machine")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    assert [machine.visible_gpu(i) for i in range(3)] == ["3", "5", "3"]
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert machine.visible_gpu(1) == "1"
