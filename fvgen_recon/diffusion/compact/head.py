"""The output head: copy from the renders, a little beside the pixel if need be, and correct.

With a gate the noisy frame comes in too, as far as it knows more than the renders.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from fvgen_recon.diffusion.compact.config import NUM_SOURCES, CompactConfig
from fvgen_recon.diffusion.compact.layer import ChannelNorm, join_channels, start_at_zero

_START_LOGITS = (2.0, 0.0, 0.0, -4.0)
"""Trusted points first, then the dense layers, the fill only where nothing else is known."""

_START_ALTERNATIVE = -2.0
"""Further guesses, at first little beside the dense layers."""
_START_DOUBT = 0.03
"""Standard deviation of the error that an untrained gate expects, in [-1, 1] units: the median of
a trained network's at low noise. Of flat surfaces it is 0.002, of edges and holes 0.1."""
_MAX_DOUBT = 3.4
"""How far its logarithm may move."""
_PACE = 8.0
"""How much faster it moves than its output: the loss says little about it."""
_HIT = 0.01
"""How much of a render's pixel must be there to be read alone."""
_BINOMIAL = (1, 8, 28, 56, 70, 56, 28, 8, 1)
"""Times 1/256 a low-pass of standard deviation 1.4 pixels; exact in bfloat16."""


class Renders(NamedTuple):
    """What is copied from: the same for all noise and noise levels of a clip."""

    sources: Float[Tensor, "N R 4 H W"]
    """Colours times masks, then masks, of all renders but the fill."""
    fill: Float[Tensor, "N 4 H W"]
    """Colours and mask of the fill."""
    grid: Float[Tensor, "H W 2"]
    """Where the pixels lie, in grid_sample's units."""

    def frames(self, index: slice) -> "Renders":
        """Select frames."""
        return Renders(sources=self.sources[index], fill=self.fill[index], grid=self.grid)


class Copies(NamedTuple):
    """What is read from all renders at the pixels of a frame, the fill last."""

    colors: Float[Tensor, "N S 3 H W"]
    """Between four pixels."""
    detail: Float[Tensor, "N S 3 H W"] | None
    """At the nearest pixel, where fine detail is taken from there."""
    masks: Float[Tensor, "N S H W"]
    """How much of each is there."""


