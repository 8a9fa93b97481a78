"""How far each depth may be trusted."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from fvgen_recon.geometry.projection import unproject_depth
from fvgen_recon.geometry.rigid import normalise
from fvgen_recon.pointcloud.consistency import compare_depth, view_chunks
from fvgen_recon.pointcloud.neighbour import other_views
from fvgen_recon.types import Cameras

_MAX_RELATIVE = 0.05
_IN_FRONT = 0.05
_MAX_ANGLE = 30.0

# Fitted on training scenes by logistic regression: a depth is right where it is within 3 % of a
# structure-from-motion point, or where held-out photos show the same colour there (textured
# pixels only: on plain ones any depth would).
BIAS = -1.74
WEIGHTS = (1.62, 1.68, 1.87, 0.66, 0.47, -0.49)


@dataclass(frozen=True, kw_only=True, slots=True)
class Evidence:
    """What is known about the depth of each pixel."""

    score: Float[Tensor, "V H W"]
    """ZNCC with the source views at the chosen depth, in [-1, 1]."""
    clarity: Float[Tensor, "V H W"]
    """By how much the next best depth costs more after aggregation, at most 1."""
    agreement: Float[Tensor, "V H W"]
    """How well the depth map of the best other view agrees: 1 exactly, 0 not at all."""
    support: Float[Tensor, "V H W"]
    """The same, summed over all further views that agree, at most 2."""
    angle: Float[Tensor, "V H W"]
    """Widest angle of sight to a view that agrees, over 30 degrees, at most 1."""
    in_front: Float[Tensor, "V H W"]
    """Fraction of the other views in which the point floats before the surface seen there."""

    def stack(self) -> Float[Tensor, "V H W F"]:
        """Return the pieces of evidence in the order of the weights."""
        return torch.stack(
            [
                self.score,
                self.clarity,
                self.agreement,
                self.support,
                self.angle,
                self.in_front,
            ],
            dim=-1,
        )


def gather_evidence(
    *,
    score: Float[Tensor, "V H W"],
    clarity: Float[Tensor, "V H W"],
    inverse_depth: Float[Tensor, "V H W"],
    cameras: Cameras,
    others: Int[Tensor, "V S"] | None = None,
) -> Evidence:
    """Compare the views' depth maps with each other and collect what speaks for each pixel.

    Each view is compared with those listed in its row of `others`, by default with all.
    """
    if others is None:
        others = other_views(len(cameras), inverse_depth)
    parts = [
        _compare_views(inverse_depth, cameras, others, views)
        for views in view_chunks(others, inverse_depth)
    ]
    agreement, support, angle, in_front = (torch.cat(part) for part in zip(*parts, strict=True))
    return Evidence(
        score=score,
        clarity=clarity.clamp_max(1),
        agreement=agreement,
        support=support,
        angle=angle,
        in_front=in_front,
    )


def _compare_views(
    inverse_depth: Float[Tensor, "V H W"],
    cameras: Cameras,
    others: Int[Tensor, "V S"],
    views: slice,
) -> tuple[Float[Tensor, "R H W"], ...]:
    """Return agreement, support, angle and in_front of some views, as `Evidence` has them."""
    found = compare_depth(inverse_depth, cameras, others, views)
    close = found.seen & (found.relative.abs() < _MAX_RELATIVE)
    agree = torch.exp(-found.error.square()) * close
    ordered = agree.sort(dim=1, descending=True).values
    own = cameras[views]
    points, _ = unproject_depth(1 / inverse_depth[views], own)
    sight = normalise(own.position[:, None, None] - points)
    aside = normalise(cameras.position[others[views]][:, :, None, None] - points[:, None])
    angle = torch.arccos((sight[:, None] * aside).sum(-1).clamp(-1, 1)) * (agree > 0.3)
    return (
        ordered[:, 0],
        ordered[:, 1:].sum(dim=1).clamp_max(2),
        (torch.rad2deg(angle).amax(dim=1) / _MAX_ANGLE).clamp_max(1),
        (found.seen & (found.relative > _IN_FRONT)).float().mean(dim=1),
    )


def estimate_confidence(evidence: Evidence) -> Float[Tensor, "V H W"]:
    """Chance that a depth is right: a logistic model, fitted on training scenes."""
    stacked = evidence.stack()
    weight = torch.tensor(WEIGHTS, dtype=stacked.dtype, device=stacked.device)
    return torch.sigmoid(F.linear(stacked, weight[None])[..., 0] + BIAS)
