"""The model card says what was measured, under the name of what was measured."""

from pathlib import Path

import pytest

from fvgen_recon.io.file import read_json

ROOT = Path(__file__).resolve().parents[3]
CARD = (ROOT / "docs" / "model_card.md").read_text()
COLUMNS = ("fill", "regression", "student", "teacher_50", "teacher_4")


@pytest.fixture(scope="module")
def means() -> list[dict[str, float]]:
    """The means of each column's method on whole captures."""
    results = read_json(ROOT / "benchmarks" / "results" / "student_eval.json")
    return [results["methods"][name]["mean"] for name in COLUMNS]


def row(title: str, cells: list[str]) -> str:
    return f"| {title} | {' | '.join(cells)} |"


def test_quality_is_that_of_the_committed_results(means: list[dict[str, float]]) -> None:
    cells = [f"{m['psnr']:.2f} / {m['psnr_hole']:.2f} / {m['stlpips_alex']:.3f}" for m in means]
    assert row("mean of frames", cells) in CARD
    fill, regression = means[:2]
    assert f"the regression has {regression['psnr'] - fill['psnr']:.2f} dB" in CARD


def test_unsteadiness_is_that_of_the_committed_results(means: list[dict[str, float]]) -> None:
    assert row("unsteadiness", [f"{m['unsteady']:.2f}" for m in means]) in CARD
    fill, regression, student = means[:3]
    assert f"(unsteadiness {regression['unsteady']:.2f} and {student['unsteady']:.2f})" in CARD
    assert f"what they were given to complete ({fill['unsteady']:.2f})" in CARD


def test_flicker_is_not_called_warped(means: list[dict[str, float]]) -> None:
    cells = [
        f"{m['ssim']:.3f} / {m['frechet_efficientnet_lite0']:.0f} / {m['flicker']:.3f}".replace(
            "0.", "."
        )
        for m in means
    ]
    assert row("SSIM / Frechet / flicker", cells) in CARD
    assert "pixel by pixel, nothing is\nwarped" in CARD
    assert "flicker (warped" not in CARD
