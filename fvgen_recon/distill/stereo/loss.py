"""What the stereo network is trained for."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from fvgen_recon.pointcloud.mvs.network import MvsResult, StageResult

RIGHT = 0.02
"""A depth is right where it is off by less than this share."""


FIGURES: tuple[str, ...] = (
    "total",
    "coarse_entropy",
    "coarse_near",
    "fine_error",
    "full_error",
    "confidence",
    "right_2",
)
"""What is watched."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StereoLosses:
    """Parts of the loss and figures to watch."""

    total: Tensor
    figures: dict[str, Tensor]
    """By the names in `FIGURES`, without gradient."""


def pool_truth(
    truth: Float[Tensor, "N H W"], factor: int, spacing: Float[Tensor, "N"]
) -> Float[Tensor, "N h w"]:
    """Mean of the known values of each cell; 0 where none is or where they are further apart."""
    blocks = truth.unflatten(2, (-1, factor)).unflatten(1, (-1, factor)).transpose(2, 3)
    blocks = blocks.flatten(3)
    known = blocks > 0
    high = blocks.amax(dim=-1)
    low = blocks.masked_fill(~known, torch.inf).amin(dim=-1)
    mean = blocks.sum(dim=-1) / known.sum(dim=-1).clamp_min(1)
    return mean.masked_fill(high - low >= spacing[:, None, None], 0.0)


def _view_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean over the views of the mean over their masked pixels; views with few count less."""
    count = mask.flatten(1).sum(dim=1)
    mean = (values * mask).flatten(1).sum(dim=1) / count.clamp_min(1)
    weight = (count / 300).clamp_max(1)
    return (mean * weight).sum() / weight.sum().clamp_min(1e-6)


def _stage_losses(stage: StageResult, truth: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Cross entropy and robust error in hypotheses, and the share within one hypothesis."""
    last = stage.logits.shape[1] - 1
    place = (truth - stage.first) / stage.spacing[:, None, None]
    inside = (truth > 0) & (place >= 0) & (place <= last)
    place = place.clamp(0, last)
    low = place.floor().clamp_max(last - 1)
    share = place - low
    log = stage.logits.log_softmax(dim=1)
    first, second = (log.gather(1, (low.long() + i)[:, None])[:, 0] for i in (0, 1))
    entropy = -((1 - share) * first + share * second)
    error = (stage.index - place).abs()
    near = (error.detach() < 1).float()
    return (
        _view_mean(entropy, inside),
        _view_mean(torch.log1p(error), inside),
        _view_mean(near, inside),
    )


def stereo_losses(result: MvsResult, truth: Float[Tensor, "N H W"]) -> StereoLosses:
    """Compare all stages with the truth, and the confidence with whether the depth is right."""
    spacing = result.coarse.spacing
    half, quarter = pool_truth(truth, 2, spacing), pool_truth(truth, 4, spacing)
    coarse_entropy, coarse_error, coarse_near = _stage_losses(result.coarse, quarter)
    fine_entropy, fine_error, _ = _stage_losses(result.fine, half)
    wide = spacing[:, None, None]
    start = torch.log1p((result.start - half).abs() / wide)
    known = truth > 0
    full = torch.log1p(2 * (result.inverse_depth - truth).abs() / wide)
    relative = (result.inverse_depth.detach() / truth.clamp_min(1e-12) - 1).abs()
    right = (relative < RIGHT).float()
    logit = result.confidence_logit
    judged = F.binary_cross_entropy_with_logits(logit, right, reduction="none")
    full_error, start_error = _view_mean(full, known), _view_mean(start, half > 0)
    confidence = _view_mean(judged, known)
    total = coarse_entropy + coarse_error + 0.5 * fine_entropy + fine_error
    total = total + start_error + 2 * full_error + confidence
    right_2 = _view_mean(right, known)
    parts = (total, coarse_entropy, coarse_near, fine_error, full_error, confidence, right_2)
    figures = {name: part.detach() for name, part in zip(FIGURES, parts, strict=True)}
    return StereoLosses(total=total, figures=figures)


def completion_losses(stage: StageResult, truth: Float[Tensor, "N H W"]) -> StereoLosses:
    """Compare the first stage alone with the truth; figures of what follows it are 0."""
    entropy, error, near = _stage_losses(stage, pool_truth(truth, 4, stage.spacing))
    total = entropy + error
    known = {"total": total, "coarse_entropy": entropy, "coarse_near": near}
    nothing = torch.zeros_like(total)
    figures = {name: known.get(name, nothing).detach() for name in FIGURES}
    return StereoLosses(total=total, figures=figures)