class CopyHead(nn.Module):
    """Features to x0: softmax blend of the shifted renders plus a residual.

    Renders are aligned with the photos only up to depth errors, so each is read at an offset that
    the network chooses (bilinear, at most `max_offset_px`). What the features say in patches is
    then finished pixel by pixel, so that no pattern of patches shows in holes and edges stay
    sharp. At initialisation the output is the plain blend. A mean of renders whose detail does not
    coincide is blurred: with `config.fine_power` fine detail is left to the likeliest of them, and
    with `config.fine_nearest` it is read at single pixels, which reading between them blurs. The
    noisy frame is not among the sources: a fixed share of it would have to be cancelled exactly by
    the residual, which leaves grain. With `config.gate` it comes in by `WienerGate`, at a share
    that falls to zero with noise.
    """

    order: Tensor
    """Channels of the condition, ordered render by render, the fill last."""
    low_pass: Tensor
    """One row of the filter that parts fine detail from the rest."""

    def __init__(self, config: CompactConfig) -> None:
        super().__init__()
        self.config = config
        area = config.patch**2
        self.norm = ChannelNorm(config.widths[0])
        per_pixel = NUM_SOURCES + 3 + config.detail
        num_more = config.num_alternatives
        self.splits = (per_pixel * area, 2 * (NUM_SOURCES - 1), num_more * area, 2 * num_more)
        self.conv = nn.Conv2d(config.widths[0], sum(self.splits), 3, padding=1)
        start_at_zero(self.conv)
        # Zero weights would keep the details at zero for ever: nothing would flow either way.
        fresh = slice((NUM_SOURCES + 3) * area, per_pixel * area)
        nn.init.kaiming_uniform_(self.conv.weight[fresh], nonlinearity="linear")
        self.finish = Finish(config)
        self.register_buffer("order", _plane_order(config), persistent=False)
        self.register_buffer("low_pass", torch.tensor(_BINOMIAL) / 256, persistent=False)

    def renders(self, condition: Float[Tensor, "N Cc h w"]) -> Renders:
        """Return what a condition holds to copy from."""
        patch, area = self.config.patch, self.config.patch**2
        # Colours come multiplied by their masks, as reading beside a pixel wants them.
        ordered = condition.index_select(1, self.order)
        parts = ordered.tensor_split((len(self.order) - 4 * area,), dim=1)
        sources, fill = (F.pixel_shuffle(part, patch).float() for part in parts)
        grid = _pixel_grid(fill.shape[2], fill.shape[3], fill.device)
        return Renders(sources=sources.unflatten(1, (-1, 4)), fill=fill, grid=grid)

    def forward(
        self,
        features: Float[Tensor, "N C h w"],
        renders: Renders,
        x_t: Float[Tensor, "N Cz h w"],
        level: Float[Tensor, "N"],
    ) -> Float[Tensor, "N Cz h w"]:
        """Return x0 in float32; `level` is the share of noise in `x_t`, from 0 to 1."""
        raw = self.conv(F.silu(self.norm(features)))
        level = level[:, None, None, None]
        if torch.is_grad_enabled() or raw.device.type != "cpu":
            return self._finished(raw, renders, x_t, level)
        # What one frame needs stays in the cache; room for all is asked of the system each time.
        ones = [slice(i, i + 1) for i in range(len(raw))]
        frames = [self._finished(raw[i], renders.frames(i), x_t[i], level[i]) for i in ones]
        return torch.cat(frames)

    def _finished(self, raw: Tensor, renders: Renders, x_t: Tensor, level: Tensor) -> Tensor:
        patch = self.config.patch
        unfolded, offsets, more_logits, more_offsets = raw.split(self.splits, dim=1)
        unfolded = F.pixel_shuffle(torch.cat([unfolded, more_logits], dim=1), patch)
        offsets = torch.cat([offsets, more_offsets], dim=1)
        colors, detail, masks = self._copies(renders, offsets.float())
        noisy = F.pixel_shuffle(x_t.float(), patch)
        finished = self.finish(unfolded, colors, masks, noisy, level)
        logits = finished.logits + (masks + 1e-4).log()
        row = self.low_pass.float()
        blend = blend_bands(colors, logits, self.config.fine_power, row, detail=detail)
        x0 = blend + finished.residual
        if finished.doubt is not None:
            x0 = pass_gate(x0, noisy, level, finished.doubt)
        return F.pixel_unshuffle(x0, patch)

    def _copies(self, renders: Renders, offsets: Tensor) -> Copies:
        """Read all renders but the fill at their offsets."""
        grid = renders.grid.add(self._flow(offsets, renders.grid.shape[:2]))
        fill, is_filled = renders.fill[:, None, :3], renders.fill[:, 3:]
        own, masks = _read(renders.sources, grid, "bilinear")
        colors = torch.cat([own, fill], dim=1)
        detail = None
        if self.config.fine_nearest:
            nearest, is_hit = _read(renders.sources, grid.detach(), "nearest")
            single = torch.where(is_hit.unsqueeze(2) > _HIT, nearest, own)
            detail = torch.cat([single, fill], dim=1)
        return Copies(colors=colors, detail=detail, masks=torch.cat([masks, is_filled], dim=1))

    def _flow(self, offsets: Tensor, size: Sequence[int]) -> Float[Tensor, "M H W 2"]:
        """Return how far beside a pixel each render is read, in grid_sample's units."""
        limit = self.config.max_offset_px
        flow = limit * torch.tanh(offsets / max(limit, 1e-6))
        flow = F.interpolate(flow, tuple(size), mode="bilinear", align_corners=False)
        # Scaled one by one: a constant made on the host could not be recorded in a CUDA graph.
        across, down = flow.unflatten(1, (-1, 2)).flatten(0, 1).unbind(1)
        return torch.stack([across * (2 / size[1]), down * (2 / size[0])], dim=-1)


def _read(sources: Tensor, grid: Tensor, mode: str) -> tuple[Tensor, Tensor]:
    """Return colours `N R 3 H W` and masks `N R H W` of the renders at a grid's places."""
    planes = sources.flatten(0, 1)
    read = F.grid_sample(planes, grid, mode, padding_mode="zeros", align_corners=False)
    read = read.view(sources.shape)
    masks = read[:, :, 3].clamp(0, 1)
    return read[:, :, :3] / masks.clamp_min(1e-3).unsqueeze(2), masks


def _plane_order(config: CompactConfig) -> Int[Tensor, "C"]:
    """Return the condition's channels of all renders, the fill last: colours and mask of each."""
    area, num_more, start = config.patch**2, config.num_alternatives, config.base_channels
    blocks = torch.arange(4 * NUM_SOURCES * area).view(-1, area)
    more = start + torch.arange(4 * num_more * area).view(-1, area)
    rows = [[*blocks[3 * i : 3 * i + 3], blocks[3 * NUM_SOURCES + i]] for i in range(NUM_SOURCES)]
    more_rows = [[*more[3 * i : 3 * i + 3], more[3 * num_more + i]] for i in range(num_more)]
    return torch.cat([plane for row in (*rows[:-1], *more_rows, rows[-1]) for plane in row])


def _pixel_grid(height: int, width: int, device: torch.device) -> Float[Tensor, "H W 2"]:
    rows = (torch.arange(height, device=device) + 0.5) * (2 / height) - 1
    columns = (torch.arange(width, device=device) + 0.5) * (2 / width) - 1
    y, x = torch.meshgrid(rows, columns, indexing="ij")
    return torch.stack([x, y], dim=-1)


