"""The output head: copy from the renders, a little beside the pixel if need be, and correct.

With a gate the noisy frame comes in too, as far as it knows more than the renders.
"""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from fvgen_recon.diffusion.compact.config import NUM_SOURCES, CompactConfig
from fvgen_recon.diffusion.compact.layer import ChannelNorm, start_at_zero

_START_LOGITS = (2.0, 0.0, 0.0, -4.0)
"""Trusted points first, then the dense layers, the fill only where nothing else is known."""

_START_DOUBT = 0.03
"""Standard deviation of the error that an untrained gate expects, in [-1, 1] units: the median of
a trained network's at low noise. Of flat surfaces it is 0.002, of edges and holes 0.1."""
_MAX_DOUBT = 3.4
"""How far its logarithm may move."""
_PACE = 8.0
"""How much faster it moves than its output: the loss says little about it."""


class CopyHead(nn.Module):
    """Features to x0: softmax blend of the shifted renders plus a residual.

    Renders are aligned with the photos only up to depth errors, so each is read at an offset that
    the network chooses (bilinear, at most `max_offset_px`). What the features say in patches is
    then finished pixel by pixel, so that no pattern of patches shows in holes and edges stay
    sharp. At initialisation the output is the plain blend. The noisy frame is not among the
    sources: a fixed share of it would have to be cancelled exactly by the residual, which leaves
    grain. With `config.gate` it comes in by `WienerGate`, at a share that falls to zero with noise.
    """

    def __init__(self, config: CompactConfig) -> None:
        super().__init__()
        self.config = config
        area = config.patch**2
        self.norm = ChannelNorm(config.widths[0])
        per_pixel = NUM_SOURCES + 3 + config.detail
        self.splits = (per_pixel * area, 2 * (NUM_SOURCES - 1))
        self.conv = nn.Conv2d(config.widths[0], sum(self.splits), 3, padding=1)
        start_at_zero(self.conv)
        # Zero weights would keep the details at zero for ever: nothing would flow either way.
        fresh = slice((NUM_SOURCES + 3) * area, per_pixel * area)
        nn.init.kaiming_uniform_(self.conv.weight[fresh], nonlinearity="linear")
        self.finish = Finish(config)

    def forward(
        self,
        features: Float[Tensor, "N C h w"],
        condition: Float[Tensor, "N Cc h w"],
        x_t: Float[Tensor, "N Cz h w"],
        level: Float[Tensor, "N"],
    ) -> Float[Tensor, "N Cz h w"]:
        """Return x0 in float32; `level` is the share of noise in `x_t`, from 0 to 1."""
        patch = self.config.patch
        raw = self.conv(F.silu(self.norm(features)))
        unfolded, offsets = raw.split(self.splits, dim=1)
        unfolded = F.pixel_shuffle(unfolded, patch)
        planes = F.pixel_shuffle(condition[:, : 4 * NUM_SOURCES * patch**2].float(), patch)
        colors, masks = planes.split([3 * NUM_SOURCES, NUM_SOURCES], dim=1)
        colors, masks = self._shift(colors, masks, offsets.float())
        level = level[:, None, None, None]
        noisy = F.pixel_shuffle(x_t.float(), patch)
        finished = self.finish(unfolded, colors, masks, noisy, level)
        logits, residual = finished[:, :NUM_SOURCES], finished[:, NUM_SOURCES : NUM_SOURCES + 3]
        weights = (logits + (masks + 1e-4).log()).softmax(dim=1).unsqueeze(2)
        blend = (weights * colors.unflatten(1, (NUM_SOURCES, 3))).sum(dim=1)
        x0 = blend + residual
        if self.config.gate:
            x0 = pass_gate(x0, noisy, level, finished[:, NUM_SOURCES + 3 :])
        return F.pixel_unshuffle(x0, patch)

    def _shift(self, colors: Tensor, masks: Tensor, offsets: Tensor) -> tuple[Tensor, Tensor]:
        num_frames, _, height, width = colors.shape
        moved = NUM_SOURCES - 1
        limit = self.config.max_offset_px
        flow = limit * torch.tanh(offsets / limit)
        flow = F.interpolate(flow, (height, width), mode="bilinear", align_corners=False)
        # Scaled one by one: a constant made on the host could not be recorded in a CUDA graph.
        across, down = flow.unflatten(1, (moved, 2)).flatten(0, 1).unbind(1)
        step = torch.stack([across * (2 / width), down * (2 / height)], dim=-1)
        grid = _pixel_grid(height, width, flow.device) + step
        color = colors[:, : 3 * moved].unflatten(1, (moved, 3)).flatten(0, 1)
        mask = masks[:, :moved].unflatten(1, (moved, 1)).flatten(0, 1)
        planes = torch.cat([color * mask, mask], dim=1)
        read = F.grid_sample(planes, grid, padding_mode="zeros", align_corners=False)
        read_mask = read[:, 3:].clamp(0, 1)
        read_color = read[:, :3] / read_mask.clamp_min(1e-3)
        read_color = read_color.reshape(num_frames, 3 * moved, height, width)
        read_mask = read_mask.reshape(num_frames, moved, height, width)
        rest = (colors[:, 3 * moved :], masks[:, moved:])
        return torch.cat([read_color, rest[0]], dim=1), torch.cat([read_mask, rest[1]], dim=1)


