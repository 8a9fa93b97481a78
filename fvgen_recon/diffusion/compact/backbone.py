"""The compact denoising network: a 2-D UNet over frames with temporal mixing."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from fvgen_recon.diffusion.backbone import Condition
from fvgen_recon.diffusion.compact.config import CompactConfig
from fvgen_recon.diffusion.compact.head import CopyHead, Renders
from fvgen_recon.diffusion.compact.layer import Attention, Block, TimeEmbedding, rotary_phase
from fvgen_recon.errors import InputError

NUM_PREPARED = 5
"""How many tensors `Prepared.tensors` returns."""


class Prepared(NamedTuple):
    """What depends on a clip's condition alone, neither on the noisy latents nor on their level."""

    first: Float[Tensor, "N C h w"]
    """The condition's part of the first convolution."""
    phase: Float[Tensor, "S D"]
    """Angles of the tokens at the bottom."""
    renders: Renders
    """What the head copies from."""

    def tensors(self) -> tuple[Tensor, ...]:
        """Return all of it, as `from_tensors` takes it."""
        return self.first, self.phase, *self.renders

    @staticmethod
    def from_tensors(
        first: Tensor, phase: Tensor, sources: Tensor, fill: Tensor, grid: Tensor
    ) -> "Prepared":
        """Put together what `tensors` returned."""
        renders = Renders(sources=sources, fill=fill, grid=grid)
        return Prepared(first=first, phase=phase, renders=renders)


