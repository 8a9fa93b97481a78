"""The compact model as a generator of clips."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float
from kornia.filters import gaussian_blur2d
from torch import Tensor

from fvgen_recon.diffusion.backbone import Condition, VideoModel
from fvgen_recon.diffusion.compact.backbone import NUM_PREPARED, CompactBackbone, Prepared
from fvgen_recon.diffusion.compact.checkpoint import load_compact
from fvgen_recon.diffusion.compact.codec import CompactCodec, Sources, stack_guidance
from fvgen_recon.diffusion.recording import Step, StepRecorder
from fvgen_recon.diffusion.sampler import Denoiser, FewStepKind, sample_few_steps, seeded_noise
from fvgen_recon.diffusion.schedule import SamplingSchedule
from fvgen_recon.errors import InputError
from fvgen_recon.types import HINT_CELL_PX, Guidance

_RECORDED_PX = 1_500_000
"""Pixels of a clip up to which its evaluations are recorded. Larger ones should keep a GPU busy for
longer than the host needs to launch kernels (extrapolated: on one H200 four steps of 0.66 million
pixels take 78 ms replayed and 177 ms otherwise), and a recording would keep their activations."""


_MOST_KEPT_STEPS = 4
"""Steps up to which keeping the deepest levels was measured."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CompactGenerator:
    """Makes clips of any length and size with a compact model.

    Sizes that are no multiples of 16 are padded inside, so `size_multiple` is 1.
    """

    model: VideoModel
    """Model whose codec is a `CompactCodec`."""
    num_steps: int = 4
    """Network evaluations."""
    num_frames: int = 16
    """Length of the clips that planners should make; any length is accepted."""
    sampler: FewStepKind = "sde"
    """Noise again between steps, or `ode`."""
    dtype: torch.dtype = torch.float32
    """Type of the condition; that of the weights."""
    is_smooth: bool = False
    """Keep only smooth colour where no point of any render lies: a network that answers with means,
    or began as one, has nothing to say there, and what detail it shows is the pattern of its own
    upsampling."""
    keeps_deep: bool = False
    """For up to four steps: compute the network's deepest levels in the first step alone and keep
    what they made for the others (`CompactBackbone.take_step`)."""
    device: str = "cpu"
    """Where the model lies."""
    name: str = "student"
    size_multiple: int = 1
    is_raw: bool = False
    recorder: StepRecorder | None = field(default=None, repr=False, compare=False)
    """Replays the network's evaluations on a GPU as CUDA graphs; none runs kernel by kernel."""

    def __post_init__(self) -> None:
        """Check the number of steps."""
        if self.num_steps not in (1, 2, 4, 8, 50):
            raise InputError(
                f"A compact model takes 1, 2, 4, 8 or 50 steps: {self.num_steps} was asked for."
            )

    @property
    def weights_hash(self) -> str:
        """SHA-256 of what decides the frames (`CompactCard.fingerprint`)."""
        return self.model.weights_hash

    @torch.no_grad()
    def generate(self, guidance: Guidance, *, seed: int) -> Float[Tensor, "T 3 H W"]:
        """Return frames in [0, 1] on the device of the guidance; anchors keep their photos.

        Raises:
            InputError: The clip has fewer than two frames.
        """
        if len(guidance) < 2:
            raise InputError(f"A clip needs at least two frames: {len(guidance)} came.")
        codec = self.model.codec
        schedule = self.model.schedule
        assert isinstance(codec, CompactCodec)
        assert isinstance(schedule, SamplingSchedule)
        height, width = guidance.frames.shape[-2:]
        multiple = codec.size_multiple
        pad = (-height % multiple, -width % multiple)
        stacked = stack_guidance([guidance.to(self.device)], codec.config.num_alternatives)
        sources = _pad(stacked, *pad)
        condition = codec.condition_sources(sources).to(self.device, self.dtype)
        rng = torch.Generator().manual_seed(seed)
        shape = (1, codec.latent_channels, *condition.concat.shape[2:])
        x_T = torch.randn(shape, generator=rng).to(self.device)
        z = sample_few_steps(
            self._denoiser(condition),
            x_T,
            schedule,
            times=schedule.timesteps(self.num_steps),
            kind=self.sampler,
            noise=seeded_noise(rng),
        )
        frames = codec.decode(z.float())
        if self.is_smooth:
            frames = smooth_unseen(frames, sources)
        frames = frames[0, ..., :height, :width].to(guidance.frames)
        is_anchor = guidance.is_anchor[:, None, None, None]
        return torch.where(is_anchor, guidance.frames, frames)

    def _denoiser(self, condition: Condition) -> Denoiser:
        """Return the network, bound to what it has to compute of a clip only once."""
        backbone = self.model.backbone
        assert isinstance(backbone, CompactBackbone)
        shared = backbone.prepare(condition).tensors()
        step = self._bind(shared)
        if not self.keeps_deep or self.num_steps > _MOST_KEPT_STEPS:
            return lambda x_t, t: step(x_t, t)[0]
        return _keep_deep(step, lambda deep: self._bind((*shared, deep)))

    def _bind(self, shared: tuple[Tensor, ...]) -> Step:
        prepared = Prepared.from_tensors(*shared[:NUM_PREPARED])
        if self.recorder is not None and prepared.renders.fill[:, 0].numel() <= _RECORDED_PX:
            return self.recorder.for_clip(*shared)
        backbone = self.model.backbone
        assert isinstance(backbone, CompactBackbone)
        return lambda x_t, t: backbone.take_step(x_t, t, prepared, *shared[NUM_PREPARED:])


