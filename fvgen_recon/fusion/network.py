"""The fusion network: a UNet that weighs render against frame in every pixel and band of detail.

It can add nothing of its own. A network that may, learns what colours its training scenes have
where nothing was seen, which is wrong in others.
"""

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
    """Mixes the bands of two Laplacian pyramids (Burt and Adelson, 1983), pixel by pixel.

    In every band the answer is `(1 + g) * ((1 - w) * splat + w * frame)` with w in (0, 1) and g in
    (-1, 1): which of both is right there, and whether detail is to be believed at all. The coarsest
    band has no g, so that brightness stays between that of both. Untrained it is the plain rule: w
    is the share of the frame and g is 0. What it answers at a pixel depends on what lies around it,
    not on the size of the image.
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
        self.head = nn.Conv2d(widths[0], 2 * len(widths) - 1, 3, padding=1)
        _start_at_zero(self.head)
        self.to(memory_format=torch.channels_last)

    def forward(self, view: FusionView) -> Float[Tensor, "N 3 H W"]:
        """Put renders and frames together; values may leave [0, 1] a little."""
        height, width = view.splat.shape[-2:]
        multiple = self.config.size_multiple
        pad = (0, -width % multiple, 0, -height % multiple)
        padded = F.pad(_planes(view), pad, mode="replicate")
        planes = padded.contiguous(memory_format=torch.channels_last)
        found = self._unet(planes, _scaled(view.facts)).float()
        count = len(self.config.widths)
        share = view.facts[:, SHARE, None, None, None].clamp(_LEAST_SHARE, 1 - _LEAST_SHARE)
        weights = torch.sigmoid(share.logit() + found[:, :count])
        gains = 1 + torch.tanh(found[:, count:])
        first, second = (
            split_bands(F.pad(image, pad, mode="replicate"), count)
            for image in (view.splat, view.frame)
        )
        mixed = [
            torch.lerp(ours, theirs, _at_band(weights, band))
            for band, (ours, theirs) in enumerate(zip(first, second, strict=True))
        ]
        kept = [x * _at_band(gains, band) for band, x in enumerate(mixed[:-1])]
        return join_bands([*kept, mixed[-1]])[..., :height, :width]

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


def split_bands(image: Float[Tensor, "N 3 H W"], count: int) -> list[Float[Tensor, "N 3 _ _"]]:
    """Return bands of detail, finest first, and what is left: each at half the size of the last.

    Args:
        image: Its sides are multiples of `2 ** (count - 1)`.
        count: Number of bands.
    """
    bands = []
    for _ in range(count - 1):
        coarse = F.avg_pool2d(image, 2)
        bands.append(image - _grow(coarse))
        image = coarse
    return [*bands, image]


def join_bands(bands: list[Float[Tensor, "N 3 _ _"]]) -> Float[Tensor, "N 3 H W"]:
    """Return the image that has these bands; undoes `split_bands`."""
    image = bands[-1]
    for band in bands[-2::-1]:
        image = band + _grow(image)
    return image


def _grow(image: Tensor) -> Tensor:
    return F.interpolate(image, scale_factor=2, mode="bilinear", align_corners=False)


def _at_band(found: Float[Tensor, "N B H W"], band: int) -> Float[Tensor, "N 1 h w"]:
    """Return what was found for a band, at the band's size."""
    own = found[:, band : band + 1]
    return F.avg_pool2d(own, 2**band) if band else own


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
