"""The resampler: image tokens to a fixed number of context tokens."""

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from jaxtyping import Float
from torch import Tensor, nn


class ImageResampler(ModelMixin, ConfigMixin):
    """A perceiver (Jaegle et al. 2021) whose learned queries read the tokens of an image.

    Parameter names are the original's.

    Args:
        dim: Width inside.
        depth: Layers.
        dim_head: Width of an attention head.
        heads: Attention heads.
        num_tokens: Tokens that come out; 16 for each of 16 frames in the original.
        embedding_dim: Width of the image tokens.
        output_dim: Width of the tokens that come out.
        ff_mult: Width of the feed-forward layers in multiples of `dim`.
    """

    @register_to_config
    def __init__(
        self,
        *,
        dim: int = 1024,
        depth: int = 4,
        dim_head: int = 64,
        heads: int = 12,
        num_tokens: int = 256,
        embedding_dim: int = 1280,
        output_dim: int = 1024,
        ff_mult: int = 4,
    ) -> None:
        super().__init__()
        self.latents = nn.Parameter(torch.randn(1, num_tokens, dim) / dim**0.5)
        self.proj_in = nn.Linear(embedding_dim, dim)
        self.proj_out = nn.Linear(dim, output_dim)
        self.norm_out = nn.LayerNorm(output_dim)
        self.layers = nn.ModuleList(
            nn.ModuleList([_PerceiverAttention(dim, dim_head, heads), _feed_forward(dim, ff_mult)])
            for _ in range(depth)
        )

    def forward(self, tokens: Float[Tensor, "B N E"]) -> Float[Tensor, "B L D"]:
        """Return context tokens for image tokens."""
        tokens = self.proj_in(tokens)
        latents = self.latents.expand(tokens.shape[0], -1, -1)
        for layer in self.layers:
            attention, feed_forward = layer.children()
            latents = latents + attention(tokens, latents)
            latents = latents + feed_forward(latents)
        return self.norm_out(self.proj_out(latents))


class _PerceiverAttention(nn.Module):
    """Latents attend to the image tokens and to themselves."""

    def __init__(self, dim: int, dim_head: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(dim)
        self.norm2 = nn.LayerNorm(dim)
        self.to_q = nn.Linear(dim, dim_head * heads, bias=False)
        self.to_kv = nn.Linear(dim, 2 * dim_head * heads, bias=False)
        self.to_out = nn.Linear(dim_head * heads, dim, bias=False)

    def forward(
        self, tokens: Float[Tensor, "B N D"], latents: Float[Tensor, "B L D"]
    ) -> Float[Tensor, "B L D"]:
        tokens, latents = self.norm1(tokens), self.norm2(latents)
        key, value = self.to_kv(torch.cat([tokens, latents], dim=1)).chunk(2, dim=-1)
        heads = [
            x.unflatten(2, (self.heads, -1)).transpose(1, 2)
            for x in (self.to_q(latents), key, value)
        ]
        out = F.scaled_dot_product_attention(heads[0], heads[1], heads[2])
        return self.to_out(out.transpose(1, 2).flatten(2))


def _feed_forward(dim: int, mult: int) -> nn.Sequential:
    inner = dim * mult
    return nn.Sequential(
        nn.LayerNorm(dim),
        nn.Linear(dim, inner, bias=False),
        nn.GELU(),
        nn.Linear(inner, dim, bias=False),
    )
