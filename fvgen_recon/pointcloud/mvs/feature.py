"""What is compared between the photos: learned maps at two sizes, and plain patches."""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from fvgen_recon.pointcloud.mvs.config import MvsConfig

_VARIANCE_FLOOR = 1e-4  # of the order of a photo's noise: keeps flat patches from matching


def patches(grey: Float[Tensor, "V H W"], window: int = 5) -> Float[Tensor, "V P H W"]:
    """Return the window around each pixel as a vector of mean zero and about unit length.

    The dot product of two such vectors is the zero-mean normalised cross-correlation of the
    windows; since they are maps, they can be warped like learned features.
    """
    half = window // 2
    padded = F.pad(grey[:, None], (half,) * 4, mode="replicate")
    height, width = grey.shape[-2:]
    rows = [
        padded[:, :, i : i + height, j : j + width] for i in range(window) for j in range(window)
    ]
    stack = torch.cat(rows, dim=1)
    centred = stack - stack.mean(dim=1, keepdim=True)
    variance = centred.square().mean(dim=1, keepdim=True) + _VARIANCE_FLOOR
    return centred * (variance * window * window).rsqrt()


def norm(channels: int) -> nn.GroupNorm:
    """Normalise over groups of at least four channels."""
    return nn.GroupNorm(
        max(1, math.gcd(channels, 8) if channels >= 32 else channels // 4), channels
    )


class Residual(nn.Module):
    """Two 3x3 convolutions with a skip."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            norm(width),
            nn.SiLU(),
            nn.Conv2d(width, width, 3, padding=1),
            norm(width),
            nn.SiLU(),
            nn.Conv2d(width, width, 3, padding=1),
        )

    def forward(self, x: Float[Tensor, "N C H W"]) -> Float[Tensor, "N C H W"]:
        """Add what the convolutions find."""
        return x + self.body(x)


def _halve(before: int, after: int) -> nn.Conv2d:
    """Halve the size; an even kernel keeps the centres of the coarse pixels right."""
    return nn.Conv2d(before, after, 4, stride=2, padding=1)


class ViewAttention(nn.Module):
    """A view's pixels look at each other, then at those of its source views."""

    def __init__(self, width: int, head_dim: int) -> None:
        super().__init__()
        self.num_heads = width // head_dim
        self.norms = nn.ModuleList([nn.LayerNorm(width) for _ in range(3)])
        self.queries = nn.ModuleList([nn.Linear(width, width) for _ in range(2)])
        self.keys = nn.ModuleList([nn.Linear(width, 2 * width) for _ in range(2)])
        self.outs = nn.ModuleList([nn.Linear(width, width) for _ in range(2)])
        self.mlp = nn.Sequential(
            nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)
        )
        for layer in (*self.outs, self.mlp[2]):
            assert isinstance(layer, nn.Linear)
            nn.init.normal_(layer.weight, std=0.02 / math.sqrt(width / 32))
            nn.init.zeros_(layer.bias)

    def _attend(self, index: int, x: Tensor, other: Tensor) -> Tensor:
        def split(t: Tensor) -> Tensor:
            return t.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)

        key, value = self.keys[index](other).chunk(2, dim=-1)
        found = F.scaled_dot_product_attention(
            split(self.queries[index](x)), split(key), split(value)
        )
        return self.outs[index](found.transpose(1, 2).flatten(-2))

    def forward(
        self, x: Float[Tensor, "N L C"], place: Float[Tensor, "L C"], sources: Int[Tensor, "N S"]
    ) -> Float[Tensor, "N L C"]:
        """Return the tokens with what they found in their own view and in the sources."""
        own = self.norms[0](x) + place
        x = x + self._attend(0, own, own)
        own = self.norms[1](x) + place
        x = x + self._attend(1, own, own[sources].flatten(1, 2))
        return x + self.mlp(self.norms[2](x))


def sine_places(height: int, width: int, channels: int, like: Tensor) -> Float[Tensor, "L C"]:
    """Sines and cosines of the place of each pixel, wavelengths from 4 to some 250 pixels."""
    count = channels // 4
    waves = 2 * math.pi / 4 * torch.logspace(0, -6, count, base=2.0, device=like.device)
    y, x = (torch.arange(n, device=like.device)[:, None] * waves for n in (height, width))
    rows = torch.cat([y.sin(), y.cos()], dim=-1)[:, None].expand(height, width, -1)
    columns = torch.cat([x.sin(), x.cos()], dim=-1)[None].expand(height, width, -1)
    return torch.cat([rows, columns], dim=-1).flatten(0, 1).to(like.dtype)


class Encoder(nn.Module):
    """Photos to feature pyramids, with attention between the views at the coarsest level."""

    def __init__(self, config: MvsConfig) -> None:
        super().__init__()
        first, second, third = config.widths
        self.to_first = nn.Sequential(_halve(3, first), Residual(first))
        self.to_second = nn.Sequential(_halve(first, second), Residual(second), Residual(second))
        self.to_third = nn.Sequential(_halve(second, third), Residual(third), Residual(third))
        self.attention = nn.ModuleList(
            [ViewAttention(third, config.head_dim) for _ in range(config.num_attention)]
        )
        self.raise_to_quarter = nn.Conv2d(third, second, 1)
        self.raise_to_half = nn.Conv2d(second, first, 1)
        self.merge_quarter, self.merge_half = Residual(second), Residual(first)
        self.match_quarter = nn.Conv2d(second, config.matched[1], 3, padding=1)
        self.match_half = nn.Conv2d(first, config.matched[0], 3, padding=1)

    def forward(
        self, images: Float[Tensor, "N 3 H W"], sources: Int[Tensor, "N S"]
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return context and matched features at 1/2, then the same at 1/4.

        Args:
            images: Photos in [0, 1]; sides are multiples of 16.
            sources: Views that each view is compared with.
        """
        mean = images.mean(dim=(1, 2, 3), keepdim=True)
        spread = images.flatten(1).std(dim=1)[:, None, None, None].clamp_min(0.05)
        half = self.to_first((images - mean) / spread)
        quarter = self.to_second(half)
        eighth = self.to_third(quarter)
        size = (eighth.shape[-2], eighth.shape[-1])
        if len(self.attention):
            tokens = eighth.flatten(2).mT
            place = sine_places(*size, tokens.shape[-1], tokens)
            for block in self.attention:
                tokens = block(tokens, place, sources)
            eighth = tokens.mT.unflatten(2, size)
        quarter = self.merge_quarter(quarter + double_size(self.raise_to_quarter(eighth)))
        half = self.merge_half(half + double_size(self.raise_to_half(quarter)))
        return half, self.match_half(half), quarter, self.match_quarter(quarter)


def double_size(x: Float[Tensor, "N C H W"]) -> Float[Tensor, "N C H2 W2"]:
    """Bring maps to twice the size, bilinearly."""
    return F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
