"""Several members from ns-train to a file: trained, evaluated, exported, and not resumed as one."""

import json
from pathlib import Path

import pytest
import torch
from plugin_run import Run, call, train

from fvgen_recon.io.ply import read_points

ROOT = Path(__file__).resolve().parents[2]
MEMBERS = [
    "--pipeline.datamanager.dataparser.ensemble", "plane-sweep", "plane-sweep",
    "--pipeline.model.strategy", "none", "--pipeline.densify.generator", "none",
]  # fmt: skip
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def members(tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, Path]:
    """Train two members from three photos, evaluate them and export them more faintly."""
    base = tmp_path_factory.mktemp("members")
    config = base / "out" / "room" / "fvgen-splat-cpu" / "two" / "config.yml"
    scene = ROOT / "examples" / "room"
    command = train(scene, base / "out", "two", 6, "--views", "3", *MEMBERS)
    shared = ["--load-config", str(config)]
    result = call(
        [*command, "--pipeline.model.export-opacity", "0.5"],
        ["ns-eval", *shared, "--output-path", str(base / "eval.json")],
        ["fvgen-export", "gaussian-splat", *shared, "--output-dir", str(base)],
        cwd=base,
    )
    return Run(scene, config.parent, result.stdout), base


def test_a_splat_of_members_is_trained_evaluated_and_exported(members: tuple[Run, Path]) -> None:
    run, base = members
    assert "2 members: plane-sweep, plane-sweep." in run.log
    assert 8 < json.loads((base / "eval.json").read_text())["results"]["psnr"] < 60
    state = torch.load(next(run.checkpoints.iterdir()), weights_only=True)["pipeline"]
    assert set(state["_model._extra_state"].tolist()) == {0, 1}
    opacity = torch.sigmoid(state["_model.gauss_params.opacities"])
    shown = int((1 - (1 - opacity) ** 0.5 >= 1 / 255).sum())
    assert len(read_points(base / "splat.ply")) == shown


def test_members_are_not_resumed_as_one_splat(members: tuple[Run, Path]) -> None:
    run, base = members
    more = ["--views", "3", "--load-dir", str(run.checkpoints), *MEMBERS]
    more += ["--pipeline.datamanager.dataparser.ensemble-views", "2"]
    result = call(train(run.scene, base / "more", "one", 9, *more), cwd=base, check=False)
    assert result.returncode == 2
    assert "holds 2 members and this run has 1" in result.stderr
    assert "Traceback" not in result.stderr
