"""Cost volumes: how well each hypothesis of each pixel agrees with the source views."""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from fvgen_recon.pointcloud.mvs.feature import norm
from fvgen_recon.pointcloud.sweep import (
    ViewPairs,
    inside_image,
    project_inverse_depth,
    sample_maps,
)

_PATCH_FLOOR = 0.25  # shorter patches are plain: they count less
_CHUNK_CPU = 2**19  # values warped at a time: they stay in the cache


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
    features = maps.features.float()
    reference = F.normalize(features[refs].unflatten(1, (num_groups, -1)), dim=2)
    patch = F.avg_pool2d(maps.patches[refs], 2)
    patch = F.normalize(patch, dim=1, eps=_PATCH_FLOOR)
    groups, zncc = [], []
    per_hypothesis = len(refs) * maps.patches.shape[1] * size[0] * size[1]
    chunk = 1_000_000 if features.is_cuda else max(1, _CHUNK_CPU // per_hypothesis)
    for s in range(pairs.sources.shape[1]):
        views = pairs.sources[:, s]
        source = features[views], maps.patches[views]
        found = [
            _correlate(source, near, (reference, patch)) for near in uv[:, s].split(chunk, dim=1)
        ]
        groups.append(torch.cat([g for g, _ in found], dim=2))
        zncc.append(torch.cat([c for _, c in found], dim=1))
    return Correlations(
        groups=torch.stack(groups, dim=1), zncc=torch.stack(zncc, dim=1), inside=inside
    )


def _correlate(
    source: tuple[Float[Tensor, "R C H W"], Float[Tensor, "R P H2 W2"]],
    uv: Float[Tensor, "R D H W 2"],
    references: tuple[Float[Tensor, "R G C2 H W"], Float[Tensor, "R P H W"]],
) -> tuple[Float[Tensor, "R G D H W"], Float[Tensor, "R D H W"]]:
    """Correlate unit vectors of the reference views with one source view each.

    The products are divided by the lengths afterwards: no normalised copy of what is warped.
    """
    reference, patch = references[0][:, :, :, None], references[1][:, :, None]
    flat, num_rows = uv.flatten(1, 2), uv.shape[2]
    warped = sample_maps(source[0], flat).unflatten(2, (-1, num_rows))
    warped = warped.unflatten(1, (reference.shape[1], -1))
    groups = correlate_units(reference, warped)
    with torch.no_grad():
        seen = sample_maps(source[1], 2 * flat).unflatten(2, (-1, num_rows))
        length = _squares(seen, 1).clamp_min(_PATCH_FLOOR**2).rsqrt()
        zncc = (patch * seen).sum(dim=1) * length
    return groups, zncc


def _squares(x: Tensor, axis: int) -> Tensor:
    """Sums of squares along an axis: in one pass on a GPU, while a CPU is faster in two."""
    if x.is_cuda:
        return torch.linalg.vector_norm(x, dim=axis).square()
    return x.square().sum(dim=axis)


class _UnitCorrelation(torch.autograd.Function):
    """By hand: autograd would go over the warped maps, the largest tensors, twice as often."""

    @staticmethod
    def forward(ctx: Any, reference: Tensor, warped: Tensor) -> Tensor:
        length = (_squares(warped, 2) + 1e-24).rsqrt()
        found = (reference * warped).sum(dim=2) * length
        ctx.save_for_backward(reference, warped, found, length)
        return found

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        reference, warped, found, length = ctx.saved_tensors
        along = gradient * length
        against = -(along * found * length)[:, :, None]
        along = along[:, :, None]
        for_reference = (along * warped).sum(dim=3, keepdim=True)
        return for_reference, (along * reference).addcmul_(against, warped)


def correlate_units(
    reference: Float[Tensor, "R G C 1 H W"], warped: Float[Tensor, "R G C D H W"]
) -> Float[Tensor, "R G D H W"]:
    """Return dot products of reference vectors with warped ones brought to unit length."""
    return _UnitCorrelation.apply(reference, warped)


def aligned_conv3d(
    x: Float[Tensor, "R C D H W"],
    weight: Float[Tensor, "C2 C K K K"],
    bias: Float[Tensor, "C2"],
    *,
    stride: int,
    padding: int,
) -> Float[Tensor, "R C2 D2 H2 W2"]:
    """Convolve with both numbers of channels filled up with zeros to multiples of eight.

    Tensor cores want such numbers, and channels last.
    """
    last = torch.channels_last_3d
    before, after = -weight.shape[1] % 8, -weight.shape[0] % 8
    if x.is_cuda and torch.is_autocast_enabled():  # first, so that half as much is moved below
        dtype = torch.get_autocast_dtype("cuda")
        x, weight, bias = x.to(dtype), weight.to(dtype), bias.to(dtype)
    x = F.pad(x, (0,) * 6 + (0, before)) if before else x
    x = x.contiguous(memory_format=last)
    weight = F.pad(weight, (0,) * 6 + (0, before, 0, after)).contiguous(memory_format=last)
    found = F.conv3d(x, weight, F.pad(bias, (0, after)), stride, padding)
    return found[:, : found.shape[1] - after]


class VolumeConv(nn.Conv3d):
    """A 3-D convolution that is fast on a GPU whatever its number of channels."""

    def forward(self, input: Float[Tensor, "R C D H W"]) -> Float[Tensor, "R C2 D2 H2 W2"]:
        """Convolve."""
        if not input.is_cuda:
            return super().forward(input)
        assert self.bias is not None
        stride, padding = int(self.stride[0]), int(self.padding[0])
        return aligned_conv3d(input, self.weight, self.bias, stride=stride, padding=padding)


class SourceWeights(nn.Module):
    """How far each source may be trusted at each pixel: whether anything there matches well."""

    def __init__(self, num_groups: int) -> None:
        super().__init__()
        self.net = nn.Sequential(VolumeConv(num_groups + 1, 8, 1), nn.SiLU(), VolumeConv(8, 1, 1))

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
        self.enter = VolumeConv(channels, width, 3, padding=1)
        self.context = nn.Conv2d(context, width, 1)
        self.top = _block(width, width)
        self.down = VolumeConv(width, 2 * width, 2, stride=2)
        self.middle = _block(2 * width, 2 * width)
        self.deep = VolumeConv(2 * width, 3 * width, 2, stride=2)
        self.bottom = nn.Sequential(_block(3 * width, 3 * width), _block(3 * width, 3 * width))
        self.rise = nn.ConvTranspose3d(3 * width, 2 * width, 2, stride=2)
        self.middle_up = _block(2 * width, 2 * width)
        self.up = nn.ConvTranspose3d(2 * width, width, 2, stride=2)
        self.top_up = _block(width, width)
        self.leave = VolumeConv(width, 1, 3, padding=1)
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
    return _Skip(nn.Sequential(norm(before), nn.SiLU(), VolumeConv(before, after, 3, padding=1)))
