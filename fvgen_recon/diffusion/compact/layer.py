"""Layers of the compact backbone. Frames of all clips are one batch: `N` = clips x frames."""

import math
from collections.abc import Sequence
from itertools import groupby

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn


def start_at_zero(layer: nn.Conv2d | nn.Linear) -> None:
    """Make a layer's output zero, so that the residual around it starts as the identity."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)


class ChannelNorm(nn.Module):
    """Layer norm over the channels of each pixel, so that no pixel depends on the image's size."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width))

    def forward(self, x: Float[Tensor, "N C h w"]) -> Float[Tensor, "N C h w"]:
        """Normalise; channels-last memory makes both permutations free."""
        y = F.layer_norm(x.permute(0, 2, 3, 1), self.weight.shape, self.weight, self.bias)
        return y.permute(0, 3, 1, 2)


class TimeEmbedding(nn.Module):
    """Sinusoids of the noise level, then a small network."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width
        self.first, self.last = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, level: Float[Tensor, "B"]) -> Float[Tensor, "B E"]:
        """Embed noise levels in [0, 1]."""
        half = self.width // 2
        rate = torch.arange(half, device=level.device, dtype=torch.float32)
        angle = 1000.0 * level.float()[:, None] * torch.exp(-math.log(10000.0) * rate / half)
        wave = torch.cat([angle.cos(), angle.sin()], dim=1)
        return self.last(F.silu(self.first(wave.to(self.first.weight.dtype))))


class Block(nn.Module):
    """Residual block: 3x3 convolutions within frames, a mix with both neighbour frames between."""

    def __init__(self, width: int, embedding: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = ChannelNorm(width), ChannelNorm(width)
        self.conv1 = nn.Conv2d(width, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)
        self.mix = nn.Conv2d(3 * width, width, 1)
        self.modulate = nn.Linear(embedding, 2 * width)
        for layer in (self.conv2, self.mix, self.modulate):
            start_at_zero(layer)

    def forward(
        self, x: Float[Tensor, "N C h w"], embedding: Float[Tensor, "B E"]
    ) -> Float[Tensor, "N C h w"]:
        """Apply the block to the frames of `B` clips."""
        num_frames = x.shape[0] // embedding.shape[0]
        h = self.conv1(F.silu(self.norm1(x)))
        h = h + self.mix(neighbours(h, num_frames))
        scale, shift = self.modulate(embedding).repeat_interleave(num_frames, 0).chunk(2, dim=1)
        h = self.norm2(h) * (1 + scale[..., None, None]) + shift[..., None, None]
        return x + self.conv2(F.silu(h))


def neighbours(x: Float[Tensor, "N C h w"], num_frames: int) -> Float[Tensor, "N D h w"]:
    """Stack each frame with the one before and the one after; the ends see themselves."""
    # Channels last, as the convolution behind wants them: turning them costs more than it does.
    clips = x.permute(0, 2, 3, 1).unflatten(0, (-1, num_frames))
    longer = torch.cat([clips[:, :1], clips, clips[:, -1:]], dim=1)
    stacked = torch.cat([longer[:, :-2], clips, longer[:, 2:]], dim=-1)
    return stacked.flatten(0, 1).permute(0, 3, 1, 2)


def join_channels(parts: Sequence[Float[Tensor, "N _ H W"]]) -> Float[Tensor, "N C H W"]:
    """Stack maps along their channels, channels last in memory."""
    if parts[0].device.type != "cpu":
        return torch.cat(list(parts), dim=1).contiguous(memory_format=torch.channels_last)
    runs = groupby(parts, key=_is_channels_last)
    rows = [
        _rows(run[0] if len(run) == 1 else torch.cat(run, dim=1))
        for run in (list(r) for _, r in runs)
    ]
    return torch.cat(rows, dim=-1).permute(0, 3, 1, 2)


def _is_channels_last(x: Tensor) -> bool:
    return x.stride(1) == 1 < x.stride(3)


def _rows(x: Tensor) -> Tensor:
    """Return `N H W C`; a CPU copies matrices several times faster than images."""
    if _is_channels_last(x):
        return x.permute(0, 2, 3, 1)
    turned = [image.flatten(1).t().contiguous() for image in x]
    stacked = turned[0][None] if len(turned) == 1 else torch.stack(turned)
    return stacked.unflatten(1, x.shape[2:])


class Attention(nn.Module):
    """Full attention over all places and frames of a clip, then a pointwise network.

    Places enter by rotary phases (Su et al., "RoFormer", 2021) along time, rows and columns; time
    runs from 0 to 8 over a clip of any length, so that 8 and 16 frames look alike.
    """

    def __init__(self, width: int, head_dim: int) -> None:
        super().__init__()
        assert width % head_dim == 0
        assert head_dim % 16 == 0
        self.head_dim = head_dim
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width)
        self.widen, self.narrow = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        for layer in (self.out, self.narrow):
            start_at_zero(layer)

    def forward(
        self, x: Float[Tensor, "N C h w"], phase: Float[Tensor, "S D"]
    ) -> Float[Tensor, "N C h w"]:
        """Mix the tokens of each clip; `phase` holds one row of angles a token of a clip."""
        num_maps, channels, height, width = x.shape
        num_clips = num_maps * height * width // phase.shape[0]
        tokens = x.permute(0, 2, 3, 1).reshape(num_clips, -1, channels)
        qkv = self.qkv(self.norm1(tokens)).unflatten(2, (3, -1, self.head_dim))
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        mixed = F.scaled_dot_product_attention(rotate(q, phase), rotate(k, phase), v)
        tokens = tokens + self.out(mixed.transpose(1, 2).flatten(2))
        tokens = tokens + self.narrow(F.silu(self.widen(self.norm2(tokens))))
        return tokens.reshape(num_maps, height, width, channels).permute(0, 3, 1, 2)


def rotate(x: Float[Tensor, "B A S E"], phase: Float[Tensor, "S D"]) -> Float[Tensor, "B A S E"]:
    """Turn pairs of channels (first and second half) by the angles of each token; E = 2 D."""
    cos, sin = phase.cos(), phase.sin()
    first, second = x.float().chunk(2, dim=-1)
    turned = torch.cat([first * cos - second * sin, first * sin + second * cos], dim=-1)
    return turned.to(x.dtype)


def rotary_phase(
    num_frames: int, height: int, width: int, head_dim: int, device: torch.device
) -> Float[Tensor, "S D"]:
    """Angles of all tokens of a clip: a quarter of the pairs for time, the rest for places."""
    pairs = head_dim // 2
    time_pairs = pairs // 4
    row_pairs = (pairs - time_pairs) // 2
    split = (time_pairs, row_pairs, pairs - time_pairs - row_pairs)
    axes = (
        torch.linspace(0, 8, num_frames, device=device),
        torch.arange(height, device=device, dtype=torch.float32),
        torch.arange(width, device=device, dtype=torch.float32),
    )
    grid = torch.meshgrid(*axes, indexing="ij")
    angles = []
    for place, count in zip(grid, split, strict=True):
        rate = 100.0 ** (-torch.arange(count, device=device, dtype=torch.float32) / count)
        angles.append(place.reshape(-1, 1) * rate)
    return torch.cat(angles, dim=1)
