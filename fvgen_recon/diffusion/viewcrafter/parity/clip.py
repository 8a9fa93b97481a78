"""Text tower, image tower and preprocessing against fixtures of the original."""

from pathlib import Path

import torch
from transformers import CLIPTextModel, CLIPVisionModel

from fvgen_recon.diffusion.viewcrafter.clip import (
    image_tokens,
    preprocess,
    text_config,
    text_tokens,
    vision_config,
)
from fvgen_recon.diffusion.viewcrafter.key import load_original, text_rules, vision_rules
from fvgen_recon.diffusion.viewcrafter.parity.fixture import Fixture, difference, read_fixture
from fvgen_recon.errors import InputError
from fvgen_recon.types import Difference

TOLERANCE = 1e-5


@torch.no_grad()
def compare_clip(path: Path) -> tuple[Difference, ...]:
    """Compare whatever of towers and preprocessing a fixture holds.

    Raises:
        InputError: The fixture is of another layout.
    """
    fixture = read_fixture(path)
    rows = _compare_preprocess(fixture)
    try:
        if "text" in fixture.facts and "text_out" in fixture.tensors:
            rows += _compare_text(fixture)
        if "vision" in fixture.facts and "image" in fixture.tensors:
            rows += _compare_vision(fixture)
    except (KeyError, TypeError) as error:
        raise InputError(f"{path} does not describe CLIP towers: {error!r}.") from error
    if not rows:
        raise InputError(
            f"{path} holds neither towers nor preprocessed images: use a fixture of CLIP."
        )
    return tuple(rows)


def _compare_preprocess(fixture: Fixture) -> list[Difference]:
    rows = []
    for name in sorted(fixture.tensors):
        if not name.endswith(".in"):
            continue
        expected = fixture.tensor(f"{name[:-3]}.out")
        # A fixture may keep the outputs of the first images only.
        images = fixture.tensor(name).float()[: expected.shape[0]]
        ours = preprocess(images, expected.shape[-1])
        rows.append(difference(f"{name[:-3]}.out", ours, expected, TOLERANCE))
    return rows


def _compare_text(fixture: Fixture) -> list[Difference]:
    facts = fixture.fact("text")
    skipped = 1 if str(facts.get("layer", "penultimate")).startswith("penultimate") else 0
    config = text_config(
        width=facts["width"],
        layers=facts["layers"] - skipped,
        heads=facts["heads"],
        vocab_size=facts["vocab_size"],
        num_tokens=facts["context_length"],
    )
    tower = CLIPTextModel(config).eval()
    load_original(tower, text_rules(tower), fixture.weights, "cond_stage_model.model.")
    ours = text_tokens(tower, fixture.tensor("tokens"))
    return [difference("text_out", ours, fixture.tensor("text_out"), TOLERANCE)]


def _compare_vision(fixture: Fixture) -> list[Difference]:
    facts = fixture.fact("vision")
    config = vision_config(
        width=facts["width"],
        layers=facts["layers"],
        heads=facts["heads"],
        patch_size=facts["patch_size"],
        image_size=facts["image_size"],
        mlp_ratio=facts["mlp_ratio"],
    )
    tower = CLIPVisionModel(config).eval()
    load_original(tower, vision_rules(tower), fixture.weights, "embedder.model.visual.")
    images = fixture.tensor("image").float()
    inputs = {"image_out": images, "image_out_zeros": torch.zeros_like(images)}
    return [
        difference(name, image_tokens(tower, value), fixture.tensor(name), TOLERANCE)
        for name, value in inputs.items()
        if name in fixture.tensors
    ]
