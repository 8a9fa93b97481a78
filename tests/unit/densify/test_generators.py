"""Generators by name, and the sentence where one cannot be had."""

from pathlib import Path

import pytest
import torch
from factories import make_guidance

from fvgen_recon.densify.generators import GeneratorConfig, load_generator
from fvgen_recon.diffusion.compact.backbone import CompactBackbone
from fvgen_recon.diffusion.compact.checkpoint import save_compact
from fvgen_recon.diffusion.compact.config import CompactConfig
from fvgen_recon.errors import InputError, WeightsError


def test_render_returns_its_guidance() -> None:
    guidance = make_guidance()
    frames = load_generator(GeneratorConfig(name="render")).generate(guidance, seed=1)
    assert torch.equal(frames, guidance.frames)


def test_unknown_and_missing_ones_get_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="choose one of"):
        load_generator(GeneratorConfig(name="oracle"))
    with pytest.raises(InputError, match="folder of a bank"):
        load_generator(GeneratorConfig(name="replay"))
    with pytest.raises(WeightsError, match="no student weights"):
        load_generator(GeneratorConfig(name="student", weights=tmp_path))
    with pytest.raises(WeightsError, match="convert_viewcrafter"):
        load_generator(GeneratorConfig(name="teacher", weights=tmp_path))


def test_a_compact_student_loads_from_a_folder_and_repeats_by_seed(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = CompactConfig(
        widths=(32, 32, 32), num_blocks=(1, 1, 1), num_attention=1, head_dim=16, embedding=32
    )
    save_compact(tmp_path, CompactBackbone(config), role="student", num_steps=2)
    generator = load_generator(GeneratorConfig(name="student", weights=tmp_path))
    guidance = make_guidance(num_frames=4, height=20, width=44)
    first, again = (generator.generate(guidance, seed=3) for _ in range(2))
    assert generator.num_steps == 2
    assert first.shape == guidance.frames.shape
    assert torch.equal(first, again)
    assert torch.equal(first[guidance.is_anchor], guidance.frames[guidance.is_anchor])
    assert 0 <= float(first.min()) <= float(first.max()) <= 1