class CompactBackbone(nn.Module):
    """Predicts x0 from noisy latents and the condition of `CompactCodec`.

    Frames of a clip talk to each other by mixing with their neighbours in every block and by full
    space-time attention at the bottom; nothing depends on the number of frames or the image size.
    """

    def __init__(self, config: CompactConfig) -> None:
        super().__init__()
        self.config = config
        w1, w2, w3 = config.widths
        n1, n2, n3 = config.num_blocks
        emb = config.embedding
        self.time = TimeEmbedding(emb)
        self.stem = nn.Conv2d(config.latent_channels + config.condition_channels, w1, 3, padding=1)
        self.down1 = nn.ModuleList([Block(w1, emb) for _ in range(n1)])
        self.shrink1 = nn.Conv2d(w1, w2, 2, stride=2)
        self.down2 = nn.ModuleList([Block(w2, emb) for _ in range(n2)])
        self.shrink2 = nn.Conv2d(w2, w3, 2, stride=2)
        self.down3 = nn.ModuleList([Block(w3, emb) for _ in range(n3)])
        num_attention = config.num_attention
        self.attention = nn.ModuleList(
            [Attention(w3, config.head_dim) for _ in range(num_attention)]
        )
        self.middle = nn.ModuleList([Block(w3, emb) for _ in range(max(0, num_attention - 1))])
        self.up3 = nn.ModuleList([Block(w3, emb) for _ in range(n3)])
        self.grow2 = nn.ConvTranspose2d(w3, w2, 2, stride=2)
        self.join2 = nn.Conv2d(2 * w2, w2, 1)
        self.up2 = nn.ModuleList([Block(w2, emb) for _ in range(n2)])
        self.grow1 = nn.ConvTranspose2d(w2, w1, 2, stride=2)
        self.join1 = nn.Conv2d(2 * w1, w1, 1)
        self.up1 = nn.ModuleList([Block(w1, emb) for _ in range(n1)])
        self.head = CopyHead(config)
        self.to(memory_format=torch.channels_last)

    def forward(
        self,
        x_t: Float[Tensor, "B C T h w"],
        t: Shaped[Tensor, "B"],
        condition: Condition,
        *,
        return_mid: bool = False,
    ) -> tuple[Float[Tensor, "B C T h w"], tuple[Tensor, ...]]:
        """Return x0 and, if asked for, features: bottleneck, then 1/8 and 1/4 of the encoder."""
        return self.denoise(x_t, t, self.prepare(condition), return_mid=return_mid)

    def prepare(self, condition: Condition) -> Prepared:
        """Return what all evaluations of the same clips share.

        Raises:
            InputError: The condition has other channels than the network reads.
        """
        maps = self._condition(condition)
        return Prepared(
            first=self._first(maps),
            phase=self._phase(condition),
            renders=self.head.renders(maps),
        )

    def denoise(
        self,
        x_t: Float[Tensor, "B C T h w"],
        t: Shaped[Tensor, "B"],
        prepared: Prepared,
        *,
        return_mid: bool = False,
    ) -> tuple[Float[Tensor, "B C T h w"], tuple[Tensor, ...]]:
        """Return what a call returns, of clips whose condition was prepared."""
        level = self._level(t)
        emb = self.time(level)
        bottom, *skips = self._encode(x_t, emb, prepared.first, prepared.phase)
        x = self._decode(self._rise(bottom, emb), skips, emb)
        x0 = self._finish(x, level, x_t, prepared)
        mid = tuple(_to_clips(f, len(x_t)) for f in (bottom, *skips)) if return_mid else ()
        return x0, mid

    def take_step(
        self,
        x_t: Float[Tensor, "B C T h w"],
        t: Shaped[Tensor, "B"],
        prepared: Prepared,
        deep: Float[Tensor, "N D h2 w2"] | None = None,
    ) -> tuple[Float[Tensor, "B C T h w"], Float[Tensor, "N D h2 w2"]]:
        """Return x0 as `denoise` does, and what the levels below 1/(2 patch) make of the clip.

        Given that of an earlier step as `deep`, these levels are not computed anew: what is coarse
        hardly changes from step to step (Ma et al., "DeepCache: Accelerating Diffusion Models for
        Free", CVPR 2024).
        """
        level = self._level(t)
        emb = self.time(level)
        skips = self._enter(x_t, emb, prepared.first)
        if deep is None:
            deep = self._rise(self._descend(skips[0], emb, prepared.phase), emb)
        x = self._decode(deep, skips, emb)
        return self._finish(x, level, x_t, prepared), deep

    def features(
        self, x_t: Float[Tensor, "B C T h w"], t: Shaped[Tensor, "B"], condition: Condition
    ) -> tuple[Tensor, ...]:
        """Return the features of a call with `return_mid`, without what comes after them."""
        first, phase = self._first(self._condition(condition)), self._phase(condition)
        maps = self._encode(x_t, self.time(self._level(t)), first, phase)
        return tuple(_to_clips(f, x_t.shape[0]) for f in maps)

    def _condition(self, condition: Condition) -> Tensor:
        """Return what this network reads; what it knows nothing of lies behind that."""
        config, came = self.config, condition.concat.shape[1]
        wanted, beyond = config.condition_channels, came - config.condition_channels
        is_blind = beyond > 0 and config.num_alternatives == 0 and not config.hints
        has_hints = beyond == config.hint_channels and not config.hints
        if beyond != 0 and not is_blind and not has_hints:
            raise InputError(
                f"A condition of {wanted} channels, with {config.num_alternatives} further guesses "
                f"and {'their' if config.hints else 'no'} hints, was expected: {came} came; make "
                "it by the codec of this network."
            )
        return _to_maps(condition.concat[:, :wanted])

    def _level(self, t: Tensor) -> Tensor:
        return t.float() / (self.config.num_timesteps - 1)

    def _first(self, maps: Tensor) -> Tensor:
        """Return the condition's part of the first convolution, bias included."""
        weight = self.stem.weight[:, self.config.latent_channels :]
        return self._convolve(maps, weight, self.stem.bias)

    def _convolve(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        x = x.to(weight.dtype, memory_format=torch.channels_last)
        return F.conv2d(x, weight, bias, padding=self.stem.padding)

    def _phase(self, condition: Condition) -> Tensor:
        num_frames, height, width = condition.concat.shape[2:]
        size = (num_frames, height // 4, width // 4)
        return rotary_phase(*size, self.config.head_dim, condition.concat.device)

    def _encode(self, x_t: Tensor, emb: Tensor, first: Tensor, phase: Tensor) -> tuple[Tensor, ...]:
        """Return bottleneck and skips as maps."""
        skip2, skip1 = self._enter(x_t, emb, first)
        return self._descend(skip2, emb, phase), skip2, skip1

    def _enter(self, x_t: Tensor, emb: Tensor, first: Tensor) -> tuple[Tensor, Tensor]:
        """Return the skips, coarse and fine."""
        # A convolution of channels side by side is the sum of their convolutions.
        noisy = self._convolve(_to_maps(x_t), self.stem.weight[:, : self.config.latent_channels])
        skip1 = _run(self.down1, first + noisy, emb)
        return _run(self.down2, self.shrink1(skip1), emb), skip1

    def _descend(self, skip2: Tensor, emb: Tensor, phase: Tensor) -> Tensor:
        return self._bottom(_run(self.down3, self.shrink2(skip2), emb), emb, phase)

    def _rise(self, bottom: Tensor, emb: Tensor) -> Tensor:
        return self.grow2(_run(self.up3, bottom, emb))

    def _decode(self, deep: Tensor, skips: Sequence[Tensor], emb: Tensor) -> Tensor:
        x = _run(self.up2, self.join2(torch.cat([deep, skips[0]], dim=1)), emb)
        x = self.join1(torch.cat([self.grow1(x), skips[1]], dim=1))
        return _run(self.up1, x, emb)

    def _finish(self, x: Tensor, level: Tensor, x_t: Tensor, prepared: Prepared) -> Tensor:
        """Return x0 of the clips from the last features."""
        levels = level.repeat_interleave(x_t.shape[2])
        return _to_clips(self.head(x, prepared.renders, _to_maps(x_t), levels), len(x_t))

    def _bottom(self, x: Tensor, emb: Tensor, phase: Tensor) -> Tensor:
        for index, attention in enumerate(self.attention):
            x = attention(x, phase)
            if index < len(self.middle):
                x = self.middle[index](x, emb)
        return x

    def compile_parts(self) -> None:
        """Compile the repeated parts one by one: minutes less than the whole graph at once."""
        for module in self.modules():
            if isinstance(module, (Block, Attention)):
                module.compile(dynamic=False)


def _run(blocks: nn.ModuleList, x: Tensor, emb: Tensor) -> Tensor:
    for block in blocks:
        x = block(x, emb)
    return x


def _to_maps(x: Tensor) -> Tensor:
    return x.transpose(1, 2).flatten(0, 1)


def _to_clips(x: Tensor, batch: int) -> Tensor:
    return x.unflatten(0, (batch, -1)).transpose(1, 2)