def blend_bands(
    colors: Float[Tensor, "N S 3 H W"],
    logits: Float[Tensor, "N S H W"],
    power: float,
    low_pass: Float[Tensor, "K"],
    *,
    detail: Float[Tensor, "N S 3 H W"] | None = None,
) -> Float[Tensor, "N 3 H W"]:
    """Mix images by softmax weights, fine detail by weights that decide more firmly.

    A mean of images whose detail does not coincide loses it, while their coarse colours are better
    for being averaged. Coarse scales therefore pass over gradually and fine ones abruptly, as in
    Burt & Adelson, "A Multiresolution Spline with Application to Image Mosaics" (1983).

    Args:
        colors: What is mixed.
        logits: Logarithms of the weights, up to a constant.
        power: To what power weights are raised for detail; 1 gives the plain mean.
        low_pass: Row of a separable filter of odd length and sum 1; what it takes away is detail.
        detail: The same images as fine detail is taken from; `colors` by default.
    """
    blend = _mix(colors, logits)
    if power == 1 and detail is None:
        return blend
    change = _mix(colors if detail is None else detail, power * logits) - blend
    return blend + change - _smooth(change, low_pass)


def _mix(colors: Tensor, logits: Tensor) -> Float[Tensor, "N 3 H W"]:
    return (logits.softmax(dim=1).unsqueeze(2) * colors).sum(dim=1)


def _smooth(image: Tensor, row: Tensor) -> Float[Tensor, "N 3 H W"]:
    margin, channels = len(row) // 2, image.shape[1]
    across = row.expand(channels, 1, 1, -1)
    padded = F.pad(image, (margin,) * 4, mode="replicate")
    return F.conv2d(F.conv2d(padded, across, groups=channels), across.mT, groups=channels)


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


class Finished(NamedTuple):
    """What is decided at every pixel."""

    logits: Float[Tensor, "N S H W"]
    """Of the renders to copy from, the fill last."""
    residual: Float[Tensor, "N 3 H W"]
    """What is added to the copy."""
    doubt: Float[Tensor, "N 1 H W"] | None
    """About both, where there is a gate."""


class Finish(nn.Module):
    """Decides at every pixel, from patches and renders.

    With a gate the noisy frame is seen too, shrunk as its noise grows, so that its grain can be
    taken away. Along every axis of the weights what alternatives add lies last, so that weights
    without them can be widened.
    """

    def __init__(self, config: CompactConfig) -> None:
        super().__init__()
        self.has_gate = config.gate
        self.num_more = config.num_alternatives
        per_pixel = NUM_SOURCES + 3 + config.gate
        seen = NUM_SOURCES + 3 + config.detail + 4 * NUM_SOURCES + 4 * config.gate
        self.first = nn.Conv2d(seen + 5 * self.num_more, config.finish, 3, padding=1)
        self.second = nn.Conv2d(config.finish, config.finish, 3, padding=1)
        self.last = nn.Conv2d(config.finish, per_pixel + self.num_more, 3, padding=1)
        start_at_zero(self.last)
        start = torch.tensor(_START_LOGITS)
        rest = torch.zeros(per_pixel - NUM_SOURCES)
        more = torch.full((self.num_more,), _START_ALTERNATIVE)
        self.start = nn.Parameter(torch.cat([start, rest, more])[:, None, None])

    def forward(
        self,
        unfolded: Float[Tensor, "N U H W"],
        colors: Float[Tensor, "N S 3 H W"],
        masks: Float[Tensor, "N S H W"],
        noisy: Float[Tensor, "N 3 H W"],
        level: Float[Tensor, "N 1 1 1"],
    ) -> Finished:
        """Return logits of the renders, the residual and the doubt if there is a gate, float32."""
        dtype, more = unfolded.dtype, self.num_more
        base = NUM_SOURCES - 1
        unfolded, more_logits = unfolded.split([unfolded.shape[1] - more, more], dim=1)
        colors, masks = colors.to(dtype), masks.to(dtype)
        own_colors, more_colors, fill = colors.flatten(1, 2).split([3 * base, 3 * more, 3], dim=1)
        own_masks, more_masks, is_filled = masks.split([base, more, 1], dim=1)
        seen = [unfolded, own_colors, fill, own_masks, is_filled]
        if self.has_gate:
            signal = 1 - level
            shrunk = noisy * (signal / (signal**2 + level**2))
            seen += [shrunk.to(dtype), level.expand_as(is_filled).to(dtype)]
        seen += [more_logits, more_colors, more_masks]
        x = F.silu(self.first(join_channels(seen)))
        x = self.last(F.silu(x + self.second(x))).float() + self.start.float()
        sizes = [base, 1, 3, int(self.has_gate), more]
        logits, fill_logit, residual, doubt, more_x = x.split(sizes, dim=1)
        plain = unfolded[:, : NUM_SOURCES + 3].float()
        parts = [logits + plain[:, :base], more_x + more_logits.float()]
        parts.append(fill_logit + plain[:, base:NUM_SOURCES])
        return Finished(
            logits=torch.cat(parts, dim=1),
            residual=residual + plain[:, NUM_SOURCES:],
            doubt=doubt if self.has_gate else None,
        )
