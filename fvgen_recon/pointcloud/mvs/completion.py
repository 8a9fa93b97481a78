"""Depth where matching found none: attention over whole views, from what was matched elsewhere.

Three photos taken far apart share only a part of what each shows. Where nothing can be compared a
surface goes on from where something could, and the photo says how: this is what is learned here.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from fvgen_recon.geometry.projection import unproject_depth
from fvgen_recon.pointcloud.mvs.config import MvsConfig
from fvgen_recon.pointcloud.mvs.feature import Residual, ViewAttention, double_size, sine_places
from fvgen_recon.pointcloud.mvs.semantic import EfficientNetLite0
from fvgen_recon.pointcloud.sweep import inside_image
from fvgen_recon.types import Cameras

NUM_CLUES = 14
_OPEN = 4.0  # logit of the share that matching keeps at first: nearly all


@dataclass(frozen=True, kw_only=True, slots=True)
class Projected:
    """What the source views' surest points say about the depth of a view's pixels."""

    inverse_depth: Float[Tensor, "V H W"]
    """Of the surest point that falls into a pixel; 0 where none does."""
    trust: Float[Tensor, "V H W"]
    """How sure it is; 0 where none falls."""


@torch.no_grad()
def project_sources(
    inverse_depth: Float[Tensor, "V H W"],
    trust: Float[Tensor, "V H W"],
    cameras: Cameras,
    sources: Int[Tensor, "V S"],
) -> Projected:
    """Bring every source view's points into each view; of those in a pixel the surest counts.

    Args:
        inverse_depth: Of all views, positive.
        trust: How sure each is, in [0, 1].
        cameras: Of all views, of the maps' size.
        sources: The source views of each view.
    """
    num_views, height, width = inverse_depth.shape
    points, _ = unproject_depth(1 / inverse_depth, cameras)
    points = points[sources].flatten(1, 3)
    w2c = cameras.w2c
    local = torch.einsum("vij,vnj->vni", w2c[:, :3, :3], points) + w2c[:, None, :3, 3]
    depth = local[..., 2].clamp_min(1e-6)
    uv = torch.einsum("vij,vnj->vni", cameras.K, local)[..., :2] / depth[..., None]
    hit = inside_image(uv, local[..., 2], (height, width))
    sure = trust[sources].flatten(1) * hit
    limit = uv.new_full((2,), width - 1)
    limit[1:] = height - 1
    column, row = torch.minimum(uv.clamp_min(0), limit).long().unbind(-1)
    cell = row * width + column
    nothing = torch.zeros_like(trust).flatten(1)
    best = nothing.scatter_reduce(1, cell, sure, "amax")
    is_best = (sure > 0) & (sure >= best.gather(1, cell))
    found = nothing.scatter_reduce(1, cell, torch.where(is_best, 1 / depth, 0.0), "amax")
    shape = (num_views, height, width)
    return Projected(inverse_depth=found.reshape(shape), trust=best.reshape(shape))


class Completion(nn.Module):
    """Adds to the logits of the planes what the whole view, and those beside it, make likely.

    At first it adds nothing, so that a network trained without it goes on from where it was.
    """

    def __init__(self, config: MvsConfig) -> None:
        super().__init__()
        context, width, head = config.widths[1], config.completion_width, config.completion_width
        self.enter = nn.Conv2d(context + NUM_CLUES, width, 4, stride=2, padding=1)
        self.semantic = EfficientNetLite0() if config.is_semantic else None
        """Knows what things are, which is half of knowing where they are; it is not trained."""
        if config.is_semantic:
            self.eighth, self.sixteenth = (nn.Conv2d(c, width, 1) for c in (40, 112))
            for layer in (self.eighth, self.sixteenth):  # at first it adds nothing
                nn.init.zeros_(layer.weight)
                assert layer.bias is not None
                nn.init.zeros_(layer.bias)
        self.blocks = nn.ModuleList(
            [ViewAttention(width, config.head_dim) for _ in range(config.num_completion)]
        )
        self.near = nn.Conv2d(context + NUM_CLUES, head, 3, padding=1)
        self.far = nn.Conv2d(width, head, 1)
        self.merge = nn.Sequential(Residual(head), Residual(head))
        self.leave = nn.Conv2d(head, config.num_planes + 1, 1)
        nn.init.zeros_(self.leave.weight)
        assert self.leave.bias is not None
        nn.init.zeros_(self.leave.bias)
        self.leave.bias.data[-1] = _OPEN

    def forward(
        self,
        images: Float[Tensor, "V 3 H4 W4"],
        context: Float[Tensor, "V C H W"],
        clues: Float[Tensor, "V F H W"],
        sources: Int[Tensor, "V S"],
    ) -> tuple[Float[Tensor, "V D H W"], Float[Tensor, "V 1 H W"]]:
        """Return what is added to the logits of the planes, and the share kept of what is there.

        Args:
            images: The photos in [0, 1]; sides are multiples of 16.
            context: Their features at 1/4.
            clues: What matching found there.
            sources: The source views of each view.
        """
        seen = torch.cat([context, clues.to(context.dtype)], dim=1)
        coarse = self.enter(seen)
        if self.semantic is not None:
            eighth, sixteenth = self.semantic.levels(images)
            coarse = coarse + self.eighth(eighth) + double_size(self.sixteenth(sixteenth))
        size = (coarse.shape[-2], coarse.shape[-1])
        tokens = coarse.flatten(2).mT
        place = sine_places(*size, tokens.shape[-1], tokens)
        for block in self.blocks:
            tokens = block(tokens, place, sources)
        coarse = tokens.mT.unflatten(2, size)
        merged = self.merge(self.near(seen) + double_size(self.far(coarse)))
        logits = self.leave(F.silu(merged)).float()
        return logits[:, :-1], torch.sigmoid(logits[:, -1:])
