"""Group normalisation for a channels-last layout, to be compiled."""

import torch
from jaxtyping import Float
from torch import Tensor, nn


class ChannelNorm(nn.GroupNorm):
    """Group normalisation that reduces each channel first and joins channels afterwards.

    In a channels-last layout the few channels of a group lie in short runs far apart, so a kernel
    that reduces group by group reads memory badly. Sums of whole channels read it in order, and the
    pooled mean and variance of a group follow from those of its channels:
    `var = mean(var_c + (mean_c - mean)^2)`. Sums are taken about one pixel of each channel, so that
    a large mean cancels nothing. Values are computed in float32 and equal `nn.GroupNorm`.
    """

    def forward(self, input: Float[Tensor, "N C *S"]) -> Float[Tensor, "N C *S"]:
        """Normalise."""
        x = input.float()
        axes = tuple(range(2, x.ndim))
        column = (slice(None), slice(None), *([None] * len(axes)))
        pivot = x[(slice(None), slice(None), *([0] * len(axes)))]
        shifted = x - pivot[column]
        offset, square = shifted.mean(dim=axes), shifted.square().mean(dim=axes)
        means = (pivot + offset).unflatten(1, (self.num_groups, -1))
        variances = (square - offset.square()).unflatten(1, (self.num_groups, -1))
        mean = means.mean(dim=2, keepdim=True)
        variance = (variances + (means - mean).square()).mean(dim=2, keepdim=True)
        deviation = (variance.clamp_min(0) + self.eps).rsqrt().expand_as(means).flatten(1)
        scale = (deviation * self.weight.float())[column]
        mean = mean.expand_as(means).flatten(1)[column]
        return ((x - mean) * scale + self.bias.float()[column[1:]]).to(input.dtype)


def use_channel_norms(module: nn.Module) -> None:
    """Replace every group normalisation inside a module; parameters and their names stay."""
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is nn.GroupNorm:
                setattr(parent, name, _channel_norm(child))


def _channel_norm(norm: nn.GroupNorm) -> ChannelNorm:
    with torch.device("meta"):
        new = ChannelNorm(norm.num_groups, norm.num_channels, eps=norm.eps)
    new.weight, new.bias = norm.weight, norm.bias
    return new.train(norm.training)
