"""The output head: copy from the renders, a little beside the pixel if need be, and correct."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from fvgen_recon.diffusion.compact.config import NUM_SOURCES, CompactConfig
from fvgen_recon.diffusion.compact.layer import ChannelNorm, start_at_zero

_START_LOGITS = (2.0, 0.0, 0.0, -4.0)
"""Trusted points first, then the dense layers, the fill only where nothing else is known."""


class CopyHead(nn.Module):
    """Features to x0: softmax blend of the shifted renders plus a residual.

    Renders are aligned with the photos only up to depth errors, so each is read at an offset that
    the network chooses (bilinear, at most `max_offset_px`). What the features say in patches is
    then finished pixel by pixel, so that no pattern of patches shows in holes and edges stay
    sharp. At initialisation the output is the plain blend. The noisy frame is not among the
    sources: a fixed share of it would have to be cancelled exactly by the residual, which leaves
    grain.
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
        self, features: Float[Tensor, "N C h w"], condition: Float[Tensor, "N Cc h w"]
    ) -> Float[Tensor, "N Cz h w"]:
        """Return x0 in float32."""
        patch = self.config.patch
        raw = self.conv(F.silu(self.norm(features)))
        unfolded, offsets = raw.split(self.splits, dim=1)
        unfolded = F.pixel_shuffle(unfolded, patch)
        planes = F.pixel_shuffle(condition[:, : 4 * NUM_SOURCES * patch**2].float(), patch)
        colors, masks = planes.split([3 * NUM_SOURCES, NUM_SOURCES], dim=1)
        colors, masks = self._shift(colors, masks, offsets.float())
        logits, residual = self.finish(unfolded, colors, masks)
        weights = (logits + (masks + 1e-4).log()).softmax(dim=1).unsqueeze(2)
        blend = (weights * colors.unflatten(1, (NUM_SOURCES, 3))).sum(dim=1)
        return F.pixel_unshuffle(blend + residual, patch)

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


class Finish(nn.Module):
    """Weights of the renders and the residual at every pixel, from patches and renders."""

    def __init__(self, config: CompactConfig) -> None:
        super().__init__()
        per_pixel = NUM_SOURCES + 3
        self.first = nn.Conv2d(
            per_pixel + config.detail + 4 * NUM_SOURCES, config.finish, 3, padding=1
        )
        self.second = nn.Conv2d(config.finish, config.finish, 3, padding=1)
        self.last = nn.Conv2d(config.finish, per_pixel, 3, padding=1)
        start_at_zero(self.last)
        start = torch.tensor(_START_LOGITS)
        self.start = nn.Parameter(torch.cat([start, torch.zeros(3)])[:, None, None])

    def forward(
        self,
        unfolded: Float[Tensor, "N U H W"],
        colors: Float[Tensor, "N C H W"],
        masks: Float[Tensor, "N M H W"],
    ) -> tuple[Float[Tensor, "N M H W"], Float[Tensor, "N 3 H W"]]:
        """Return logits of the renders and the residual, in float32."""
        seen = torch.cat([unfolded, colors.to(unfolded.dtype), masks.to(unfolded.dtype)], dim=1)
        x = F.silu(self.first(seen.contiguous(memory_format=torch.channels_last)))
        x = self.last(F.silu(x + self.second(x)))
        plain = unfolded[:, : NUM_SOURCES + 3].float()
        both = plain + x.float() + self.start.float()
        return both[:, :NUM_SOURCES], both[:, NUM_SOURCES:]
