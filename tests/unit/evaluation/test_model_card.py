"""The model card says of steadiness what was measured, under the name of what was measured."""

from pathlib import Path

from fvgen_recon.io.file import read_json

ROOT = Path(__file__).resolve().parents[3]
CARD = (ROOT / "docs" / "model_card.md").read_text()


def means(name: str, key: str) -> dict[str, float]:
    methods = read_json(ROOT / "benchmarks" / "results" / name)["methods"]
    return {method: numbers["mean"][key] for method, numbers in methods.items()}


def test_unsteadiness_is_that_of_the_committed_results() -> None:
    columns = ("fill", "regression", "student", "teacher_50", "teacher_4")
    wide = means("student_eval_stereo.json", "unsteady")
    cells = (f"{wide[name]:.2f}".lstrip("0") for name in columns)
    assert f"| unsteadiness | {' | '.join(cells)} |" in CARD
    near = means("generators_val3.json", "unsteady")
    assert f"the photos): {near['fill']:.2f} and {near['regression']:.2f}." in CARD
    learned = [near["regression"], *(wide[name] for name in columns[1:])]
    assert f"{min(learned):.2f} to {max(learned):.2f} of theirs" in CARD


def test_flicker_is_not_called_warped() -> None:
    flicker = means("generators_val3.json", "flicker")
    assert f"nothing is warped):\n{flicker['fill']:.3f} and {flicker['regression']:.3f}." in CARD
    assert "flicker (warped" not in CARD
