"""What the original checkpoint holds: every name and shape, derived from the networks' sizes."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from fvgen_recon.diffusion.schedule import ViewCrafterSchedule
from fvgen_recon.diffusion.viewcrafter.architecture import Architecture, Parts
from fvgen_recon.diffusion.viewcrafter.buffer import original_buffers
from fvgen_recon.diffusion.viewcrafter.clip import NUM_TEXT_TOKENS
from fvgen_recon.diffusion.viewcrafter.key import (
    KeyRule,
    same_name_rules,
    text_rules,
    unet_rules,
    vae_rules,
    vision_rules,
)

PREFIXES = {
    "unet": "model.diffusion_model.",
    "image_projector": "image_proj_model.",
    "vae": "first_stage_model.",
    "text_encoder": "cond_stage_model.model.",
    "image_encoder": "embedder.model.visual.",
}
"""What stands before the names of each part in the original."""

_TEXT_LAYER = "transformer.resblocks."
_SHOWN = 4


@dataclass(frozen=True, kw_only=True, slots=True)
class KeyReport:
    """How a checkpoint's names and shapes differ from what is expected."""

    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    misshaped: tuple[tuple[str, tuple[int, ...], tuple[int, ...]], ...]
    """Name, expected shape and the shape that came."""

    @property
    def is_empty(self) -> bool:
        """True where nothing differs."""
        return not (self.missing or self.unexpected or self.misshaped)

    def sentence(self) -> str:
        """Return one sentence with counts and the first names."""
        shapes = [f"{n} is {came} and not {want}" for n, want, came in self.misshaped]
        groups = {
            "missing": list(self.missing),
            "unexpected": list(self.unexpected),
            "of another shape": shapes,
        }
        parts = []
        for label, names in groups.items():
            if names:
                more = ", ..." if len(names) > _SHOWN else ""
                parts.append(f"{len(names)} tensors {label} ({', '.join(names[:_SHOWN])}{more})")
        return "; ".join(parts)


def part_rules(parts: Parts) -> dict[str, list[KeyRule]]:
    """Return the rules of each part by its name."""
    return {
        "unet": unet_rules(parts.unet),
        "image_projector": same_name_rules(parts.image_projector),
        "vae": vae_rules(parts.vae),
        "text_encoder": text_rules(parts.text_encoder),
        "image_encoder": vision_rules(parts.image_encoder),
    }


def leftover_shapes(architecture: Architecture, parts: Parts) -> dict[str, tuple[int, ...]]:
    """Return what the checkpoint holds and no network reads.

    That is the schedule's buffers, the last layer of the text tower, and the text half and the
    projections of the image tower's CLIP.
    """
    text, vision = architecture.text, architecture.vision
    schedule = ViewCrafterSchedule(base_scale=1.0, num_timesteps=architecture.num_timesteps)
    shapes = {name: tuple(b.shape) for name, b in original_buffers(schedule).items()}
    first = f"{_TEXT_LAYER}0."
    for rule in text_rules(parts.text_encoder):
        if rule.source.startswith(first):
            name = rule.source.replace(first, f"{_TEXT_LAYER}{text.layers}.")
            shapes[PREFIXES["text_encoder"] + name] = rule.source_shape
    for prefix in (PREFIXES["text_encoder"], "embedder.model."):
        shapes[f"{prefix}text_projection"] = (text.width, text.embed_dim)
        shapes[f"{prefix}logit_scale"] = ()
    shapes["embedder.model.positional_embedding"] = (NUM_TEXT_TOKENS, text.width)
    shapes["embedder.model.token_embedding.weight"] = (text.vocab_size, text.width)
    shapes["embedder.model.ln_final.weight"] = (text.width,)
    shapes["embedder.model.ln_final.bias"] = (text.width,)
    shapes[f"{PREFIXES['image_encoder']}proj"] = (vision.width, text.embed_dim)
    return shapes


def expected_shapes(architecture: Architecture, parts: Parts) -> dict[str, tuple[int, ...]]:
    """Return every name and shape of the original checkpoint."""
    shapes = leftover_shapes(architecture, parts)
    for name, rules in part_rules(parts).items():
        shapes |= {PREFIXES[name] + rule.source: rule.source_shape for rule in rules}
    return shapes


def compare_keys(
    tensors: Mapping[str, torch.Tensor], expected: Mapping[str, tuple[int, ...]]
) -> KeyReport:
    """Compare a checkpoint's names and shapes with what is expected."""
    return KeyReport(
        missing=tuple(sorted(expected.keys() - tensors.keys())),
        unexpected=tuple(sorted(tensors.keys() - expected.keys())),
        misshaped=tuple(
            (name, shape, tuple(tensors[name].shape))
            for name, shape in expected.items()
            if name in tensors and tuple(tensors[name].shape) != shape
        ),
    )
