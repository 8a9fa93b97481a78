"""A leg of the student's ablation with its calls recorded, each kind of stage once."""

import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from unit.distill.compact_bank import CONFIG, CPU, make_clips

from fvgen_recon.distill.cast import make_cast
from fvgen_recon.distill.clip import save_clips
from fvgen_recon.evaluation.efficientnet import NAME
from fvgen_recon.evaluation.feature import ShiftTolerantLpips, pack_network
from fvgen_recon.io.file import read_json
from fvgen_recon.pointcloud.mvs.semantic import EfficientNetLite0

LEG = Path(__file__).resolve().parents[2] / "benchmarks" / "student_leg.py"
pytestmark = pytest.mark.gpu


def write_features(path: Path) -> None:
    """Random feature networks: their packages need not be on a machine with a GPU."""
    torch.manual_seed(0)
    tensors = pack_network(NAME, EfficientNetLite0().state_dict())
    for net, num_slices in (("alex", 5), ("vgg", 4)):
        tensors |= pack_network(f"stlpips_{net}", ShiftTolerantLpips(net, num_slices).state_dict())
    save_file(tensors, path)


@pytest.mark.parametrize("stage", ["gan", "dmd-anchored", "dmd2", "ode"])
def test_a_recorded_leg_trains_and_is_measured(stage: str, tmp_path: Path) -> None:
    for part in ("train", "val"):
        (tmp_path / part).mkdir()
        save_clips(tmp_path / part / "0.safetensors", make_clips())
    write_features(tmp_path / "eyes.bin")
    cast = make_cast(CONFIG, init=None, teacher=None, device=CPU, seed=0)
    cast.save(tmp_path / "teacher", role="teacher", num_steps=50, sampler="ode")
    command = [
        sys.executable, str(LEG), "--bank", ".", "--features", "eyes.bin", "--teacher", "teacher",
        "--init", "teacher", "--out", "leg", "--recipe", "debug", "--stage", stage,
        "--updates", "3", "--num-steps", "4",
    ]  # fmt: skip
    call = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert call.returncode == 0, call.stderr
    assert "could not be recorded" not in call.stderr
    result = read_json(tmp_path / "leg" / "result.json")
    assert result["updates"] == 3
    assert result["peak_gib"] > 0
    assert all(math.isfinite(row[k]) for row in result["rows"] for k in ("psnr", "frechet"))
