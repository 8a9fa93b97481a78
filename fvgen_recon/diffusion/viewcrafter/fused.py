"""Layers that run in the GPU kernels of this project, for inference.

They take the place of plain layers whose parameters they keep, names included. Biases of
convolutions and the time embedding are not added in passes of their own: what follows adds them.
Inputs and outputs are channels-last.
"""

from collections.abc import Set
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.models.activations import GEGLU
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.resnet import ResnetBlock2D
from jaxtyping import Float
from torch import Tensor, nn

from fvgen_recon.diffusion.viewcrafter.attention import use_frame_kernels
from fvgen_recon.diffusion.viewcrafter.kernels.norm import group_norm
from fvgen_recon.diffusion.viewcrafter.kernels.pointwise import add_bias, gated_gelu
from fvgen_recon.diffusion.viewcrafter.kernels.rows import add_norm
from fvgen_recon.diffusion.viewcrafter.layer import FrameConv, TemporalConv, clips
from fvgen_recon.diffusion.viewcrafter.upsample import MergedUpsample


class FusedNorm(nn.GroupNorm):
    """Group normalisation, with SiLU if asked for."""

    silu = False

    def forward(self, input: Float[Tensor, "N C *S"]) -> Float[Tensor, "N C *S"]:
        """Normalise."""
        return group_norm(input, self, silu=self.silu)


class FusedConv(nn.Conv2d):
    """A 2D convolution whose bias is added by a fast kernel."""

    def forward(self, input: Float[Tensor, "N C H W"]) -> Float[Tensor, "N Co h w"]:
        """Convolve."""
        assert self.bias is not None
        return add_bias(self._conv_forward(input, self.weight, None), self.bias)


class FusedGatedGelu(GEGLU):
    """A linear layer whose output gates itself."""

    def forward(self, hidden_states: Float[Tensor, "R N C"]) -> Float[Tensor, "R N D"]:
        """Project and gate."""
        return gated_gelu(self.proj(hidden_states))


class FusedResnetBlock(ResnetBlock2D):
    """Two stages of normalisation, activation and convolution, added to their input."""

    def forward(
        self, input_tensor: Float[Tensor, "N C H W"], temb: Float[Tensor, "N E"] | None = None
    ) -> Float[Tensor, "N Co H W"]:
        """Run the block."""
        x = group_norm(input_tensor, self.norm1, silu=True)
        x = _conv(self.conv1, x)
        added = self.conv1.bias
        assert self.conv2.bias is not None
        if self.time_emb_proj is not None:
            assert temb is not None
            added = self.time_emb_proj(F.silu(temb)) + added
        x = group_norm(x, self.norm2, added=added, silu=True)
        return add_bias(_conv(self.conv2, x), self.conv2.bias, self._shortcut(input_tensor))

    def _shortcut(self, x: Tensor) -> Tensor:
        conv = self.conv_shortcut
        if conv is None:
            return x
        return F.linear(x.movedim(1, -1), conv.weight.flatten(1), conv.bias).movedim(-1, 1)


class FusedTemporalConv(TemporalConv):
    """Four stages over frames, added to their input."""

    def forward(self, x: Float[Tensor, "R C h w"], num_frames: int) -> Float[Tensor, "R C h w"]:
        """Mix frames."""
        clip = out = clips(x, num_frames)
        bias = None
        for stage in (self.conv1, self.conv2, self.conv3, self.conv4):
            norm, conv = stage[0], stage[-1]
            assert isinstance(norm, nn.GroupNorm)
            assert isinstance(conv, FrameConv)
            out = conv.convolve(group_norm(out, norm, added=bias, silu=True))
            bias = conv.bias
        assert bias is not None
        return add_bias(out, bias, clip).transpose(1, 2).flatten(0, 1)


