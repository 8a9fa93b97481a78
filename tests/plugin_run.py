"""ns-* commands in fresh processes, and what a finished run consists of."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

DRIVER = Path(__file__).parent / "integration" / "plugin_driver.py"
TIMEOUT = 400


@dataclass(frozen=True)
class Run:
    """A finished training run."""

    scene: Path
    folder: Path
    log: str

    @property
    def config(self) -> str:
        return str(self.folder / "config.yml")

    @property
    def checkpoints(self) -> Path:
        return self.folder / "nerfstudio_models"


def call(
    *commands: list[str], cwd: Path, check: bool = True, keep_going: bool = False
) -> subprocess.CompletedProcess[str]:
    """Run commands in one fresh process, without a network and without a display."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TORCH_HOME": str(cwd / "no-cache")}
    result = subprocess.run(
        [sys.executable, str(DRIVER), json.dumps(commands), *(["--all"] if keep_going else [])],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=False,
    )
    if check and result.returncode != 0:
        raise AssertionError(f"{commands} failed:\n{result.stdout[-3000:]}{result.stderr[-5000:]}")
    return result


def train(scene: Path, output: Path, stamp: str, num_steps: int, *more: str) -> list[str]:
    return [
        "ns-train", "fvgen-splat-cpu", "--data", str(scene), "--views", "5",
        "--output-dir", str(output), "--timestamp", stamp, "--vis", "tensorboard",
        "--max-num-iterations", str(num_steps),
        "--pipeline.datamanager.dataparser.long-side", "96",
        "--pipeline.datamanager.dataparser.estimator-long-side", "96",
        "--pipeline.datamanager.dataparser.num-points", "600",
        "--pipeline.densify.long-side", "96", "--pipeline.densify.num-frames", "4", *more,
    ]  # fmt: skip
