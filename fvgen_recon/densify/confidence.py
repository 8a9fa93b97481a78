"""How far each pixel of a generated frame may be trusted as training signal."""

from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from fvgen_recon.types import Guidance


@dataclass(frozen=True, kw_only=True, slots=True)
class ConfidenceConfig:
    """Levels and tolerances of the per-pixel confidence."""

    supported: float = 1.0
    """Confidence where trusted geometry was rendered and the generator agrees with it."""
    seen: float = 0.5
    """Confidence where only the dense single-view layers were hit and agree."""
    invented: float = 0.25
    """Confidence where no input view shows anything; 0 for generators that invent nothing."""
    tolerance: float = 0.12
    """Colour difference (RMS over channels, in [0, 1]) at which agreement falls to exp(-1/2)."""
    calibrated: bool = False
    """Use the calibrated model of the generator (`densify.trust`) instead of these levels."""
    model: Path | None = None
    """File of calibrated models; none means what the package brings."""


def agreement(
    first: Float[Tensor, "*#B 3 H W"], second: Float[Tensor, "*#B 3 H W"], tolerance: float
) -> Float[Tensor, "*_ 1 H W"]:
    """Return exp(-d^2 / 2 tolerance^2) of the RMS colour difference d."""
    squared = (first - second).square().mean(-3, keepdim=True)
    return torch.exp(-squared / (2 * tolerance**2))


def frame_confidence(
    samples: Float[Tensor, "S T 3 H W"], guidance: Guidance, config: ConfidenceConfig
) -> Float[Tensor, "T 1 H W"]:
    """Score generated frames against what is known.

    Trusted render: the generator's agreement with it. Dense layers only: the best agreement with
    a layer. Nothing: `config.invented`. All are multiplied by the agreement among samples where
    more than one was drawn.

    Args:
        samples: One or more samples of the same clip.
        guidance: What they were generated from.
        config: Levels and tolerances.

    Returns:
        Confidence in [0, 1]; 1 at anchor frames, which are photos.
    """
    frames = samples[0]
    supported = config.supported * agreement(frames, guidance.frames, config.tolerance)
    result = torch.where(guidance.mask, supported, _unsupported(frames, guidance, config))
    if samples.shape[0] > 1:
        spread = samples.var(0, unbiased=True).mean(1, keepdim=True)
        result = result * torch.exp(-spread / (2 * config.tolerance**2))
    is_anchor = guidance.is_anchor[:, None, None, None]
    return torch.where(is_anchor, torch.ones_like(result), result).clamp(0, 1)


def _unsupported(
    frames: Tensor, guidance: Guidance, config: ConfidenceConfig
) -> Float[Tensor, "T 1 H W"]:
    """Confidence outside the trusted render."""
    invented = torch.full_like(guidance.depth, config.invented)
    if guidance.layers.shape[0] == 0:
        return invented
    match = agreement(frames[None], guidance.layers, config.tolerance) * guidance.layer_masks
    return torch.maximum(config.seen * match.amax(0), invented)