class FusedTransformerBlock(BasicTransformerBlock):
    """Self-attention, cross-attention and a gated layer, each added to its input."""

    def forward(
        self,
        hidden_states: Float[Tensor, "R N C"],
        attention_mask: None = None,
        encoder_hidden_states: Float[Tensor, "B L D"] | None = None,
        *,
        cross_attention_kwargs: dict[str, Any] | None = None,
    ) -> Float[Tensor, "R N C"]:
        """Run the block."""
        assert attention_mask is None
        assert self.attn2 is not None
        options = cross_attention_kwargs or {}
        x, normed = add_norm(hidden_states, None, self.norm1)  # type: ignore[arg-type]
        x, normed = add_norm(x, self.attn1(normed, **options), self.norm2)  # type: ignore[arg-type]
        attended = self.attn2(normed, encoder_hidden_states=encoder_hidden_states, **options)
        x, normed = add_norm(x, attended, self.norm3)  # type: ignore[arg-type]
        if self._chunk_size is None:
            return x + self.ff(normed)
        pieces = normed.split(self._chunk_size, self._chunk_dim)
        return x + torch.cat([self.ff(piece) for piece in pieces], self._chunk_dim)


class FusedUpsample(MergedUpsample):
    """Doubling and the convolution after it, whose bias is added by a fast kernel."""

    def forward(
        self, hidden_states: Float[Tensor, "N C h w"], output_size: None = None
    ) -> Float[Tensor, "N Co H W"]:
        """Return features of twice the height and width."""
        assert output_size is None
        assert self.conv.bias is not None
        return add_bias(self.convolve(hidden_states), self.conv.bias)


_FUSED: dict[type[nn.Module], tuple[type[nn.Module], set[str]]] = {
    nn.GroupNorm: (FusedNorm, {"norm"}),
    nn.Conv2d: (FusedConv, {"pointwise"}),
    GEGLU: (FusedGatedGelu, {"pointwise"}),
    ResnetBlock2D: (FusedResnetBlock, {"norm", "pointwise"}),
    TemporalConv: (FusedTemporalConv, {"norm", "pointwise"}),
    MergedUpsample: (FusedUpsample, {"pointwise"}),
    BasicTransformerBlock: (FusedTransformerBlock, {"rows"}),
}
"""Fused layers in the place of plain ones, and the kernels that they need."""

ALL_KERNELS = frozenset({"norm", "pointwise", "rows", "frames"})


def use_fused_layers(module: nn.Module, kernels: Set[str] = ALL_KERNELS) -> None:
    """Turn the layers inside a module into fused ones; parameters and their names stay.

    Args:
        module: The module.
        kernels: Names of the kernels that may be used.
    """
    for child in module.modules():
        fused, needed = _FUSED.get(type(child), (None, set()))
        if fused is not None and needed <= kernels and _suits(child):
            child.__class__ = fused
        if "norm" in kernels and isinstance(getattr(child, "conv_norm_out", None), nn.GroupNorm):
            child.conv_norm_out.__class__ = FusedNorm  # type: ignore[union-attr]
            child.conv_norm_out.silu, child.conv_act = True, nn.Identity()  # type: ignore[union-attr]
    if "frames" in kernels:
        use_frame_kernels(module)


def _suits(child: nn.Module) -> bool:
    """Whether a layer has the settings that the fused one is written for."""
    if isinstance(child, nn.Conv2d):
        return child.bias is not None and child.out_channels % 8 == 0
    if isinstance(child, ResnetBlock2D):
        plain = child.time_emb_proj is None or child.time_embedding_norm == "default"
        same_size = child.upsample is None and child.downsample is None
        return plain and same_size and child.output_scale_factor == 1
    if isinstance(child, BasicTransformerBlock):
        return child.norm_type == "layer_norm" and child.pos_embed is None
    return True


def _conv(conv: nn.Conv2d, x: Tensor) -> Tensor:
    return F.conv2d(x, conv.weight, None, conv.stride, conv.padding)
