"""What a result file says of its machine holds elsewhere too."""

import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import pytest

from fvgen_recon.evaluation import machine
from fvgen_recon.evaluation.machine import describe_machine, plain_settings

ROOT = Path(__file__).resolve().parents[3]


@dataclass(frozen=True)
class Settings:
    scenes: Path = Path("/data/private/val")
    features: Path | None = None
    models: tuple[str, ...] = ("teacher=/runs/of/me/teacher@8", "regression=runs/regression")
    weights: str = "/a/b,/c/d"
    span: float = 0.5


def test_the_command_names_the_script_with_its_folder_and_no_place(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    words = ["--scenes", "/data/private/val", "--models", "teacher=/runs/teacher@8", "x=y"]
    for script in ("scripts/eval_student.py", "benchmarks/run.py"):
        monkeypatch.setattr(sys, "argv", [str(ROOT / script), *words])
        command = describe_machine()["command"]
        assert command == f"python {script} --scenes val --models teacher=teacher@8 x=y"
    monkeypatch.setattr(sys, "argv", ["/elsewhere/bin/tool", "--out", "/tmp/x y.json"])
    assert describe_machine()["command"] == "python tool --out 'x y.json'"


def test_settings_keep_their_kinds_and_lose_their_places() -> None:
    assert plain_settings(asdict(Settings())) == {
        "scenes": "val",
        "features": None,
        "models": ["teacher=teacher@8", "regression=runs/regression"],
        "weights": "b,d",
        "span": 0.5,
    }


def test_the_commit_is_that_of_the_checkout_or_as_told(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("FVGEN_COMMIT", raising=False)
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    installed = tmp_path / "venv" / "site-packages"
    installed.mkdir(parents=True)
    git = ["git", "-c", "user.name=x", "-c", "user.email=x@y", "commit", "-q", "--allow-empty"]
    subprocess.run([*git, "-m", "first"], check=True, cwd=tmp_path)
    monkeypatch.setattr(machine, "_CHECKOUT", installed)
    assert describe_machine()["commit"] is None  # The repository above is another project's.
    assert describe_machine("abc1234")["commit"] == "abc1234"
    monkeypatch.setattr(machine, "_CHECKOUT", tmp_path)
    assert describe_machine()["commit"]
    monkeypatch.setenv("FVGEN_COMMIT", "fed4321")
    assert describe_machine()["commit"] == "fed4321"
