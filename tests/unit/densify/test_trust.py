"""Calibrated confidence: evidence says what it claims, the fit is right, claims are measured."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from factories import make_cameras, make_cloud, make_guidance, make_scene

from fvgen_recon.densify.confidence import ConfidenceConfig
from fvgen_recon.densify.densifier import Densifier, DensifyConfig, fit_steps
from fvgen_recon.densify.evidence import EVIDENCE, gather_evidence
from fvgen_recon.densify.generators import SHIPPED_WEIGHTS
from fvgen_recon.densify.trust import (
    SHIPPED,
    TrustModel,
    find_trust,
    fit_trust,
    measure_reliability,
    read_trust,
    save_trust,
    trust_key,
)
from fvgen_recon.diffusion.compact.checkpoint import read_card
from fvgen_recon.diffusion.passthrough import RenderGenerator
from fvgen_recon.errors import InputError, WeightsError
from fvgen_recon.geometry.projection import project_points
from fvgen_recon.types import Guidance


def _evidence(samples: torch.Tensor, guidance: Guidance) -> dict[str, torch.Tensor]:
    planes = gather_evidence(
        samples, guidance, make_cameras(4), make_scene(3), make_cloud(), tolerance=0.12
    )
    assert planes.shape == (len(EVIDENCE), *samples.shape[1:2], *samples.shape[-2:])
    assert float(planes.min()) >= 0
    assert float(planes.max()) <= 1 + 1e-6
    return dict(zip(EVIDENCE, planes, strict=True))


def test_evidence_by_hand() -> None:
    guidance = make_guidance(4)
    parts = _evidence(guidance.frames[None], guidance)
    mask = guidance.mask[:, 0]
    assert torch.equal(parts["trusted"], mask.float())
    torch.testing.assert_close(parts["render"], mask.float())
    assert bool((parts["hit"] == guidance.layer_masks.any(0)[:, 0]).all())
    assert bool((parts["layer"] <= parts["hit"]).all())
    torch.testing.assert_close(parts["middle"][:, 0, 0], torch.tensor([0.0, 8 / 9, 8 / 9, 0.0]))
    inner = mask[1, 5:20, 10:25].float().mean()
    torch.testing.assert_close(parts["support"][1, 12, 17], inner)
    assert float(parts["spread"].max()) == 0
    assert float(parts["geometry"].max()) > 0.9  # The cloud's points are all sure of themselves.


def test_reprojection_finds_the_photo() -> None:
    """Frames taken from a photo by depth agree with it there and not with another picture."""
    guidance, scene = make_guidance(4), make_scene(3)
    guidance = replace(
        guidance, mask=torch.ones_like(guidance.mask), depth=torch.full_like(guidance.depth, 4.0)
    )
    cameras = scene.cameras[[0, 1, 1, 2]]
    frames = scene.images[[0, 1, 1, 2]]
    result = {}
    for name, shown in (("same", frames), ("other", 1 - frames)):
        planes = gather_evidence(
            shown[None], guidance, cameras, scene, make_cloud(), tolerance=0.05
        )
        result[name] = planes[EVIDENCE.index("reprojection"), 1]
        seen = planes[EVIDENCE.index("seen"), 1]
    assert float(result["same"].min()) > 0.99
    assert float(result["other"].mean()) < 0.5
    rays = torch.tensor([[0.0, 0.0, 0.0]])  # The centre of the arc, 4 in front of every camera.
    uv, _ = project_points(rays, cameras[1])
    assert float(seen[int(uv[0, 1]), int(uv[0, 0])]) == pytest.approx(1.0)


def test_spread_of_samples() -> None:
    guidance = make_guidance(4)
    apart = torch.stack([guidance.frames, 1 - guidance.frames])
    same = guidance.frames.expand(2, -1, -1, -1, -1)
    assert float(_evidence(apart, guidance)["spread"].mean()) > 0.3
    assert float(_evidence(same, guidance)["spread"].max()) == 0


def test_the_fit_finds_known_coefficients(rng: torch.Generator) -> None:
    evidence = torch.rand(len(EVIDENCE), 20000, generator=rng)
    true = TrustModel(
        names=("trusted", "render", "spread"), weights=(1.0, 2.0, -3.0), bias=-0.5, tolerance=0.12
    )
    target = true.confidence(evidence)
    model = fit_trust(evidence, target, names=true.names, tolerance=0.12, penalty=0.0)
    torch.testing.assert_close(
        torch.tensor(model.weights), torch.tensor(true.weights), atol=1e-2, rtol=0
    )
    assert model.bias == pytest.approx(-0.5, abs=1e-2)
    coin = (torch.rand(20000, generator=rng) < target).float()
    noisy = fit_trust(evidence, coin, names=true.names, tolerance=0.12)
    claimed = noisy.confidence(evidence)
    assert float((claimed - target).abs().mean()) < 0.03


def test_reliability_sees_bad_claims(rng: torch.Generator) -> None:
    tolerance = 0.1
    agreement = 0.02 + 0.96 * torch.rand(5000, generator=rng)
    error = (-2 * tolerance**2 * agreement.log()).sqrt()
    honest = measure_reliability(agreement, error, tolerance)
    assert honest.calibration_error < 1e-4
    assert honest.rank == pytest.approx(1.0, abs=1e-3)
    assert sum(honest.share) == pytest.approx(1.0)
    assert list(honest.error) == sorted(honest.error, reverse=True)
    boastful = measure_reliability(agreement.sqrt(), error, tolerance)
    assert boastful.calibration_error > 0.1
    shuffled = measure_reliability(agreement[torch.randperm(5000)], error, tolerance)
    assert abs(shuffled.rank) < 0.1


def test_models_survive_the_file_and_bad_ones_are_refused(tmp_path: Path) -> None:
    model = TrustModel(names=("trusted", "seen"), weights=(1.5, -0.25), bias=0.1, tolerance=0.12)
    save_trust(tmp_path / "trust.json", {trust_key("fill", 1): model})
    assert read_trust(tmp_path / "trust.json") == {"fill/one": model}
    assert find_trust("fill", 1, tmp_path / "trust.json") == model
    with pytest.raises(InputError, match="calibrated confidence for `fill/several`"):
        find_trust("fill", 2, tmp_path / "trust.json")
    with pytest.raises(WeightsError, match="unknown-thing"):
        TrustModel(names=("unknown-thing",), weights=(1.0,), bias=0.0, tolerance=0.1)
    (tmp_path / "trust.json").write_text("{}")
    with pytest.raises(WeightsError, match="No confidence models"):
        read_trust(tmp_path / "trust.json")


def test_models_of_a_file_with_one_origin_for_all_keep_it(tmp_path: Path) -> None:
    model = {"names": ["seen"], "weights": [1.0], "bias": 0.0, "tolerance": 0.1}
    origin = {"command": "calibrate", "weights of student": "abc"}
    content = {"origin": origin, "models": {"student/one": model, "fill/one": model}}
    (tmp_path / "old.json").write_text(json.dumps(content))
    old = read_trust(tmp_path / "old.json")
    assert {key: m.weights_hash for key, m in old.items()} == {
        "student/one": "abc",
        "fill/one": None,
    }
    assert {m.origin for m in old.values()} == {"calibrate"}
    save_trust(tmp_path / "new.json", old)
    assert read_trust(tmp_path / "new.json") == old


def test_where_a_model_comes_from_makes_no_bank_anew() -> None:
    model = TrustModel(names=("seen",), weights=(1.0,), bias=0.0, tolerance=0.1)
    assert repr(replace(model, weights_hash="abc", origin="calibrate")) == repr(model)


def test_the_shipped_models_were_fitted_to_the_shipped_weights() -> None:
    models = read_trust(SHIPPED)
    assert all(model.origin for model in models.values())
    for key, model in models.items():
        folder = SHIPPED_WEIGHTS / key.partition("/")[0]
        known = read_card(folder).fingerprint if folder.is_dir() else None
        assert model.weights_hash == known


def test_the_densifier_weighs_by_the_calibrated_model(tmp_path: Path) -> None:
    model = TrustModel(names=("trusted",), weights=(3.0,), bias=-1.0, tolerance=0.12)
    save_trust(tmp_path / "t.json", {"render/one": model})
    config = DensifyConfig(
        confidence=ConfidenceConfig(calibrated=True, model=tmp_path / "t.json"), long_side=48
    )
    # With steps a generator counts as a network, which invents what is missing.
    for num_steps, logit in ((4, -1.0), (0, -math.inf)):
        generator = RenderGenerator(num_frames=4, num_steps=num_steps)
        hole = torch.sigmoid(torch.tensor(logit))
        densified = Densifier(config).run(make_scene(2), points=make_cloud(), generator=generator)
        clip = densified.clips[0]
        inner, mask = clip.confidence[1:-1], clip.guidance.mask[1:-1]
        assert bool((clip.confidence[[0, -1]] == 1).all())
        torch.testing.assert_close(inner, torch.where(mask, torch.sigmoid(torch.tensor(2.0)), hole))


@pytest.mark.parametrize("fitted", [None, "a" * 64])
def test_confidence_of_other_weights_is_told(tmp_path: Path, caplog, fitted: str | None) -> None:
    model = TrustModel(
        names=("trusted",), weights=(3.0,), bias=-1.0, tolerance=0.12, weights_hash=fitted
    )
    save_trust(tmp_path / "t.json", {"render/one": model})
    config = DensifyConfig(
        confidence=ConfidenceConfig(calibrated=True, model=tmp_path / "t.json"), long_side=48
    )
    generator = RenderGenerator(num_frames=4)
    Densifier(config).run(make_scene(2), points=make_cloud(), generator=generator)
    assert ("was fitted to other weights (aaaaaaaaaaaa)" in caplog.text) == (fitted is not None)


def test_few_steps_only_where_little_is_missing() -> None:
    generator = RenderGenerator(num_frames=4, num_steps=4)
    guidance = make_guidance(4)
    missing = 1 - float(guidance.mask[1:3].float().mean())
    assert fit_steps(generator, guidance, missing + 0.01).num_steps == 2
    assert fit_steps(generator, guidance, missing - 0.01).num_steps == 4
    assert fit_steps(generator, guidance, None) is generator
    plain = RenderGenerator(num_frames=4)
    assert fit_steps(plain, guidance, 1.0) is plain


def test_the_package_brings_models_that_follow_the_evidence() -> None:
    """More agreement never lowers the shipped claim for renders."""
    model = find_trust("render", 1)
    evidence = torch.full((len(EVIDENCE), 1), 0.5)
    better = evidence.clone()
    for name in ("geometry", "render", "layer", "reprojection", "support"):
        better[EVIDENCE.index(name)] = 1.0
    assert float(model.confidence(better)) > float(model.confidence(evidence)) + 0.05
