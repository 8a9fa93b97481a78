"""Attention of the video UNet: along frames, and to text and image tokens.

The context of a clip holds its text tokens first and its image tokens after them. Text tokens are
seen by every frame. Image tokens are seen by every frame too ("shared"), or frame k sees only the
k-th part of them ("per_frame"). What all frames share is projected once a clip, not once a frame.
"""

import torch.nn.functional as F
from diffusers.models.attention_processor import Attention
from jaxtyping import Float
from torch import Tensor, nn


def attend(
    query: Float[Tensor, "R N C"],
    key: Float[Tensor, "B M C"],
    value: Float[Tensor, "B M C"],
    num_heads: int,
) -> Float[Tensor, "R N C"]:
    """Multi-head attention where each row of keys serves R / B consecutive rows of queries."""
    num_rows = key.shape[0]
    folded = query.reshape(num_rows, -1, query.shape[-1])
    heads = [x.unflatten(2, (num_heads, -1)).transpose(1, 2) for x in (folded, key, value)]
    out = F.scaled_dot_product_attention(heads[0], heads[1], heads[2])
    return out.transpose(1, 2).reshape(query.shape)


class FrameAttention:
    """Attention processor of the temporal transformers: the frames of each pixel attend.

    Tokens come and go frame by frame. With one clip the heads are views of them, so nothing is
    copied to bring the frames of a pixel together.
    """

    def __call__(
        self,
        attn: Attention,
        hidden_states: Float[Tensor, "R N C"],
        encoder_hidden_states: None = None,
        attention_mask: None = None,
        *,
        num_frames: int,
    ) -> Float[Tensor, "R N C"]:
        """Attend along the frames of B clips, R = B * num_frames."""
        assert encoder_hidden_states is None
        assert attention_mask is None
        assert attn.to_k is not None
        assert attn.to_v is not None
        assert attn.to_out is not None

        parts = attn.to_q(hidden_states), attn.to_k(hidden_states), attn.to_v(hidden_states)
        out = self.attend(*parts, num_frames, attn.heads)
        return attn.to_out[1](attn.to_out[0](out))

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, num_frames: int, num_heads: int
    ) -> Float[Tensor, "R N C"]:
        """Attend with projected tokens, each [R N C]."""

        def heads(x: Tensor) -> Tensor:
            split = x.unflatten(0, (-1, num_frames)).unflatten(3, (num_heads, -1))
            return split.permute(0, 2, 3, 1, 4).flatten(0, 1)

        out = F.scaled_dot_product_attention(heads(query), heads(key), heads(value))
        rows = out.unflatten(0, (-1, query.shape[1])).permute(0, 3, 1, 2, 4)
        return rows.flatten(3).flatten(0, 1)


class FrameKernelAttention(FrameAttention):
    """`FrameAttention` in one kernel: for GPUs and inference only."""

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, num_frames: int, num_heads: int
    ) -> Float[Tensor, "R N C"]:
        """Attend with projected tokens, each [R N C]."""
        from fvgen_recon.diffusion.viewcrafter.kernels.frames import frame_attention

        return frame_attention(query, key, value, num_frames, num_heads)


def use_frame_kernels(module: nn.Module) -> None:
    """Let every attention along frames inside a module run as one kernel."""
    for child in module.modules():
        if isinstance(child, Attention) and isinstance(child.processor, FrameAttention):
            child.set_processor(FrameKernelAttention())  # type: ignore[arg-type]


class ContextAttention(nn.Module):
    """Attention processor of the spatial transformers' cross-attention.

    With image attention it is the decoupled cross-attention of IP-Adapter (Ye et al. 2023, eq. 5):
    the same queries attend to text and to image tokens, and the results are added.
    """

    def __init__(self, width: int, context_dim: int, num_text_tokens: int, *, image: bool) -> None:
        super().__init__()
        self.num_text_tokens = num_text_tokens
        self.per_frame = False
        self.image = image
        if image:
            self.to_k_ip = nn.Linear(context_dim, width, bias=False)
            self.to_v_ip = nn.Linear(context_dim, width, bias=False)

    def forward(
        self,
        attn: Attention,
        hidden_states: Float[Tensor, "R N C"],
        encoder_hidden_states: Float[Tensor, "B L D"],
        attention_mask: None = None,
    ) -> Float[Tensor, "R N C"]:
        """Attend from the tokens of all frames to the context of their clip.

        Args:
            attn: The module whose projections are used.
            hidden_states: Tokens of R = B * T frames.
            encoder_hidden_states: Text and image tokens of B clips.
            attention_mask: Always none; part of diffusers' interface.

        Returns:
            The new tokens.
        """
        assert attention_mask is None
        assert attn.to_k is not None
        assert attn.to_v is not None
        assert attn.to_out is not None
        query = attn.to_q(hidden_states)
        text = encoder_hidden_states[:, : self.num_text_tokens]
        out = attend(query, attn.to_k(text), attn.to_v(text), attn.heads)
        if self.image:
            image = self._image_tokens(encoder_hidden_states, hidden_states.shape[0])
            out = out + attend(query, self.to_k_ip(image), self.to_v_ip(image), attn.heads)
        return attn.to_out[1](attn.to_out[0](out))

    def _image_tokens(self, context: Tensor, num_rows: int) -> Tensor:
        image = context[:, self.num_text_tokens :]
        if not self.per_frame:
            return image
        num_frames = num_rows // context.shape[0]
        return image.unflatten(1, (num_frames, -1)).flatten(0, 1)


def context_attention_modules(module: nn.Module) -> list[ContextAttention]:
    """Return all context attention processors inside a module."""
    return [child for child in module.modules() if isinstance(child, ContextAttention)]
