"""How far each depth may be trusted."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from fvgen_recon.pointcloud.consistency import Agreement

MAX_ERROR_PX = 1.0
MAX_RELATIVE = 0.05


@dataclass(frozen=True, kw_only=True, slots=True)
class Evidence:
    """What is known about the depth of each pixel."""

    score: Float[Tensor, "V H W"]
    """ZNCC at the chosen depth."""
    clarity: Float[Tensor, "V H W"]
    """By how much the next best depth costs more after aggregation."""
    num_agree: Float[Tensor, "V H W"]
    """Number of other views whose depth agrees."""


def count_agreement(agreement: Agreement) -> Float[Tensor, "V H W"]:
    """Number of other views whose depth map agrees with each pixel."""
    close = (agreement.error < MAX_ERROR_PX) & (agreement.relative.abs() < MAX_RELATIVE)
    return (close & agreement.seen).sum(dim=1).to(agreement.error.dtype)


def estimate_confidence(evidence: Evidence) -> Float[Tensor, "V H W"]:
    """Chance that a depth is right: a logistic model of the evidence."""
    logit = (
        -4.0
        + 4.0 * evidence.score
        + 1.0 * evidence.clarity.clamp_max(1)
        + 2.5 * evidence.num_agree.clamp_max(1)
        + 0.5 * (evidence.num_agree - 1).clamp(0, 2)
    )
    return torch.sigmoid(logit)