def _keep_deep(first: Step, bind: Callable[[Tensor], Step]) -> Denoiser:
    """Return steps of which all but the first go on from what that found deepest."""
    step = first

    def denoise(x_t: Tensor, t: Tensor) -> Tensor:
        nonlocal step
        x0, deep = step(x_t, t)
        if step is first:
            step = bind(deep)
        return x0

    return denoise


def make_recorder(backbone: CompactBackbone) -> StepRecorder:
    """Return a recorder of a network's steps, the first of a clip and those that go on from it."""

    def evaluate(x_t: Tensor, t: Tensor, *shared: Tensor) -> tuple[Tensor, Tensor]:
        prepared = Prepared.from_tensors(*shared[:NUM_PREPARED])
        return backbone.take_step(x_t, t, prepared, *shared[NUM_PREPARED:])

    return StepRecorder(backbone, evaluate)


def smooth_unseen(
    frames: Float[Tensor, "B T 3 H W"], sources: Sources, sigma: float = 8.0
) -> Float[Tensor, "B T 3 H W"]:
    """Blur the pixels that no render hit, among themselves alone; all others stay.

    Args:
        frames: What the network made.
        sources: The renders that it was made from.
        sigma: Of the Gaussian, in pixels; the coarsest upsampling step is 16 pixels.
    """
    unseen = sources.unseen & ~sources.is_anchor[:, :, None, None, None]
    weight = unseen.flatten(0, 1).to(frames)
    stacked = torch.cat([frames.flatten(0, 1) * weight, weight], dim=1)
    size = 2 * round(2.5 * sigma) + 1
    blurred = gaussian_blur2d(stacked, size, (sigma, sigma), border_type="constant")
    smooth = (blurred[:, :3] / blurred[:, 3:].clamp_min(1e-6)).unflatten(0, frames.shape[:2])
    return torch.where(unseen, smooth, frames)


def _pad(sources: Sources, bottom: int, right: int) -> Sources:
    """Repeat the edge pixels of everything, so that no border appears."""
    if bottom == 0 and right == 0:
        return sources
    pad, size = (0, right, 0, bottom), sources.frames.shape[-2:]

    def grow(x: Tensor) -> Tensor:
        if x.numel() == 0:
            return x.new_zeros(*x.shape[:-2], x.shape[-2] + bottom, x.shape[-1] + right)
        flat = x.flatten(0, -4).float()
        grown = F.pad(flat, pad, mode="replicate").unflatten(0, x.shape[:-3])
        return grown > 0.5 if x.dtype == torch.bool else grown.to(x.dtype)

    return Sources(
        frames=grow(sources.frames),
        mask=grow(sources.mask),
        layers=grow(sources.layers),
        layer_masks=grow(sources.layer_masks),
        is_anchor=sources.is_anchor,
        alternatives=grow(sources.alternatives),
        alternative_masks=grow(sources.alternative_masks),
        hints=_grow_cells(
            sources.hints, [s + p for s, p in zip(size, (bottom, right), strict=True)]
        ),
    )


def _grow_cells(hints: Tensor, size: Sequence[int]) -> Tensor:
    """Repeat the last cells until they cover an image of that size."""
    bottom, right = (
        -(-side // HINT_CELL_PX) - have for side, have in zip(size, hints.shape[-2:], strict=True)
    )
    grown = F.pad(hints.flatten(0, 2), (0, right, 0, bottom), mode="replicate")
    return grown.unflatten(0, hints.shape[:3])


def _has_bfloat16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported()
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def load_generator(
    path: Path,
    *,
    device: torch.device | str = "cpu",
    num_steps: int | None = None,
    num_frames: int = 16,
    fast: bool | None = None,
    record: bool = True,
) -> CompactGenerator:
    """Load a compact model for generation.

    Args:
        path: Folder of `save_compact`.
        device: Where to run.
        num_steps: Network evaluations; those that the model was made for by default.
        num_frames: Length of clips to plan for.
        fast: Run in bfloat16, else in float32; by default bfloat16 where the processor has it (on
            a CPU that is three times faster with AMX, and many times slower where it must be
            emulated).
        record: Record the network's evaluations on a GPU as CUDA graphs when a second clip of a
            shape comes, and replay them from then on, which costs memory for the activations. Clips
            of more than 1.5 million pixels are not recorded.

    Raises:
        WeightsError: The folder is incomplete, damaged or of another version.
        InputError: The model does not take that many steps.
    """
    if fast is None:
        fast = _has_bfloat16(torch.device(device))
    dtype = torch.bfloat16 if fast else torch.float32
    model, card = load_compact(path, dtype=dtype)
    assert isinstance(model.backbone, CompactBackbone)
    model.backbone.to(device).requires_grad_(False)
    sampler: FewStepKind = "ode" if card.sampler == "ode" else "sde"
    return CompactGenerator(
        model=model,
        num_steps=card.num_steps if num_steps is None else num_steps,
        num_frames=num_frames,
        sampler=sampler,
        dtype=dtype,
        is_smooth=card.role in ("regression", "student"),
        keeps_deep=card.role == "student",
        device=str(device),
        name=card.role,
        recorder=make_recorder(model.backbone) if record else None,
    )
