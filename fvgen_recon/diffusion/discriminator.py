"""The discriminator: 3D-convolution heads on the features of a denoising network."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from fvgen_recon.errors import InputError

_GROUP_SIZE = 32
"""Channels that are normalised together: with few, the mean of a feature would be lost."""


class FeatureHead(nn.Module):
    """Features of a clip to one logit: strided 3D convolutions, a mean over all places, a line.

    The first normalisation makes it indifferent to the scale of the features; the last layer starts
    at zero, so that an untrained head says "undecided" (r = 1) everywhere.
    """

    def __init__(self, channels: int, width: int, kernel_size: int) -> None:
        super().__init__()
        padding = kernel_size // 2
        groups = max(1, width // _GROUP_SIZE)
        self.body = nn.Sequential(
            nn.Conv3d(channels, width, kernel_size, stride=(1, 2, 2), padding=padding),
            nn.GroupNorm(groups, width),
            nn.SiLU(),
            nn.Conv3d(width, width, kernel_size, stride=2, padding=padding),
            nn.GroupNorm(groups, width),
            nn.SiLU(),
        )
        self.last = nn.Linear(width, 1)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    def forward(self, feature: Float[Tensor, "B C T h w"]) -> Float[Tensor, "B"]:
        """Return one logit a clip, in float32."""
        feature = feature.to(self.last.weight.dtype)
        pooled = self.body(feature).float().mean(dim=(2, 3, 4))
        with torch.autocast(pooled.device.type, enabled=False):
            weight, bias = self.last.weight.float(), self.last.bias.float()
            return nn.functional.linear(pooled, weight, bias)[:, 0]


class ClipDiscriminator(nn.Module):
    """Real or generated? One logit a noised clip, from mid features of the frozen teacher.

    Trained with `gan_disc_loss` on as many real as generated clips at the same noise levels and
    conditions, the logit estimates log(p / q) at that noise level. The heads' logits are averaged
    *before* the loss: the average is what must be calibrated.

    Args:
        channels: Channels of each selected feature.
        layers: Which of the backbone's mid features to look at; 0 is the bottleneck, as in FVGen.
        width: Channels inside the heads; below or a multiple of 32.
        kernel_size: Of the 3D convolutions; odd.

    Raises:
        InputError: The lists differ in length, are empty, or the width does not fit.
    """

    temperature: Tensor

    def __init__(
        self,
        channels: Sequence[int],
        *,
        layers: Sequence[int] = (0,),
        width: int = 256,
        kernel_size: int = 3,
    ) -> None:
        super().__init__()
        if (
            len(channels) != len(layers)
            or not layers
            or (width > _GROUP_SIZE and width % _GROUP_SIZE)
        ):
            raise InputError(
                "A discriminator needs one number of channels for each selected layer and a width "
                f"below or a multiple of {_GROUP_SIZE}: {list(channels)} for layers {list(layers)} "
                f"and width {width} came."
            )
        self.layers = tuple(layers)
        self.heads = nn.ModuleList([FeatureHead(c, width, kernel_size) for c in channels])
        self.register_buffer("temperature", torch.ones(()))

    def forward(
        self, features: Sequence[Float[Tensor, "B _ _ _ _"]], *, calibrated: bool = False
    ) -> Float[Tensor, "B"]:
        """Return the logits.

        Args:
            features: All mid features of the backbone, bottleneck first.
            calibrated: Divide by the temperature, for ratio weights; training uses raw logits.
        """
        pairs = zip(self.heads, self.layers, strict=True)
        logit = torch.stack([head(features[layer]) for head, layer in pairs]).mean(dim=0)
        return logit / self.temperature if calibrated else logit

    def set_temperature(self, temperature: float) -> None:
        """Set what `calibrated` divides by; see `distill.calibration.fit_temperature`."""
        self.temperature.fill_(temperature)
