"""The seam for denoising networks: what samplers and the distillation know of a model.

A model is three things: a `Codec` between frames and latents, a `VideoBackbone` that denoises
latents, and a `NoiseSchedule` that says what noise means to it. Teacher, student and critic share
one codec and one schedule.

Letters: `B` clips, `C` latent channels, `T` frames, `h w` latent pixels, `L D` context tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from fvgen_recon.types import Guidance


@dataclass(frozen=True, kw_only=True, slots=True)
class Condition:
    """What a backbone is conditioned on, for a batch of clips."""

    concat: Float[Tensor, "B Cc T h w"]
    """Latents (or unshuffled pixels) of the guidance, concatenated with the noisy latents."""
    context: Float[Tensor, "B L D"]
    """Tokens for cross-attention; L may be 0."""
    null_context: Float[Tensor, "B L D"]
    """Tokens of the unconditional branch of classifier-free guidance."""

    def unconditional(self) -> "Condition":
        """Return the condition of the unconditional branch: same renders, null context."""
        return replace(self, context=self.null_context)

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> "Condition":
        """Move and cast the tensors."""
        return Condition(
            concat=self.concat.to(device, dtype),
            context=self.context.to(device, dtype),
            null_context=self.null_context.to(device, dtype),
        )

    def __getitem__(self, index: slice | Tensor) -> "Condition":
        """Select clips of the batch."""
        return Condition(
            concat=self.concat[index],
            context=self.context[index],
            null_context=self.null_context[index],
        )


@runtime_checkable
class NoiseSchedule(Protocol):
    """What noise level t means; t runs from 0 (clean) to `num_timesteps - 1` (pure noise).

    All maps accept t of shape [B] and work in float32 or better. `x0` is always the plain clean
    latent: a schedule that rescales x0 inside (ViewCrafter) undoes that at its border.
    """

    @property
    def num_timesteps(self) -> int:
        """Number of times; the last one is `num_timesteps - 1`."""
        ...

    def alpha_sigma(self, t: Shaped[Tensor, "B"]) -> tuple[Tensor, Tensor]:
        """Return the factors of x0 and eps in x_t, each [B], any rescale of x0 included."""
        ...

    def add_noise(
        self,
        x0: Float[Tensor, "B C T h w"],
        eps: Float[Tensor, "B C T h w"],
        t: Shaped[Tensor, "B"],
    ) -> Float[Tensor, "B C T h w"]:
        """Return x_t."""
        ...

    def target(
        self,
        x0: Float[Tensor, "B C T h w"],
        eps: Float[Tensor, "B C T h w"],
        t: Shaped[Tensor, "B"],
    ) -> Float[Tensor, "B C T h w"]:
        """Return what the network's output should be (v, x0, ...)."""
        ...

    def x0_from_output(
        self,
        output: Float[Tensor, "B C T h w"],
        x_t: Float[Tensor, "B C T h w"],
        t: Shaped[Tensor, "B"],
    ) -> Float[Tensor, "B C T h w"]:
        """Return the plain x0 that the network's output stands for."""
        ...

    def timesteps(self, num_steps: int) -> Shaped[Tensor, "S"]:
        """Return `num_steps` descending times, the first one pure noise."""
        ...


@runtime_checkable
class VideoBackbone(Protocol):
    """A denoising network; in practice an `nn.Module`."""

    def __call__(
        self,
        x_t: Float[Tensor, "B C T h w"],
        t: Shaped[Tensor, "B"],
        condition: Condition,
        *,
        return_mid: bool = False,
    ) -> tuple[Float[Tensor, "B C T h w"], tuple[Tensor, ...]]:
        """Return the output and, if asked for, mid features for a discriminator.

        Each mid feature is [B, C_i, T_i, h_i, w_i]; the bottleneck comes first.
        """
        ...


@runtime_checkable
class FeatureBackbone(Protocol):
    """A backbone that can give its mid features without computing the rest."""

    def features(
        self, x_t: Float[Tensor, "B C T h w"], t: Shaped[Tensor, "B"], condition: Condition
    ) -> tuple[Tensor, ...]:
        """Return the mid features that a call with `return_mid` returns."""
        ...


@runtime_checkable
class PartedBackbone(Protocol):
    """A backbone that knows which of its parts are best compiled one by one."""

    def compile_parts(self) -> None:
        """Compile them, in place; weights and their names stay."""
        ...


def mid_features(
    backbone: nn.Module,
    x_t: Float[Tensor, "B C T h w"],
    t: Shaped[Tensor, "B"],
    condition: Condition,
) -> tuple[Tensor, ...]:
    """Return the mid features of a backbone, with no more work than it needs for them."""
    if isinstance(backbone, FeatureBackbone):
        return backbone.features(x_t, t, condition)
    return backbone(x_t, t, condition, return_mid=True)[1]


@runtime_checkable
class Codec(Protocol):
    """Between frames and latents, and from guidance to a condition."""

    @property
    def latent_channels(self) -> int:
        """Channels of a latent."""
        ...

    @property
    def size_multiple(self) -> int:
        """Image heights and widths must be multiples of this number of pixels."""
        ...

    def encode(
        self, frames: Float[Tensor, "B T 3 H W"], rng: torch.Generator | None = None
    ) -> Float[Tensor, "B C T h w"]:
        """Encode frames in [0, 1]; `rng` draws the posterior where there is one."""
        ...

    def decode(self, z: Float[Tensor, "B C T h w"]) -> Float[Tensor, "B T 3 H W"]:
        """Decode to frames in [0, 1]."""
        ...

    def condition(
        self, guidance: Sequence[Guidance], rng: torch.Generator | None = None
    ) -> Condition:
        """Return the condition of a batch of clips of one size and length."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class VideoModel:
    """A complete model: codec, backbone and schedule."""

    codec: Codec
    backbone: nn.Module
    schedule: NoiseSchedule
    name: str
    weights_hash: str
