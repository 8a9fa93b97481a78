"""Generators by name, and the sentence where one cannot be had."""

from pathlib import Path

import pytest
import torch
from factories import make_guidance

from fvgen_recon.densify.generators import GENERATORS, GeneratorConfig, load_generator
from fvgen_recon.diffusion.compact.backbone import CompactBackbone
from fvgen_recon.diffusion.compact.checkpoint import save_compact
from fvgen_recon.diffusion.compact.config import CompactConfig
from fvgen_recon.errors import InputError, WeightsError


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("compact")
    config = CompactConfig(
        patch=2, widths=(8, 8, 16), num_blocks=(1, 1, 1), num_attention=1, head_dim=16, embedding=16
    )
    save_compact(path, CompactBackbone(config), role="student", num_steps=2)
    return path


@pytest.mark.parametrize("name", ["render", "fill"])
def test_generators_without_weights(name):
    generator = load_generator(GeneratorConfig(name=name, num_frames=4))
    frames = generator.generate(make_guidance(4), seed=0)
    assert (generator.name, generator.num_steps, generator.weights_hash) == (name, 0, "")
    assert frames.shape == (4, 3, 32, 48)


@pytest.mark.parametrize("name", ["student", "teacher", "regression"])
def test_compact_models_by_name(name, folder):
    generator = load_generator(GeneratorConfig(name=name, weights=folder, num_frames=4))
    assert (generator.name, generator.num_steps, generator.num_frames) == (name, 2, 4)
    assert len(generator.weights_hash) == 64
    assert torch.isfinite(generator.generate(make_guidance(4), seed=0)).all()
    steps = load_generator(GeneratorConfig(name=name, weights=folder, num_steps=1)).num_steps
    assert steps == 1


def test_absent_weights_are_one_sentence(tmp_path):
    for name in ("student", "teacher", "regression"):
        with pytest.raises(WeightsError, match=name):
            load_generator(GeneratorConfig(name=name, weights=tmp_path))


def test_render_returns_its_guidance():
    guidance = make_guidance()
    generator = load_generator(GeneratorConfig(name="render"))
    assert torch.equal(generator.generate(guidance, seed=1), guidance.frames)
    assert generator.num_frames == 16


def test_replay_needs_a_bank():
    with pytest.raises(InputError, match="folder of a bank"):
        load_generator(GeneratorConfig(name="replay"))


def test_unknown_names_list_what_there_is():
    with pytest.raises(InputError, match="fill, regression, render, replay, student, teacher"):
        load_generator(GeneratorConfig(name="magic"))
    assert set(GENERATORS) == {"fill", "regression", "render", "replay", "student", "teacher"}