def _pixel_grid(height: int, width: int, device: torch.device) -> Float[Tensor, "H W 2"]:
    rows = (torch.arange(height, device=device) + 0.5) * (2 / height) - 1
    columns = (torch.arange(width, device=device) + 0.5) * (2 / width) - 1
    y, x = torch.meshgrid(rows, columns, indexing="ij")
    return torch.stack([x, y], dim=-1)


def pass_gate(
    guess: Float[Tensor, "N 3 H W"],
    noisy: Float[Tensor, "N 3 H W"],
    level: Float[Tensor, "N 1 1 1"],
    doubt: Float[Tensor, "N 1 H W"],
) -> Float[Tensor, "N 3 H W"]:
    """Mix a guess of x0 with what a noisy frame shows, as Wiener's filter does pixel by pixel.

    On the path `x_t = (1 - u) x0 + u eps` the frame `x_t / (1 - u)` is x0 with noise of standard
    deviation `sigma = u / (1 - u)`. If the guess is off by `s`, the best mix has the share
    `s^2 / (s^2 + sigma^2)` of it: all of it without noise, nothing of it at u = 1. Written without
    a division by 1 - u.

    Args:
        guess: x0 without the gate.
        noisy: x_t.
        level: u.
        doubt: Tells s, which is 0.03 at 0 and lies in 0.001 to 0.9.
    """
    log_s = math.log(_START_DOUBT) + _MAX_DOUBT * torch.tanh(doubt * (_PACE / _MAX_DOUBT))
    variance = (2 * log_s).exp()
    signal = 1 - level
    factor = variance * signal / (variance * signal**2 + level**2)
    return guess + factor * (noisy - signal * guess)


class Finish(nn.Module):
    """What is decided at every pixel, from patches and renders.

    Logits of the renders, the residual and, with a gate, the doubt about both; then the noisy frame
    is seen too, shrunk as its noise grows, so that its grain can be taken away.
    """

    def __init__(self, config: CompactConfig) -> None:
        super().__init__()
        self.has_gate = config.gate
        per_pixel = NUM_SOURCES + 3 + config.gate
        seen = NUM_SOURCES + 3 + config.detail + 4 * NUM_SOURCES + 4 * config.gate
        self.first = nn.Conv2d(seen, config.finish, 3, padding=1)
        self.second = nn.Conv2d(config.finish, config.finish, 3, padding=1)
        self.last = nn.Conv2d(config.finish, per_pixel, 3, padding=1)
        start_at_zero(self.last)
        start = torch.tensor(_START_LOGITS)
        rest = torch.zeros(per_pixel - NUM_SOURCES)
        self.start = nn.Parameter(torch.cat([start, rest])[:, None, None])

    def forward(
        self,
        unfolded: Float[Tensor, "N U H W"],
        colors: Float[Tensor, "N C H W"],
        masks: Float[Tensor, "N M H W"],
        noisy: Float[Tensor, "N 3 H W"],
        level: Float[Tensor, "N 1 1 1"],
    ) -> Float[Tensor, "N P H W"]:
        """Return logits of the renders, the residual and the doubt if there is a gate, float32."""
        dtype = unfolded.dtype
        seen = [unfolded, colors.to(dtype), masks.to(dtype)]
        if self.has_gate:
            signal = 1 - level
            shrunk = noisy * (signal / (signal**2 + level**2))
            seen += [shrunk.to(dtype), level.expand_as(masks[:, :1]).to(dtype)]
        x = torch.cat(seen, dim=1).contiguous(memory_format=torch.channels_last)
        x = F.silu(self.first(x))
        x = self.last(F.silu(x + self.second(x))).float() + self.start.float()
        plain = unfolded[:, : NUM_SOURCES + 3].float()
        return torch.cat([x[:, : NUM_SOURCES + 3] + plain, x[:, NUM_SOURCES + 3 :]], dim=1)
