"""The levels of the video UNet: down, middle and up.

Parameter names are those of diffusers' `UNet3DConditionModel`.
"""

from dataclasses import dataclass

import torch
from diffusers.models.downsampling import Downsample2D
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.upsampling import Upsample2D
from jaxtyping import Float
from torch import Tensor, nn

from fvgen_recon.diffusion.viewcrafter.layer import (
    GROUPS,
    TemporalConv,
    TemporalTransformer,
    spatial_transformer,
)


@dataclass(frozen=True, kw_only=True, slots=True)
class LevelShape:
    """What all levels of a network share."""

    time_dim: int
    """Width of the time embedding."""
    context_dim: int
    """Width of the context tokens."""
    head_dim: int
    """Width of an attention head."""
    depth: int
    """Blocks in a transformer."""
    num_text_tokens: int
    """Text tokens at the start of the context."""
    image: bool
    """Whether cross-attention has keys and values of its own for image tokens."""
    dropout: float
    """Dropout in residual blocks and temporal convolutions, in training."""


class _Level(nn.Module):
    """Residual blocks with their temporal convolutions, and transformers where there are any."""

    def __init__(
        self, shape: LevelShape, widths: list[tuple[int, int]], num_attentions: int
    ) -> None:
        super().__init__()
        self.gradient_checkpointing = False
        self.resnets = nn.ModuleList(_resnet(shape, a, b) for a, b in widths)
        self.temp_convs = nn.ModuleList(TemporalConv(b, shape.dropout) for _, b in widths)
        attended = [b for _, b in widths[:num_attentions]]
        self.attentions = nn.ModuleList(_spatial(shape, width) for width in attended)
        self.temp_attentions = nn.ModuleList(_temporal(shape, width) for width in attended)

    def _layer(
        self, x: Tensor, time: Tensor, context: Tensor, index: int, num_frames: int
    ) -> Tensor:
        x = self.resnets[index](x, time)
        x = self.temp_convs[index](x, num_frames)
        if index < len(self.attentions):
            x = self.attentions[index](x, context)
            x = self.temp_attentions[index](x, num_frames)
        return x

    def _run(self, index: int, x: Tensor, time: Tensor, context: Tensor, num_frames: int) -> Tensor:
        if self.gradient_checkpointing and torch.is_grad_enabled():
            return self._gradient_checkpointing_func(  # type: ignore[operator]
                self._layer, x, time, context, index, num_frames
            )
        return self._layer(x, time, context, index, num_frames)


class DownLevel(_Level):
    """Residual blocks at one resolution, then half the resolution unless it is the last level."""

    def __init__(
        self,
        shape: LevelShape,
        in_width: int,
        width: int,
        num_layers: int,
        *,
        attention: bool,
        downsample: bool,
    ) -> None:
        widths = [(in_width if i == 0 else width, width) for i in range(num_layers)]
        super().__init__(shape, widths, num_layers if attention else 0)
        self.downsamplers = nn.ModuleList()
        if downsample:
            self.downsamplers.append(Downsample2D(width, use_conv=True, padding=1, name="op"))

    def forward(
        self,
        x: Float[Tensor, "R C h w"],
        time: Float[Tensor, "R E"],
        context: Float[Tensor, "B L D"],
        num_frames: int,
    ) -> list[Tensor]:
        """Return the output of each layer, the last one being the level's."""
        outputs = []
        for i in range(len(self.resnets)):
            x = self._run(i, x, time, context, num_frames)
            outputs.append(x)
        for downsampler in self.downsamplers:
            x = downsampler(x)
            outputs.append(x)
        return outputs


class MidLevel(_Level):
    """A residual block with transformers, then a second residual block."""

    def __init__(self, shape: LevelShape, width: int) -> None:
        super().__init__(shape, [(width, width), (width, width)], 1)

    def forward(
        self,
        x: Float[Tensor, "R C h w"],
        time: Float[Tensor, "R E"],
        context: Float[Tensor, "B L D"],
        num_frames: int,
    ) -> Float[Tensor, "R C h w"]:
        """Return the bottleneck's features."""
        x = self._run(0, x, time, context, num_frames)
        return self._run(1, x, time, context, num_frames)


class UpLevel(_Level):
    """Residual blocks that take in the skips, then twice the resolution unless it is the last."""

    def __init__(
        self,
        shape: LevelShape,
        widths: list[tuple[int, int]],
        *,
        attention: bool,
        upsample: bool,
    ) -> None:
        super().__init__(shape, widths, len(widths) if attention else 0)
        self.upsamplers = nn.ModuleList()
        if upsample:
            self.upsamplers.append(Upsample2D(widths[-1][1], use_conv=True))

    def forward(
        self,
        x: Float[Tensor, "R C h w"],
        skips: list[Tensor],
        time: Float[Tensor, "R E"],
        context: Float[Tensor, "B L D"],
        num_frames: int,
    ) -> list[Tensor]:
        """Return the output of each layer; the last one is after the upsampling.

        Args:
            x: Features from below.
            skips: Skips in the order of use; as many are used as there are layers.
            time: Time embedding of each frame.
            context: Tokens of each clip.
            num_frames: Frames of a clip.
        """
        outputs = []
        for i, skip in enumerate(skips[: len(self.resnets)]):
            x = self._run(i, torch.cat([x, skip], dim=1), time, context, num_frames)
            outputs.append(x)
        for upsampler in self.upsamplers:
            outputs[-1] = x = upsampler(x)
        return outputs


def _resnet(shape: LevelShape, in_width: int, width: int) -> ResnetBlock2D:
    return ResnetBlock2D(
        in_channels=in_width,
        out_channels=width,
        temb_channels=shape.time_dim,
        groups=GROUPS,
        eps=1e-5,
        dropout=shape.dropout,
    )


def _spatial(shape: LevelShape, width: int) -> nn.Module:
    return spatial_transformer(
        width,
        shape.head_dim,
        shape.depth,
        shape.context_dim,
        num_text_tokens=shape.num_text_tokens,
        image=shape.image,
    )


def _temporal(shape: LevelShape, width: int) -> nn.Module:
    return TemporalTransformer(width, width // shape.head_dim, shape.head_dim, shape.depth)
