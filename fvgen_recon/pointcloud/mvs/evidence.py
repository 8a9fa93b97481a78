"""From what the stages found to a chance that each depth is right."""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from fvgen_recon.pointcloud.confidence import gather_evidence
from fvgen_recon.types import Cameras

NUM_SIGNS = 12


def stage_signs(
    logits: Float[Tensor, "R D H W"], index: Float[Tensor, "R H W"]
) -> Float[Tensor, "R 3 H W"]:
    """How clear a stage's choice is: mass near it, entropy and spread of the hypotheses."""
    probability = logits.softmax(dim=1)
    labels = torch.arange(logits.shape[1], device=logits.device)[:, None, None]
    distance = (labels - index[:, None]).abs()
    near = (probability * (distance < 2.5)).sum(dim=1)
    entropy = -(probability * probability.clamp_min(1e-6).log()).sum(dim=1) / 4
    spread = (probability * distance).sum(dim=1) / logits.shape[1]
    return torch.stack([near, entropy, spread], dim=1)


def cross_view_signs(
    inverse_depth: Float[Tensor, "V H W"], cameras: Cameras, others: Int[Tensor, "V S"]
) -> Float[Tensor, "V 4 H W"]:
    """How the depth maps of the other views agree."""
    nothing = torch.zeros_like(inverse_depth)
    found = gather_evidence(
        score=nothing,
        clarity=nothing,
        inverse_depth=inverse_depth,
        cameras=cameras,
        others=others,
    )
    signs = [found.agreement, found.support, found.angle, found.in_front]
    return torch.stack(signs, dim=1)


class ConfidenceHead(nn.Module):
    """A small network over all signs, trained to say how often such a depth is right."""

    def __init__(self, context: int) -> None:
        super().__init__()
        self.context = nn.Conv2d(context, 12, 1)
        self.net = nn.Sequential(
            nn.Conv2d(NUM_SIGNS + 12, 32, 3, padding=1),
            nn.SiLU(),
            nn.Conv2d(32, 32, 3, padding=1),
            nn.SiLU(),
            nn.Conv2d(32, 4, 3, padding=1),
        )

    def forward(
        self, signs: Float[Tensor, "R F H W"], context: Float[Tensor, "R C H W"]
    ) -> Float[Tensor, "R H2 W2"]:
        """Return logits at twice the size."""
        logits = self.net(torch.cat([signs, torch.tanh(self.context(context))], dim=1))
        return F.pixel_shuffle(logits.float(), 2)[:, 0]
