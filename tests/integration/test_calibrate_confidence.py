"""Confidence fitted to tiny scenes: what is claimed, written and installed, and what stays."""

import json
from pathlib import Path

import pytest
import torch
from room_folder import write_room

from fvgen_recon.densify.evidence import EVIDENCE
from fvgen_recon.densify.trust import TrustModel, read_trust, save_trust
from fvgen_recon.diffusion.compact.backbone import CompactBackbone
from fvgen_recon.diffusion.compact.checkpoint import save_compact
from fvgen_recon.diffusion.compact.config import CompactConfig
from fvgen_recon.distill.pack import pack_folder, write_pack
from fvgen_recon.errors import InputError
from scripts import calibrate_confidence
from scripts.calibrate_confidence import Arguments, install, main

TINY = CompactConfig(
    patch=2, widths=(8, 8, 16), num_blocks=(1, 1, 1), num_attention=2, head_dim=16, embedding=16
)
OLD = TrustModel(
    names=("seen",), weights=(1.0,), bias=0.5, tolerance=0.1, weights_hash="old", origin="before"
)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = tmp_path_factory.mktemp("calibrate")
    for index, name in enumerate(("train", "val")):
        room = write_room(base / name, seed=index, num_photos=9, height=64, width=96)
        write_pack([pack_folder(room, long_side=96)], base / f"{name}.bin")
    torch.manual_seed(0)
    backbone = CompactBackbone(TINY)
    card = save_compact(base / "student", backbone, role="student", num_steps=2)
    (base / "hash").write_text(card.sha256)
    known = {"student/one": OLD, "student/several": OLD, "teacher/one": OLD, "fill/one": OLD}
    save_trust(base / "shipped.json", known)
    return base


def arguments(base: Path, **changes) -> Arguments:
    settings = {
        "train": base / "train.bin",
        "val": base / "val.bin",
        "out": base / "out",
        "generators": ("render", f"student={base / 'student'}"),
        "install": True,
        "few_steps": 1,
        "clips": 2,
        "num_frames": 6,
        "long_side": 64,
        "pixels": 300,
        "device": "cpu",
        "commit": "abc1234",
    }
    return Arguments(**{**settings, **changes})


@pytest.fixture(scope="module")
def fitted(base: Path) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(calibrate_confidence, "SHIPPED", base / "shipped.json")
        main(arguments(base))
    return base / "out"


def test_every_generator_has_models_of_its_weights(base: Path, fitted: Path) -> None:
    models = read_trust(fitted / "trust.json")
    assert sorted(models) == ["render/one", "render/several", "student/one", "student/several"]
    assert models["student/one"].names == tuple(n for n in EVIDENCE if n != "spread")
    assert models["student/several"].names == EVIDENCE
    known = (base / "hash").read_text()
    assert [m.weights_hash for _, m in sorted(models.items())] == [None, None, known, known]
    for model in models.values():
        assert ", commit abc1234, " in model.origin
        assert str(base) not in model.origin


def test_fitted_claims_beat_levels_where_they_were_fitted_to_such_pixels(fitted: Path) -> None:
    numbers = json.loads((fitted / "calibration.json").read_text())
    assert numbers["machine"]["commit"] == "abc1234"
    assert str(fitted.parent) not in json.dumps(numbers)
    for kinds in numbers["reliability"].values():
        assert set(kinds) == {"levels", "one", "several"}
        assert kinds["one"]["calibration_error"] < kinds["levels"]["calibration_error"]
        for curve in kinds.values():
            assert sum(curve["share"]) == pytest.approx(1)
            assert -1 <= curve["rank"] <= 1
    (few,) = numbers["steps"]
    assert few == "student"  # Renders take no steps.
    assert (fitted / "calibration.png").stat().st_size > 0


def test_installing_leaves_other_generators_as_they_were(base: Path, fitted: Path) -> None:
    installed = read_trust(base / "shipped.json")
    assert installed["teacher/one"] == installed["fill/one"] == OLD
    ours = read_trust(fitted / "trust.json")
    assert {key: installed[key] for key in ours} == ours
    assert set(installed) == {*ours, "teacher/one", "fill/one"}


def test_a_model_of_other_weights_that_stays_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "shipped.json"
    new = TrustModel(
        names=("seen",), weights=(2.0,), bias=0.0, tolerance=0.1, weights_hash="new", origin="now"
    )
    install(path, {"student/several": OLD, "teacher/several": OLD})
    assert not capsys.readouterr().out
    install(path, {"student/one": new})
    assert "student/several stays as it was fitted to other weights" in capsys.readouterr().out
    expected = {"student/one": new, "student/several": OLD, "teacher/several": OLD}
    assert read_trust(path) == expected


def test_what_cannot_be_measured_is_refused_before_any_work(base: Path) -> None:
    for changes, sentence in (
        ({"estimator": "none"}, "no point-cloud estimator"),
        ({"generators": ("fill", "fill=x")}, "each generator once"),
        ({"num_samples": 0}, "At least one sample"),
        ({"generators": ()}, "At least one generator"),
    ):
        with pytest.raises(InputError, match=sentence):
            main(arguments(base, out=base / "nothing", **changes))
    assert not (base / "nothing").exists()
