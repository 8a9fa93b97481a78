"""Between frames and the latents of the compact model, and from guidance to its condition."""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from fvgen_recon.diffusion.backbone import Condition
from fvgen_recon.diffusion.compact.config import NUM_SOURCES, CompactConfig
from fvgen_recon.diffusion.compact.fill import push_pull
from fvgen_recon.errors import InputError
from fvgen_recon.types import HINT_CELL_PX, Guidance


@dataclass(frozen=True, kw_only=True, slots=True)
class Sources:
    """The renders of a batch of clips, as the codec wants them."""

    frames: Float[Tensor, "B T 3 H W"]
    """Renders of the trusted points; photos at the anchors."""
    mask: Bool[Tensor, "B T 1 H W"]
    """True where `frames` is trusted."""
    layers: Float[Tensor, "B 2 T 3 H W"]
    """Dense renders of the first and of the last anchor's photo."""
    layer_masks: Bool[Tensor, "B 2 T 1 H W"]
    """True where a layer was hit."""
    is_anchor: Bool[Tensor, "B T"]
    """Frames that hold a photo."""
    alternatives: Float[Tensor, "B G T 3 H W"]
    """Renders of further guesses (`Guidance.alternatives`)."""
    alternative_masks: Bool[Tensor, "B G T 1 H W"]
    """True where one of them was hit."""
    hints: Float[Tensor, "B S T 2 h w"]
    """Confidence and depth in cells of 4 pixels (`Guidance.hints`)."""

    @property
    def unseen(self) -> Bool[Tensor, "B T 1 H W"]:
        """True where no render was hit."""
        layers = torch.cat([self.layer_masks, self.alternative_masks], dim=1)
        return ~(self.mask | layers.any(dim=1))

    def __getitem__(self, index: slice | Tensor) -> "Sources":
        """Select clips."""
        return Sources(**{f.name: getattr(self, f.name)[index] for f in fields(self)})


def _shuffle(frames: Tensor, patch: int) -> Tensor:
    return F.pixel_unshuffle(frames, patch).transpose(1, 2)


