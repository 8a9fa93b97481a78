"""What the video model's benchmark measures: a pipeline with random weights, and its parts."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from fvgen_recon.diffusion.backbone import Condition
from fvgen_recon.diffusion.sampler import (
    GuidanceScale,
    SampleStep,
    denoiser,
    sample_ddim,
    sample_few_steps,
    seeded_noise,
)
from fvgen_recon.diffusion.viewcrafter.architecture import (
    Architecture,
    ResamplerShape,
    TextShape,
    UNetShape,
    VaeShape,
    VisionShape,
    build_parts,
)
from fvgen_recon.diffusion.viewcrafter.backbone import ViewCrafterBackbone
from fvgen_recon.diffusion.viewcrafter.student import FVGenPipeline
from fvgen_recon.types import Anchor, Guidance

STUDENT_STEPS = 4

_SMALL = Architecture(
    unet=UNetShape(
        block_out_channels=(32, 32),
        layers_per_block=1,
        attention_levels=(True, False),
        attention_head_dim=16,
    ),
    resampler=ResamplerShape(dim=32, depth=1, dim_head=16, heads=2, num_tokens=16),
    vae=VaeShape(block_out_channels=(32, 32, 32, 32), layers_per_block=1),
    text=TextShape(width=32, layers=1, heads=2),
    vision=VisionShape(width=32, layers=1, heads=2, patch_size=56),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Shape:
    """Size of a clip."""

    frames: int
    height: int
    width: int


class Rig:
    """A student pipeline with random weights and one clip of noise to run it on."""

    def __init__(self, shape: Shape, device: torch.device, *, small: bool) -> None:
        self.device = device
        self.pipeline = make_pipeline(device, small=small)
        self.use_shape(shape)
        self._calibrate()

    def use_shape(self, shape: Shape) -> None:
        """Make a clip of another size."""
        device, rng = self.device, torch.Generator().manual_seed(0)
        self.guidance = make_guidance(shape, device)
        size = (1, 4, shape.frames, shape.height // 8, shape.width // 8)
        self.latents = torch.randn(size, generator=rng).to(device)
        unet = self.pipeline.unet
        num_tokens = unet.num_text_tokens + self.pipeline.image_projector.latents.shape[1]
        width = unet.config["cross_attention_dim"]
        context = torch.randn(2, num_tokens, width, generator=rng).to(device)
        self.condition = Condition(
            concat=self.latents.flip(2), context=context[:1], null_context=context[1:]
        )

    def _rng(self) -> torch.Generator:
        return torch.Generator().manual_seed(1)

    @torch.no_grad()
    def _calibrate(self) -> None:
        """Scale the last layers so that v and frames have the spread of real ones."""
        self.pipeline.unet.conv_out.weight.div_(self.unet().std())
        conv = self.pipeline.vae.decoder.conv_out
        conv.weight.div_(
            2 * self.pipeline.vae.decode(self.latents[0, :, :1].transpose(0, 1)).sample.std()
        )

    @torch.no_grad()
    def encode(self) -> Tensor:
        """Renders to latents."""
        return self.pipeline.codec.encode(self.guidance.frames[None], self._rng())

    @torch.no_grad()
    def unet(self, x_t: Tensor | None = None, time: int = 499) -> Tensor:
        """One evaluation of the UNet."""
        t = torch.full((1,), time, device=self.device)
        backbone = ViewCrafterBackbone(self.pipeline.unet)
        return backbone(self.latents if x_t is None else x_t, t, self.condition)[0]

    @torch.no_grad()
    def decode(self, z: Tensor | None = None) -> Tensor:
        """Latents to frames."""
        return self.pipeline.codec.decode(self.latents if z is None else z)

    @torch.no_grad()
    def student(self, callback: Callable[[SampleStep], None] | None = None) -> Tensor:
        """Renders in, frames out: encode, the steps of the student, decode."""
        z = sample_few_steps(
            denoiser(ViewCrafterBackbone(self.pipeline.unet), self._encoded()),
            self.latents,
            self.pipeline.schedule,
            times=self.pipeline.schedule.timesteps(STUDENT_STEPS),
            noise=seeded_noise(self._rng()),
            callback=callback,
        )
        return self.decode(z)

    @torch.no_grad()
    def teacher(self, steps: int, *, batched: bool) -> Tensor:
        """Renders in, frames out, with guidance; both branches as one batch or in turn."""
        z = sample_ddim(
            denoiser(
                ViewCrafterBackbone(self.pipeline.unet),
                self._encoded(),
                GuidanceScale(),
                batch_guidance=batched,
            ),
            self.latents,
            self.pipeline.schedule,
            times=self.pipeline.schedule.timesteps(steps),
            noise=seeded_noise(self._rng()),
        )
        return self.decode(z)

    def clip(self) -> Tensor:
        """The whole call of the pipeline, image tower included."""
        return self.pipeline(self.guidance, generator=self._rng()).frames

    def _encoded(self) -> Condition:
        return replace(self.condition, concat=self.encode())


def make_pipeline(device: torch.device, *, small: bool) -> FVGenPipeline:
    """Build a student with random weights, float32."""
    torch.manual_seed(0)
    parts = build_parts(_SMALL if small else Architecture(), "shared", str(device))
    # Zero-initialised layers would let later ones see nothing but zeros.
    for parameter in parts.unet.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.02)
    pipeline = FVGenPipeline(
        unet=parts.unet,
        vae=parts.vae,
        text_encoder=parts.text_encoder,
        image_encoder=parts.image_encoder,
        image_projector=parts.image_projector,
        base_scale=0.3,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def make_guidance(shape: Shape, device: torch.device) -> Guidance:
    """Random renders with photos at both ends."""
    rng = torch.Generator().manual_seed(0)
    size = (shape.frames, 3, shape.height, shape.width)
    coarse = torch.rand(shape.frames, 3, 5, 8, generator=rng)
    frames = nn.functional.interpolate(coarse, size[2:], mode="bilinear")
    mask = torch.ones(shape.frames, 1, shape.height, shape.width, dtype=torch.bool)
    return Guidance(
        frames=frames,
        mask=mask,
        depth=mask.float(),
        layers=torch.zeros(0, *size),
        layer_masks=torch.zeros(0, shape.frames, 1, *size[2:], dtype=torch.bool),
        anchors=(Anchor(frame=0, view=0), Anchor(frame=shape.frames - 1, view=1)),
        reference=frames[0],
    ).to(device)


@contextmanager
def plain_convolutions() -> Iterator[None]:
    """No search for the fastest convolutions, which takes minutes in float32, and no TF32."""
    cudnn = torch.backends.cudnn
    before = cudnn.benchmark, cudnn.allow_tf32
    cudnn.benchmark = cudnn.allow_tf32 = False
    try:
        yield
    finally:
        cudnn.benchmark, cudnn.allow_tf32 = before


def timed(work: Callable[[], Any], repeats: int) -> dict[str, float]:
    """Return the first call's seconds, and median, least and most of those after it."""
    times = []
    for _ in range(repeats + 1):
        wait()
        start = time.perf_counter()
        work()
        wait()
        times.append(time.perf_counter() - start)
    warm = times[1:]
    return {
        "first_s": times[0],
        "median_s": float(np.median(warm)),
        "min_s": min(warm),
        "max_s": max(warm),
        "repeats": repeats,
    }


