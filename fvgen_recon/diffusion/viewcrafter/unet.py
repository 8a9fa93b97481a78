"""ViewCrafter's video UNet, built of diffusers' parts.

The network is diffusers' `UNet3DConditionModel` with two additions: an embedding of the frame rate,
and cross-attention with separate keys and values for image tokens (DynamiCrafter, Xing et al.
2023). Parameters shared with `UNet3DConditionModel` have its names.
"""

from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.embeddings import TimestepEmbedding, Timesteps
from diffusers.models.modeling_utils import ModelMixin
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from fvgen_recon.diffusion.viewcrafter.attention import context_attention_modules
from fvgen_recon.diffusion.viewcrafter.layer import GROUPS, TemporalTransformer
from fvgen_recon.diffusion.viewcrafter.level import DownLevel, LevelShape, MidLevel, UpLevel
from fvgen_recon.errors import InputError

ImageContext = Literal["per_frame", "shared"]
"""Whether frame k sees only the k-th part of the image tokens, or every frame sees all."""

INITIAL_HEADS = 8
"""Attention heads of the temporal transformer right after the first convolution."""


class ViewCrafterUNet(ModelMixin, ConfigMixin):
    """A UNet over clips, conditioned on the latents of renders, tokens, time and frame rate.

    The original decides between the two ways of showing image tokens to frames by comparing token
    counts, so that a model silently changes with 16 frames. Here it is a recorded setting.

    Args:
        image_context: "per_frame" or "shared"; see `ImageContext`. A teacher, its student and its
            critic must agree on it.
        in_channels: Channels of the input: noisy latents and condition latents.
        out_channels: Channels of the output.
        block_out_channels: Width of each level.
        layers_per_block: Residual blocks in a level going down; going up there is one more.
        attention_levels: For each level, whether it has transformers. The middle always has.
        attention_head_dim: Width of an attention head.
        transformer_depth: Blocks in each transformer.
        cross_attention_dim: Width of the context tokens.
        num_text_tokens: Text tokens at the start of the context.
        image_cross_attention: Whether image tokens have keys and values of their own; without
            them, image tokens are not read.
        fps_condition: Whether the frame rate is embedded.
        default_fps: Frame rate where none is given.
        dropout: In residual blocks and temporal convolutions; the original trained with 0.1.
    """

    _supports_gradient_checkpointing = True
    _no_split_modules: ClassVar[list[str]] = [
        "DownLevel",
        "MidLevel",
        "UpLevel",
        "TemporalTransformer",
    ]

    @register_to_config
    def __init__(  # noqa: PLR0913 - diffusers stores the arguments as the config
        self,
        *,
        image_context: ImageContext,
        in_channels: int = 8,
        out_channels: int = 4,
        block_out_channels: Sequence[int] = (320, 640, 1280, 1280),
        layers_per_block: int = 2,
        attention_levels: Sequence[bool] = (True, True, True, False),
        attention_head_dim: int = 64,
        transformer_depth: int = 1,
        cross_attention_dim: int = 1024,
        num_text_tokens: int = 77,
        image_cross_attention: bool = True,
        fps_condition: bool = True,
        default_fps: int = 10,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        assert len(attention_levels) == len(block_out_channels)
        first = block_out_channels[0]
        shape = LevelShape(
            time_dim=4 * first,
            context_dim=cross_attention_dim,
            head_dim=attention_head_dim,
            depth=transformer_depth,
            num_text_tokens=num_text_tokens,
            image=image_cross_attention,
            dropout=dropout,
        )
        self.time_proj = Timesteps(first, flip_sin_to_cos=True, downscale_freq_shift=0)
        self.time_embedding = TimestepEmbedding(first, shape.time_dim)
        self.fps_embedding = TimestepEmbedding(first, shape.time_dim) if fps_condition else None
        self.conv_in = nn.Conv2d(in_channels, first, 3, padding=1)
        self.transformer_in = TemporalTransformer(
            first, INITIAL_HEADS, attention_head_dim, transformer_depth
        )
        widths, num_levels = list(block_out_channels), len(block_out_channels)
        self.down_blocks = _down_levels(shape, widths, layers_per_block, attention_levels)
        self.mid_block = MidLevel(shape, widths[-1])
        self.up_blocks = _up_levels(shape, widths, layers_per_block, attention_levels)
        self.conv_norm_out = nn.GroupNorm(GROUPS, first, eps=1e-5)
        self.conv_act = nn.SiLU()
        self.conv_out = nn.Conv2d(first, out_channels, 3, padding=1)
        self.feature_layers: tuple[str, ...] = ("mid",)
        self.num_down_features = num_levels * (layers_per_block + 1)
        self.num_up_features = num_levels * (layers_per_block + 1)
        self.num_text_tokens = num_text_tokens
        self.image_cross_attention = image_cross_attention
        self.default_fps = default_fps
        self.set_image_context(image_context)

    @property
    def size_multiple(self) -> int:
        """Latent heights and widths must be multiples of this number."""
        return 2 ** (len(self.down_blocks) - 1)

    def set_image_context(self, image_context: ImageContext) -> None:
        """Choose, and record in the config, which image tokens a frame sees."""
        self.register_to_config(image_context=image_context)
        self.per_frame = image_context == "per_frame"
        for attention in context_attention_modules(self):
            attention.per_frame = self.per_frame

    def select_features(self, layers: Sequence[str]) -> None:
        """Choose the features that `forward` returns with `return_mid`.

        Args:
            layers: "mid" for the bottleneck; "down.i" and "up.i" for the i-th layer going down or
                up, counted as the original counts `input_blocks` and `output_blocks`.

        Raises:
            InputError: A layer does not exist.
        """
        known = self._feature_names()
        unknown = [name for name in layers if name not in known]
        if unknown:
            raise InputError(
                f"The UNet has no layer '{unknown[0]}': use one of {', '.join(known)}."
            )
        self.feature_layers = tuple(layers)

    def to_channels_last(self) -> "ViewCrafterUNet":
        """Lay out convolution weights for tensor cores; values do not change."""
        layouts = {4: torch.channels_last, 5: torch.channels_last_3d}
        for parameter in self.parameters():
            if parameter.ndim in layouts:
                parameter.data = parameter.data.contiguous(memory_format=layouts[parameter.ndim])
        return self

    def embed(
        self, timestep: Shaped[Tensor, "B"], fps: Shaped[Tensor, "B"] | None
    ) -> Float[Tensor, "B E"]:
        """Return the embedding of time and frame rate."""
        dtype = self.conv_in.weight.dtype
        time = self.time_embedding(self.time_proj(timestep).to(dtype))
        if self.fps_embedding is None:
            return time
        if fps is None:
            fps = torch.full_like(timestep, self.default_fps)
        return time + self.fps_embedding(self.time_proj(fps).to(dtype))

    def forward(
        self,
        sample: Float[Tensor, "B Ci T h w"],
        timestep: Shaped[Tensor, "B"],
        context: Float[Tensor, "B L D"],
        fps: Shaped[Tensor, "B"] | None = None,
        *,
        return_mid: bool = False,
    ) -> tuple[Float[Tensor, "B Co T h w"], tuple[Tensor, ...]]:
        """Denoise clips.

        Args:
            sample: Noisy latents and condition latents, concatenated.
            timestep: Time of each clip.
            context: Text tokens, then image tokens.
            fps: Frame rate of each clip; none means the default one.
            return_mid: Whether to return features for a discriminator.

        Returns:
            The output, and the features [B C T h w] of `feature_layers` in their order.

        Raises:
            InputError: The latent size or the token count does not suit the network.
        """
        num_clips, _, num_frames = sample.shape[:3]
        time, downs, mid = self._descend(sample, timestep, context, fps)
        ups: list[Tensor] = []
        x, skips = mid, downs[::-1]
        for level in self.up_blocks:
            outputs = level(x, skips, time, context, num_frames)
            skips = skips[len(outputs) :]
            ups += outputs
            x = ups[-1]
        x = self.conv_out(self.conv_act(self.conv_norm_out(x)))
        output = x.unflatten(0, (num_clips, num_frames)).transpose(1, 2)
        return output, self._chosen(downs, mid, ups, num_frames) if return_mid else ()

    def features(
        self,
        sample: Float[Tensor, "B Ci T h w"],
        timestep: Shaped[Tensor, "B"],
        context: Float[Tensor, "B L D"],
        fps: Shaped[Tensor, "B"] | None = None,
    ) -> tuple[Tensor, ...]:
        """Return the features of `feature_layers` alone, and compute no more than they need."""
        if any(name.startswith("up.") for name in self.feature_layers):
            return self(sample, timestep, context, fps, return_mid=True)[1]
        _, downs, mid = self._descend(sample, timestep, context, fps)
        return self._chosen(downs, mid, [], sample.shape[2])

    def _descend(
        self, sample: Tensor, timestep: Tensor, context: Tensor, fps: Tensor | None
    ) -> tuple[Tensor, list[Tensor], Tensor]:
        """Return the time embedding of each frame, the skips, and the bottleneck."""
        num_frames = sample.shape[2]
        self._check(sample, context)
        time = self.embed(timestep, fps).repeat_interleave(num_frames, dim=0)
        x = self.conv_in(sample.transpose(1, 2).flatten(0, 1))
        downs = [self.transformer_in(x, num_frames)]
        for level in self.down_blocks:
            downs += level(downs[-1], time, context, num_frames)
        return time, downs, self.mid_block(downs[-1], time, context, num_frames)

    def _chosen(
        self, downs: list[Tensor], mid: Tensor, ups: list[Tensor], num_frames: int
    ) -> tuple[Tensor, ...]:
        """Return the features of `feature_layers` as clips."""
        found = {"mid": mid}
        found |= {f"down.{i}": f for i, f in enumerate(downs)}
        found |= {f"up.{i}": f for i, f in enumerate(ups)}
        chosen = (found[name] for name in self.feature_layers)
        return tuple(f.unflatten(0, (-1, num_frames)).transpose(1, 2) for f in chosen)

    def _feature_names(self) -> list[str]:
        downs = [f"down.{i}" for i in range(self.num_down_features)]
        return ["mid", *downs, *(f"up.{i}" for i in range(self.num_up_features))]

    def _check(self, sample: Tensor, context: Tensor) -> None:
        multiple, size = self.size_multiple, tuple(sample.shape[-2:])
        if size[0] % multiple or size[1] % multiple:
            raise InputError(
                f"Latent height and width must be multiples of {multiple}, {size[0]}x{size[1]} "
                f"came: choose an image size that is a multiple of {8 * multiple}."
            )
        if not self.image_cross_attention:
            return
        num_image, num_frames = context.shape[1] - self.num_text_tokens, sample.shape[2]
        if num_image <= 0 or (self.per_frame and num_image % num_frames):
            parts = f"a multiple of {num_frames}" if self.per_frame else "at least one"
            raise InputError(
                f"The context needs {parts} image tokens after its {self.num_text_tokens} text "
                f"tokens, {num_image} came: per-frame image context needs as many equal parts as "
                "frames, shared context takes any number."
            )


def _down_levels(
    shape: LevelShape, widths: list[int], num_layers: int, attention: Sequence[bool]
) -> nn.ModuleList:
    return nn.ModuleList(
        DownLevel(
            shape,
            widths[max(i - 1, 0)],
            width,
            num_layers,
            attention=attention[i],
            downsample=i + 1 < len(widths),
        )
        for i, width in enumerate(widths)
    )


def _up_levels(
    shape: LevelShape, widths: list[int], num_layers: int, attention: Sequence[bool]
) -> nn.ModuleList:
    skips = [widths[0]]
    for i, width in enumerate(widths):
        skips += [width] * (num_layers + (i + 1 < len(widths)))
    levels, before = nn.ModuleList(), widths[-1]
    for i in reversed(range(len(widths))):
        layer_widths = []
        for _ in range(num_layers + 1):
            layer_widths.append((before + skips.pop(), widths[i]))
            before = widths[i]
        levels.append(UpLevel(shape, layer_widths, attention=attention[i], upsample=i > 0))
    return levels
