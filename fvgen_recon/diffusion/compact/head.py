"""The output head: copy from the renders, a little beside the pixel if need be, and correct."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from fvgen_recon.diffusion.compact.config import NUM_SOURCES, CompactConfig
from fvgen_recon.diffusion.compact.layer import ChannelNorm

_START_LOGITS = (2.0, 0.0, 0.0, -4.0)
"""Trusted points first, then the dense layers, the fill only where nothing else is known."""


class CopyHead(nn.Module):
    """Features to x0: softmax blend of the shifted renders plus a residual.

    Renders are aligned with the photos only up to depth errors, so each is read at an offset that
    the network chooses (bilinear, at most `max_offset_px`). At initialisation the output is the
    plain blend. The noisy frame is not among the sources: a fixed share of it would have to be
    cancelled exactly by the residual, which leaves grain.
    """

    def __init__(self, config: CompactConfig) -> None:
        super().__init__()
        self.config = config
        area = config.patch**2
        self.norm = ChannelNorm(config.widths[0])
        self.splits = (NUM_SOURCES * area, 3 * area, 2 * (NUM_SOURCES - 1))
        self.conv = nn.Conv2d(config.widths[0], sum(self.splits), 3, padding=1)
        nn.init.zeros_(self.conv.weight)
        start = torch.tensor(_START_LOGITS).repeat_interleave(area)
        with torch.no_grad():
            assert self.conv.bias is not None
            self.conv.bias.zero_()
            self.conv.bias[: len(start)] = start

    def forward(
        self, features: Float[Tensor, "N C h w"], condition: Float[Tensor, "N Cc h w"]
    ) -> Float[Tensor, "N Cz h w"]:
        """Return x0 in float32."""
        patch = self.config.patch
        raw = self.conv(F.silu(self.norm(features))).float()
        logits, residual, offsets = raw.split(self.splits, dim=1)
        planes = F.pixel_shuffle(condition[:, : 4 * NUM_SOURCES * patch**2].float(), patch)
        colors, masks = planes.split([3 * NUM_SOURCES, NUM_SOURCES], dim=1)
        colors, masks = self._shift(colors, masks, offsets)
        logits = F.pixel_shuffle(logits, patch) + (masks + 1e-4).log()
        weights = logits.softmax(dim=1).unsqueeze(2)
        blend = (weights * colors.unflatten(1, (NUM_SOURCES, 3))).sum(dim=1)
        return F.pixel_unshuffle(blend, patch) + residual

    def _shift(self, colors: Tensor, masks: Tensor, offsets: Tensor) -> tuple[Tensor, Tensor]:
        num_frames, _, height, width = colors.shape
        moved = NUM_SOURCES - 1
        limit = self.config.max_offset_px
        flow = limit * torch.tanh(offsets / limit)
        flow = F.interpolate(flow, (height, width), mode="bilinear", align_corners=False)
        flow = flow.unflatten(1, (moved, 2)).flatten(0, 1).permute(0, 2, 3, 1)
        scale = torch.tensor([2 / width, 2 / height], device=flow.device)
        grid = _pixel_grid(height, width, flow.device) + flow * scale
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
