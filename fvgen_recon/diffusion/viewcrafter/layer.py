"""The layers of the video UNet that mix frames or pixels.

Parameter names are those of diffusers' `UNet3DConditionModel`. The forwards are our own, because
they keep a channels-last layout from end to end: with it every reshape here is free.

Letters: `R = B * T` frames of a batch, frame fastest; `C` channels; `h w` latent pixels.
"""

import torch.nn.functional as F
from diffusers.models.attention import BasicTransformerBlock
from jaxtyping import Float
from torch import Tensor, nn

from fvgen_recon.diffusion.viewcrafter.attention import ContextAttention, FrameAttention

GROUPS = 32
"""Groups of every group norm."""


class FrameConv(nn.Conv3d):
    """A convolution of width 3 over frames, run as a 2D one over (frames, pixels)."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, channels, (3, 1, 1), padding=(1, 0, 0))

    def forward(self, input: Float[Tensor, "B C T h w"]) -> Float[Tensor, "B C T h w"]:
        """Convolve over frames."""
        return self.convolve(input, self.bias)

    def convolve(
        self, x: Float[Tensor, "B C T h w"], bias: Float[Tensor, "C"] | None = None
    ) -> Float[Tensor, "B C T h w"]:
        """Convolve over frames, with another bias or none."""
        out = F.conv2d(x.flatten(3), self.weight.squeeze(-1), bias, padding=(1, 0))
        return out.unflatten(3, x.shape[3:])


class TemporalConv(nn.Module):
    """Four norm-activation-convolution stages over frames, added to their input.

    Group statistics run over frames too, so a clip is normalised as a whole.
    """

    def __init__(self, channels: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.conv1 = nn.Sequential(nn.GroupNorm(GROUPS, channels), nn.SiLU(), FrameConv(channels))
        self.conv2 = _conv_stage(channels, dropout)
        self.conv3 = _conv_stage(channels, dropout)
        self.conv4 = _conv_stage(channels, dropout)

    def forward(self, x: Float[Tensor, "R C h w"], num_frames: int) -> Float[Tensor, "R C h w"]:
        """Mix frames."""
        clip = clips(x, num_frames)
        out = clip + self.conv4(self.conv3(self.conv2(self.conv1(clip))))
        return out.transpose(1, 2).flatten(0, 1)


class SpatialTransformer(nn.Module):
    """Self-attention over the pixels of a frame, then cross-attention to the context."""

    def __init__(self, channels: int, blocks: list[BasicTransformerBlock]) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(GROUPS, channels, eps=1e-6)
        self.proj_in = nn.Linear(channels, channels)
        self.transformer_blocks = nn.ModuleList(blocks)
        self.proj_out = nn.Linear(channels, channels)

    def forward(
        self, x: Float[Tensor, "R C h w"], context: Float[Tensor, "B L D"]
    ) -> Float[Tensor, "R C h w"]:
        """Mix pixels and read the context."""
        tokens = self.proj_in(self.norm(x).permute(0, 2, 3, 1).flatten(1, 2))
        for block in self.transformer_blocks:
            tokens = block(tokens, encoder_hidden_states=context)
        out = self.proj_out(tokens).unflatten(1, x.shape[2:])
        return x + out.permute(0, 3, 1, 2)


class TemporalTransformer(nn.Module):
    """Self-attention over the frames of each pixel, without any encoding of time."""

    def __init__(
        self, channels: int, num_heads: int, head_dim: int, depth: int, *, dropout: float = 0.0
    ) -> None:
        super().__init__()
        width = num_heads * head_dim
        self.norm = nn.GroupNorm(GROUPS, channels, eps=1e-6)
        self.proj_in = nn.Linear(channels, width)
        blocks = [
            BasicTransformerBlock(
                width,
                num_heads,
                head_dim,
                dropout=dropout,
                activation_fn="geglu",
                double_self_attention=True,
            )
            for _ in range(depth)
        ]
        for block in blocks:
            assert block.attn2 is not None
            block.attn1.set_processor(FrameAttention())  # type: ignore[arg-type]
            block.attn2.set_processor(FrameAttention())  # type: ignore[arg-type]
        self.transformer_blocks = nn.ModuleList(blocks)
        self.proj_out = nn.Linear(width, channels)

    def forward(self, x: Float[Tensor, "R C h w"], num_frames: int) -> Float[Tensor, "R C h w"]:
        """Mix frames."""
        clip = clips(x, num_frames)
        # Tokens stay frame by frame, where they lie: only attention looks along the frames.
        tokens = self.norm(clip).transpose(1, 2).flatten(0, 1).permute(0, 2, 3, 1).flatten(1, 2)
        tokens = self.proj_in(tokens)
        for block in self.transformer_blocks:
            tokens = block(tokens, cross_attention_kwargs={"num_frames": num_frames})
        out = self.proj_out(tokens).unflatten(1, x.shape[2:])
        return x + out.permute(0, 3, 1, 2)


def spatial_transformer(
    channels: int,
    head_dim: int,
    depth: int,
    context_dim: int,
    *,
    num_text_tokens: int,
    image: bool,
    dropout: float = 0.0,
) -> SpatialTransformer:
    """Build a spatial transformer whose cross-attention reads text and, if asked for, image."""
    num_heads = channels // head_dim
    blocks = []
    for _ in range(depth):
        block = BasicTransformerBlock(
            channels,
            num_heads,
            head_dim,
            dropout=dropout,
            cross_attention_dim=context_dim,
            activation_fn="geglu",
        )
        assert block.attn2 is not None
        processor = ContextAttention(channels, context_dim, num_text_tokens, image=image)
        block.attn2.set_processor(processor)  # type: ignore[arg-type]
        blocks.append(block)
    return SpatialTransformer(channels, blocks)


def _conv_stage(channels: int, dropout: float) -> nn.Sequential:
    return nn.Sequential(
        nn.GroupNorm(GROUPS, channels), nn.SiLU(), nn.Dropout(dropout), FrameConv(channels)
    )


def clips(x: Float[Tensor, "R C h w"], num_frames: int) -> Float[Tensor, "B C T h w"]:
    """View [B * T, C, h, w] as [B, C, T, h, w]."""
    return x.unflatten(0, (-1, num_frames)).transpose(1, 2)
