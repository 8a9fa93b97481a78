"""The measurement of generators on scenes that it has never met: every shape a user may bring."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from room_folder import write_room

from fvgen_recon.diffusion.compact.backbone import CompactBackbone
from fvgen_recon.diffusion.compact.checkpoint import save_compact
from fvgen_recon.diffusion.compact.config import CompactConfig
from fvgen_recon.errors import InputError
from fvgen_recon.io.image import read_image
from scripts.eval_student import Arguments, _unnamed_models, main, make_bench

pytestmark = pytest.mark.slow
TINY = CompactConfig(
    patch=2, widths=(8, 8, 16), num_blocks=(1, 1, 1), num_attention=2, head_dim=16, embedding=16
)


def bend(folder: Path) -> None:
    """Give the lens some distortion."""
    path = folder / "transforms.json"
    meta = json.loads(path.read_text())
    path.write_text(json.dumps({**meta, "k1": -0.05, "k2": 0.01, "p1": 0.001}))


@pytest.fixture(scope="module")
def evaluation(tmp_path_factory: pytest.TempPathFactory) -> dict:
    base = tmp_path_factory.mktemp("eval")
    scenes = base / "scenes"
    write_room(scenes / "landscape", seed=1, num_photos=17, height=72, width=112)
    write_room(scenes / "portrait", seed=2, num_photos=9, height=112, width=72)
    bend(write_room(scenes / "bent", seed=3, num_photos=8, height=64, width=80))
    write_room(scenes / "tiny", seed=4, num_photos=3, height=64, width=64)
    models = []
    for role, steps in (("student", 4), ("teacher", 50), ("regression", 1)):
        save_compact(base / role, CompactBackbone(TINY), role=role, num_steps=steps)
        models.append(f"{role}={base / role}")
    main(
        Arguments(
            scenes=scenes,
            out=base / "out" / "eval.json",
            views=3,
            models=tuple(models),
            teacher_steps=(4, 1),
            long_side=96,
            num_frames=8,
            device="cpu",
            commit="abc1234",
        )
    )
    text = (base / "out" / "eval.json").read_text()
    assert "NaN" not in text
    return {"folder": base / "out", **json.loads(text)}


def test_every_method_is_measured(evaluation: dict) -> None:
    names = ["render", "fill", "student", "teacher_4", "teacher_1", "regression"]
    assert list(evaluation["methods"]) == names
    steps = [evaluation["methods"][name]["num_steps"] for name in names]
    assert steps == [0, 0, 4, 4, 1, 1]
    for numbers in evaluation["methods"].values():
        mean = numbers["mean"]
        assert 3 < mean["psnr"] < 60
        assert 0 <= mean["stlpips_alex"] < 2
        assert math.isfinite(mean["frechet_efficientnet_lite0"])
        assert mean["seconds"] >= 0
        assert set(numbers["scenes"]) == {"bent", "landscape", "portrait"}
        assert set(numbers["by_gap"]) == {"up to 15", "15 to 30", "over 30"}


def test_the_numbers_say_where_they_come_from(evaluation: dict) -> None:
    machine = evaluation["machine"]
    assert machine["torch"] == torch.__version__
    assert machine["commit"] == "abc1234"
    assert machine["command"].startswith("python ")
    assert str(evaluation["folder"].parent) not in (evaluation["folder"] / "eval.json").read_text()


def test_frames_of_the_gaps_add_up(evaluation: dict) -> None:
    numbers = evaluation["methods"]["fill"]
    in_bins = sum(part["num_frames"] for part in numbers["by_gap"].values() if part)
    assert in_bins == numbers["mean"]["num_frames"]


def test_what_needs_no_training_beats_random_weights(evaluation: dict) -> None:
    means = {name: numbers["mean"] for name, numbers in evaluation["methods"].items()}
    assert means["fill"]["psnr"] > means["render"]["psnr"]
    assert means["fill"]["stlpips_alex"] < means["teacher_1"]["stlpips_alex"]


def test_a_scene_that_is_too_small_is_left_out_with_a_sentence(evaluation: dict) -> None:
    assert list(evaluation["skipped"]) == ["tiny"]
    assert "ask for fewer" in evaluation["skipped"]["tiny"]


def test_each_scene_has_a_picture_with_a_column_a_method(evaluation: dict) -> None:
    for name, width in (("landscape", 96), ("portrait", 64), ("bent", 80)):
        picture = read_image(evaluation["folder"] / f"eval_{name}.png")
        assert abs(picture.shape[-1] / 8 - width) <= 8  # input, six methods, truth


def test_no_clips_are_refused_and_no_pictures_are_none(tmp_path: Path) -> None:
    write_room(tmp_path / "room", seed=1, num_photos=9, height=64, width=80)
    out = tmp_path / "out" / "eval.json"
    args = Arguments(
        scenes=tmp_path / "room",
        out=out,
        pictures=0,
        clips=1,
        long_side=64,
        teacher=False,
        device="cpu",
    )
    with pytest.raises(InputError, match="At least one clip"):
        main(replace(args, clips=0))
    main(args)
    assert [path.name for path in out.parent.iterdir()] == ["eval.json"]


def test_the_teacher_of_the_checkout_is_measured_unless_another_is_named_or_none_is_wanted(
    tmp_path: Path,
) -> None:
    args = Arguments(scenes=tmp_path, out=tmp_path / "eval.json", device="cpu")
    steps = {name: model.num_steps for name, model in make_bench(args).generators.items()}
    assert list(steps) == ["render", "fill", "student", "teacher", "regression"]
    assert steps["teacher"] == 50
    for changed in (replace(args, teacher=False), replace(args, models=("teacher_own=x@4",))):
        assert [text.partition("=")[0] for text in _unnamed_models(changed)] == [
            "student",
            "regression",
        ]


def test_no_scene_at_all_gets_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="No scene"):
        main(Arguments(scenes=tmp_path, out=tmp_path / "eval.json", device="cpu"))