def _first_layers(layers: Tensor, masks: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return so many layers `... L T C H W`; missing ones count as not hit anywhere."""
    pad = (0, 0) * 4 + (0, max(0, count - layers.shape[-5]))
    layers, masks = layers[..., :count, :, :, :, :], masks[..., :count, :, :, :, :]
    return F.pad(layers, pad), F.pad(masks.float(), pad) > 0.5


def _guesses(guidance: Guidance, count: int) -> tuple[Tensor, Tensor]:
    if guidance.alternatives is None or guidance.alternative_masks is None:
        return _first_layers(guidance.layers[:0], guidance.layer_masks[:0], count)
    return _first_layers(guidance.alternatives, guidance.alternative_masks, count)


def _first_hints(guidance: Guidance, count: int) -> Tensor:
    height, width = (-(-size // HINT_CELL_PX) for size in guidance.frames.shape[-2:])
    hints = guidance.hints
    if hints is None:
        return guidance.frames.new_zeros(count, len(guidance), 2, height, width)
    return F.pad(hints[:count], (0, 0) * 4 + (0, max(0, count - len(hints))))


def stack_guidance(guidance: Sequence[Guidance], num_alternatives: int = 0) -> Sources:
    """Stack guidance of one size and length; missing layers count as not hit anywhere.

    Args:
        guidance: One for each clip.
        num_alternatives: Renders of further guesses to take along.

    Raises:
        InputError: The clips differ in length or size.
    """
    shapes = {tuple(g.frames.shape) for g in guidance}
    if len(shapes) != 1:
        raise InputError(
            f"Clips of one length and size were expected in a batch: {sorted(shapes)} came; "
            "generate them one by one."
        )
    layers = [_first_layers(g.layers, g.layer_masks, 2) for g in guidance]
    guesses = [_guesses(g, num_alternatives) for g in guidance]
    return Sources(
        frames=torch.stack([g.frames for g in guidance]),
        mask=torch.stack([g.mask for g in guidance]),
        layers=torch.stack([pair[0] for pair in layers]),
        layer_masks=torch.stack([pair[1] for pair in layers]),
        is_anchor=torch.stack([g.is_anchor for g in guidance]),
        alternatives=torch.stack([pair[0] for pair in guesses]),
        alternative_masks=torch.stack([pair[1] for pair in guesses]),
        hints=torch.stack([_first_hints(g, NUM_SOURCES - 1 + num_alternatives) for g in guidance]),
    )


def merge_sources(
    sources: Sources,
) -> tuple[Float[Tensor, "B T 3 H W"], Float[Tensor, "B T 1 H W"]]:
    """Return the plain blend of all renders and where it is known.

    Trusted points win; elsewhere the two dense layers are mixed by the frame's place in the clip.
    """
    num_frames = sources.frames.shape[1]
    place = torch.linspace(1, 0, num_frames, device=sources.frames.device)[
        None, :, None, None, None
    ]
    near = sources.layer_masks[:, 0] * place.clamp_min(1e-3)
    far = sources.layer_masks[:, 1] * (1 - place).clamp_min(1e-3)
    dense = sources.layers[:, 0] * near + sources.layers[:, 1] * far
    dense = dense / (near + far).clamp_min(1e-6)
    known = sources.mask | sources.layer_masks.any(dim=1)
    return torch.where(sources.mask, sources.frames, dense), known.float()


@dataclass(frozen=True, kw_only=True, slots=True)
class CompactCodec:
    """Pixel-unshuffling codec: exact in both directions but for the clamp to [0, 1]."""

    config: CompactConfig

    @property
    def latent_channels(self) -> int:
        """Channels of a latent."""
        return self.config.latent_channels

    @property
    def size_multiple(self) -> int:
        """Heights and widths must be multiples of this many pixels."""
        return self.config.size_multiple

    def encode(
        self, frames: Float[Tensor, "B T 3 H W"], rng: torch.Generator | None = None
    ) -> Float[Tensor, "B C T h w"]:
        """Fold pixels into channels and map [0, 1] to [-1, 1]; `rng` is not needed."""
        return _shuffle(frames * 2 - 1, self.config.patch)

    def decode(self, z: Float[Tensor, "B C T h w"]) -> Float[Tensor, "B T 3 H W"]:
        """Unfold to frames in [0, 1]."""
        frames = F.pixel_shuffle(z.transpose(1, 2), self.config.patch)
        return (frames / 2 + 0.5).clamp(0, 1)

    def condition(
        self, guidance: Sequence[Guidance], rng: torch.Generator | None = None
    ) -> Condition:
        """Return the condition of a batch of clips of one size and length.

        Raises:
            InputError: Sizes differ, or are no multiples of `size_multiple`.
        """
        return self.condition_sources(stack_guidance(guidance, self.config.num_alternatives))

    def condition_sources(self, sources: Sources) -> Condition:
        """Return the condition of stacked renders.

        Raises:
            InputError: The size is no multiple of `size_multiple`.
        """
        height, width = sources.frames.shape[-2:]
        multiple = self.size_multiple
        if height % multiple or width % multiple:
            raise InputError(
                f"Frame sizes must be multiples of {multiple} pixels: {height}x{width} came."
            )
        blend, known = merge_sources(sources)
        fill = push_pull(blend.flatten(0, 1), known.flatten(0, 1)).unflatten(0, blend.shape[:2])
        colors = (sources.frames, sources.layers[:, 0], sources.layers[:, 1])
        masks = (sources.mask, sources.layer_masks[:, 0], sources.layer_masks[:, 1])
        colors = [(c * 2 - 1) * m for c, m in zip(colors, masks, strict=True)] + [fill * 2 - 1]
        planes = torch.cat([*colors, *(m.float() for m in masks), torch.ones_like(known)], dim=2)
        parts = [_shuffle(planes, self.config.patch), self._place(sources)]
        if self.config.num_alternatives > 0:
            parts.append(_shuffle(self._alternatives(sources), self.config.patch))
        if self.config.hints:
            parts.append(self._hints(sources).to(parts[0]))
        concat = torch.cat(parts, dim=1)
        context = concat.new_zeros(concat.shape[0], 0, 1)
        return Condition(concat=concat, context=context, null_context=context)

    def unseen(self, condition: Condition) -> Bool[Tensor, "B T 1 H W"]:
        """Return where no render hit anything, read back from the condition."""
        config = self.config
        area = config.patch**2
        masks = [condition.concat[:, 3 * NUM_SOURCES * area : (4 * NUM_SOURCES - 1) * area]]
        if config.num_alternatives > 0:
            start, num_more = config.base_channels, config.num_alternatives * area
            masks.append(condition.concat[:, start + 3 * num_more : start + 4 * num_more])
        planes = F.pixel_shuffle(torch.cat(masks, dim=1).transpose(1, 2), config.patch)
        return (planes < 0.5).all(dim=2, keepdim=True)

    def _alternatives(self, sources: Sources) -> Tensor:
        """Return colours, then masks, of the alternatives as planes of every frame."""
        layers, masks = _first_layers(
            sources.alternatives, sources.alternative_masks, self.config.num_alternatives
        )
        colors = (layers * 2 - 1) * masks
        planes = [x.transpose(1, 2).flatten(2, 3) for x in (colors, masks.to(colors))]
        return torch.cat(planes, dim=2)

    def _hints(self, sources: Sources) -> Float[Tensor, "B C T h w"]:
        """Return hints at the latents' size, 0 where a render was not hit."""
        config = self.config
        _, more_masks = _first_layers(
            sources.alternatives, sources.alternative_masks, config.num_alternatives
        )
        masks = torch.cat([sources.mask[:, None], sources.layer_masks, more_masks], dim=1)
        shape, hints = masks.shape[:3], sources.hints[:, : masks.shape[1]].float()
        hit = F.max_pool2d(masks.flatten(0, 2).float(), HINT_CELL_PX).unflatten(0, shape)
        hints = F.pad(hints, (0, 0) * 4 + (0, shape[1] - hints.shape[1])) * hit
        size = [side // config.patch for side in masks.shape[-2:]]
        cells = F.interpolate(hints.flatten(0, 2), size, mode="area").unflatten(0, shape)
        return cells.transpose(1, 2).flatten(2, 3).transpose(1, 2)

    def _place(self, sources: Sources) -> Tensor:
        batch, num_frames, _, height, width = sources.frames.shape
        position = torch.linspace(-1, 1, num_frames, device=sources.frames.device)
        anchor = sources.is_anchor.float() * 2 - 1
        place = torch.stack([position.expand(batch, -1), anchor], dim=1)
        size = (height // self.config.patch, width // self.config.patch)
        return place[..., None, None].expand(-1, -1, -1, *size)
