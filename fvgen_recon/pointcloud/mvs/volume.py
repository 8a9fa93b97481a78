"""Cost volumes: how well each hypothesis of each pixel agrees with the source views."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from fvgen_recon.pointcloud.mvs.feature import norm
from fvgen_recon.pointcloud.sweep import (
    ViewPairs,
    inside_image,
    project_inverse_depth,
    sample_views,
)


@dataclass(frozen=True, kw_only=True, slots=True)
class MatchMaps:
    """Maps of all views that are compared at one level."""

    features: Float[Tensor, "V C H W"]
    """Learned maps at the level's size."""
    patches: Float[Tensor, "V P H2 W2"]
    """Normalised patches at twice that size, without gradient."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Correlations:
    """Agreement of every hypothesis with each source."""

    groups: Float[Tensor, "R S G D H W"]
    """Learned correlation by group of channels."""
    zncc: Float[Tensor, "R S D H W"]
    """Correlation of the patches, in [-1, 1]."""
    inside: Float[Tensor, "R S D H W"]
    """1 where the source sees the point, else 0."""


def correlate_sources(
    maps: MatchMaps,
    refs: Int[Tensor, "R"],
    pairs: ViewPairs,
    hypotheses: Float[Tensor, "R D H2 W2"],
    num_groups: int,
) -> Correlations:
    """Compare the reference views with their sources at each hypothesis.

    Args:
        maps: What is compared.
        refs: Indices of the reference views.
        pairs: A row for each reference view, for the level's size.
        hypotheses: Inverse depths; H2 and W2 are 1 (planes) or the level's size.
        num_groups: Groups of channels.
    """
    size = (maps.features.shape[-2], maps.features.shape[-1])
    uv, z = project_inverse_depth(pairs, hypotheses.float(), size)
    inside = inside_image(uv, z, size).float()
    reference = maps.features.float()[refs].unflatten(1, (num_groups, -1))
    reference = F.normalize(reference, dim=2)[:, :, :, None]
    patch = F.avg_pool2d(maps.patches[refs], 2)
    patch = F.normalize(patch, dim=1, eps=0.25)[:, :, None]
    groups, zncc = [], []
    for s in range(pairs.sources.shape[1]):
        flat = uv[:, s].flatten(1, 2)
        warped = sample_views(maps.features.float(), pairs.sources[:, s], flat)
        warped = warped.unflatten(2, (-1, size[0])).unflatten(1, (num_groups, -1))
        groups.append((reference * F.normalize(warped, dim=2)).sum(dim=2))
        with torch.no_grad():
            seen = sample_views(maps.patches, pairs.sources[:, s], 2 * flat)
            seen = F.normalize(seen.unflatten(2, (-1, size[0])), dim=1, eps=0.25)
            zncc.append((patch * seen).sum(dim=1))
    return Correlations(
        groups=torch.stack(groups, dim=1), zncc=torch.stack(zncc, dim=1), inside=inside
    )


class SourceWeights(nn.Module):
    """How far each source may be trusted at each pixel: whether anything there matches well."""

    def __init__(self, num_groups: int) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Conv3d(num_groups + 1, 8, 1), nn.SiLU(), nn.Conv3d(8, 1, 1))

    def forward(self, found: Correlations) -> Float[Tensor, "R S H W"]:
        """Return weights in (0, 1)."""
        stack = torch.cat([found.groups, found.zncc[:, :, None]], dim=2)
        score = self.net(stack.flatten(0, 1)).unflatten(0, stack.shape[:2])[:, :, 0].float()
        return torch.sigmoid((score - 10 * (1 - found.inside)).amax(dim=2))


def join_sources(
    found: Correlations, weight: Float[Tensor, "R S H W"]
) -> tuple[Float[Tensor, "R C D H W"], Float[Tensor, "R D H W"]]:
    """Weighted means over the sources that see the point.

    Returns:
        The volume (groups, mean and best of the patches' correlation, share of the sources that
        see the point), and the sum of the two correlations of patches, a fair score by itself.
    """
    share = weight[:, :, None] * found.inside
    total = share.sum(dim=1).clamp_min(1e-4)
    groups = (found.groups * share[:, :, None]).sum(dim=1) / total[:, None]
    mean = (found.zncc * share).sum(dim=1) / total
    best = found.zncc.masked_fill(found.inside < 0.5, -1.0).amax(dim=1)
    seen = found.inside.mean(dim=1)
    volume = torch.cat([groups, torch.stack([mean, best, seen], dim=1)], dim=1)
    return volume, mean + best.clamp_min(0)


class Regulariser(nn.Module):
    """A small 3-D U-Net over a volume, told what the reference photo shows."""

    def __init__(self, channels: int, context: int, width: int) -> None:
        super().__init__()
        self.enter = nn.Conv3d(channels, width, 3, padding=1)
        self.context = nn.Conv2d(context, width, 1)
        self.top = _block(width, width)
        self.down = nn.Conv3d(width, 2 * width, 2, stride=2)
        self.middle = _block(2 * width, 2 * width)
        self.deep = nn.Conv3d(2 * width, 3 * width, 2, stride=2)
        self.bottom = nn.Sequential(_block(3 * width, 3 * width), _block(3 * width, 3 * width))
        self.rise = nn.ConvTranspose3d(3 * width, 2 * width, 2, stride=2)
        self.middle_up = _block(2 * width, 2 * width)
        self.up = nn.ConvTranspose3d(2 * width, width, 2, stride=2)
        self.top_up = _block(width, width)
        self.leave = nn.Conv3d(width, 1, 3, padding=1)
        self.sharpness = nn.Parameter(torch.tensor(5.0))
        nn.init.zeros_(self.leave.weight)
        assert self.leave.bias is not None
        nn.init.zeros_(self.leave.bias)

    def forward(
        self,
        volume: Float[Tensor, "R C D H W"],
        score: Float[Tensor, "R D H W"],
        context: Float[Tensor, "R C2 H W"],
    ) -> Float[Tensor, "R D H W"]:
        """Return logits of the hypotheses: the plain score and what the network adds to it."""
        top = self.top(self.enter(volume) + self.context(context)[:, :, None])
        middle = self.middle(self.down(top))
        deep = self.bottom(self.deep(middle))
        middle = self.middle_up(middle + self.rise(deep))
        top = self.top_up(top + self.up(middle))
        return self.leave(top)[:, 0].float() + self.sharpness * score


class _Skip(nn.Module):
    def __init__(self, body: nn.Sequential) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


def _block(before: int, after: int) -> nn.Module:
    return _Skip(nn.Sequential(norm(before), nn.SiLU(), nn.Conv3d(before, after, 3, padding=1)))
