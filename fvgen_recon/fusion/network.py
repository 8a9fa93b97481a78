"""The fusion network: a UNet that weighs render against frame in every pixel."""

from itertools import pairwise

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from fvgen_recon.fusion.config import FusionConfig
from fvgen_recon.fusion.view import NUM_FACTS, SHARE, FusionView

_NUM_PLANES = 10
_SPREAD_UNIT = 0.1
_LEAST_SHARE = 1e-3


class Block(nn.Module):
    """Two convolutions around which the input is carried on; starts as the identity.

    There is no normalisation: statistics over a crop are not those over the image.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)
        _start_at_zero(self.conv2)

    def forward(self, x: Float[Tensor, "N C h w"]) -> Float[Tensor, "N C h w"]:
        """Apply the block."""
        return x + self.conv2(F.silu(self.conv1(F.silu(x))))


class FusionNetwork(nn.Module):
    """Returns `w * splat + (1 - w) * frame + residual`, both found for every pixel.

    Untrained it is the plain rule: w is one minus the share of the frame, the residual 0. What it
    answers at a pixel depends on what lies around it, not on the size of the image.
    """

    def __init__(self, config: FusionConfig) -> None:
        super().__init__()
        self.config = config
        widths, counts = config.widths, config.num_blocks
        self.stem = nn.Conv2d(_NUM_PLANES, widths[0], 3, padding=1)
        self.facts = nn.ModuleList([nn.Linear(NUM_FACTS, width) for width in widths])
        self.down = nn.ModuleList([_blocks(w, n) for w, n in zip(widths, counts, strict=True)])
        self.shrink = nn.ModuleList([nn.Conv2d(w, v, 2, stride=2) for w, v in pairwise(widths)])
        self.grow = nn.ModuleList([nn.ConvTranspose2d(v, w, 2, 2) for w, v in pairwise(widths)])
        self.up = nn.ModuleList(
            [_blocks(w, n) for w, n in zip(widths[:-1], counts[:-1], strict=True)]
        )
        self.head = nn.Conv2d(widths[0], 4, 3, padding=1)
        _start_at_zero(self.head)
        self.to(memory_format=torch.channels_last)

    def forward(self, view: FusionView) -> Float[Tensor, "N 3 H W"]:
        """Put renders and frames together; values may leave [0, 1] a little."""
        height, width = view.splat.shape[-2:]
        multiple = self.config.size_multiple
        pad = (0, -width % multiple, 0, -height % multiple)
        planes = F.pad(_planes(view), pad, mode="replicate")
        planes = planes.contiguous(memory_format=torch.channels_last)
        found = self._unet(planes, _scaled(view.facts))[..., :height, :width].float()
        share = view.facts[:, SHARE, None, None, None].clamp(_LEAST_SHARE, 1 - _LEAST_SHARE)
        weight = torch.sigmoid(share.logit() + found[:, :1])
        return torch.lerp(view.splat, view.frame, weight) + found[:, 1:]

    def _unet(self, planes: Tensor, facts: Tensor) -> Tensor:
        x, skips = self.stem(planes), []
        last = len(self.down) - 1
        for level, blocks in enumerate(self.down):
            x = blocks(x + self.facts[level](facts)[..., None, None])
            if level < last:
                skips.append(x)
                x = self.shrink[level](x)
        for level in reversed(range(last)):
            x = self.up[level](self.grow[level](x) + skips[level])
        return self.head(F.silu(x))


def _start_at_zero(layer: nn.Conv2d) -> None:
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)


def _blocks(width: int, count: int) -> nn.Sequential:
    return nn.Sequential(*[Block(width) for _ in range(count)])


def _planes(view: FusionView) -> Float[Tensor, "N P H W"]:
    """Stack what is known of each pixel, about in [-1, 1]."""
    images = [image * 2 - 1 for image in (view.splat, view.frame)]
    masks = [mask * 2 - 1 for mask in (view.opacity, view.trusted, view.layered)]
    return torch.cat([*images, view.spread / _SPREAD_UNIT, *masks], dim=1)


def _scaled(facts: Float[Tensor, "N F"]) -> Float[Tensor, "N F"]:
    """Bring facts about into [-1, 1]."""
    share, num_inputs, num_members, angle, distance, scale = facts.unbind(1)
    rows = (
        2 * share - 0.5,
        num_inputs.log2() / 2 - 1,
        (num_members - 2) / 2,
        2 * angle.clamp_max(1.5) - 0.5,
        distance.clamp_max(3) - 0.5,
        scale.log2().clamp(-2, 2),
    )
    return torch.stack(rows, dim=1)