def wait() -> None:
    """Wait for the GPU."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def peak_gib(work: Callable[[], Any]) -> dict[str, float]:
    """Return what the weights take and the most that is held during a call, in GiB."""
    if not torch.cuda.is_available():
        work()
        return {}
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    work()
    wait()
    return {
        "before_gib": before / 2**30,
        "allocated_gib": torch.cuda.max_memory_allocated() / 2**30,
        "reserved_gib": torch.cuda.max_memory_reserved() / 2**30,
    }


def operations(work: Callable[[], Any]) -> float:
    """Return the floating-point operations of a call, additions and multiplications."""
    with FlopCounterMode(display=False) as counter:
        work()
    return float(counter.get_total_flops())


def matrix_rate(device: torch.device, size: int) -> float:
    """Return the operations per second of a large bfloat16 matrix product."""
    a, b = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    return 2 * size**3 / timed(lambda: a @ b, 20)["median_s"]


def psnr(a: Tensor, b: Tensor) -> float:
    """Return the peak signal-to-noise ratio of frames in [0, 1], in dB."""
    return float(-10 * (a.double() - b.double()).square().mean().clamp_min(1e-20).log10())


def relative_error(a: Tensor, b: Tensor) -> float:
    """Return the root mean square of a - b over that of b."""
    return float((a.double() - b.double()).norm() / b.double().norm())
