"""The committed trainings are drawn whole, each leg behind the one that it goes on from."""

import json
import shutil
from pathlib import Path

import pytest
from PIL import Image

from benchmarks.training_curves import HERE, Options, ablation_curves, main, panels_of

RESULTS = HERE / "results"


def test_every_panel_has_curves_of_what_was_trained() -> None:
    panels = panels_of(RESULTS)
    labels = [list(dict.fromkeys(curve.label for curve in panel.curves)) for panel in panels]
    assert labels[0] == ["regression", "teacher", "teacher, sharp (ships)", "teacher, firm"]
    assert labels[1] == ["gan", "gan-loose", "dmd-anchored"]
    assert labels[2] == ["gan", "gan-loose"]
    assert labels[3] == ["adversarial"]
    assert {"rkl", "soft_rkl", "1/r", "no start, rkl", "DMD2 joint", "CausVid-like"} < set(
        labels[4]
    )
    assert labels[5] == ["adversarial", "DMD2 joint"]
    for panel in (panels[2], panels[5]):
        assert panel.level == 0.5
        assert all(0 < y < 1 for curve in panel.curves for y in curve.y)
    assert panels[0].curves[1].y[-1] == pytest.approx(0.0292, abs=1e-4)
    for panel in panels:
        assert all(list(curve.x) == sorted(curve.x) for curve in panel.curves)


def test_a_leg_counts_on_from_the_one_before(tmp_path: Path) -> None:
    def leg(*losses: float | None) -> dict:
        count = len(losses)
        curve = {"step": list(range(1, count + 1)), "turns": list(range(2, 2 * count + 1, 2))}
        return {"curve": {**curve, "student/loss": list(losses)}}

    legs = {
        "gan-3/seed0": leg(None, 2.0, 1.0),
        "gan-3/dmd-2/seed0": leg(0.5, 0.25),
        "gan-3/dmd-2/seed1": leg(0.75),  # whose start is missing
        "magic-2/seed0": leg(9.0),
    }
    (tmp_path / "student_ablation_one_step.json").write_text(json.dumps({"legs": legs}))
    found = ablation_curves(tmp_path, "student/loss", by="step")
    assert [(curve.label, curve.x, curve.y) for curve in found] == [
        ("adversarial", (2, 3), (2.0, 1.0)),
        ("soft_rkl", (4, 5), (0.5, 0.25)),
        ("soft_rkl", (1,), (0.75,)),
    ]
    assert all(curve.is_before for curve in found)
    assert ablation_curves(tmp_path, "disc/accuracy", by="turns") == ()


def test_the_picture_is_small_and_a_missing_training_is_told(tmp_path: Path, capsys) -> None:
    picture = tmp_path / "curves.png"
    assert main(Options(out=picture)) == 0
    assert picture.stat().st_size < 200_000
    assert Image.open(picture).size[0] > 1000
    folder = tmp_path / "results"
    folder.mkdir()
    for name in ("compact_training", "student_training"):
        shutil.copy(RESULTS / f"{name}.json", folder)
    assert main(Options(out=picture, results=folder)) == 2
    assert "teacher_training.json" in capsys.readouterr().err
    (folder / "teacher_training.json").write_text("{}")
    assert main(Options(out=picture, results=folder)) == 2
    assert "one has no 'sharp'" in capsys.readouterr().err
