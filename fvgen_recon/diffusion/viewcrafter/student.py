"""The student's pipeline: the teacher's networks in a few steps."""

import math
from collections.abc import Sequence

import torch
from diffusers import AutoencoderKL
from transformers import CLIPTextModel, CLIPVisionModel

from fvgen_recon.diffusion.sampler import FewStepKind, denoiser, sample_few_steps, seeded_noise
from fvgen_recon.diffusion.viewcrafter.backbone import ViewCrafterBackbone
from fvgen_recon.diffusion.viewcrafter.checkpoint import FORMAT_VERSION
from fvgen_recon.diffusion.viewcrafter.pipeline import (
    ClipOutput,
    ClipPipeline,
    PipelineCallback,
)
from fvgen_recon.diffusion.viewcrafter.resampler import ImageResampler
from fvgen_recon.diffusion.viewcrafter.unet import ViewCrafterUNet
from fvgen_recon.errors import InputError
from fvgen_recon.types import Guidance

FEW_STEPS = (1, 2, 4, 8)
"""Step counts of the few-step student."""


class FVGenPipeline(ClipPipeline):
    """The student: a few steps without guidance, as many and as it was trained with by default."""

    def __init__(  # noqa: PLR0913 - diffusers reads settings by their names here.
        self,
        *,
        unet: ViewCrafterUNet,
        vae: AutoencoderKL,
        text_encoder: CLIPTextModel,
        image_encoder: CLIPVisionModel,
        image_projector: ImageResampler,
        base_scale: float = math.nan,
        num_frames: list[int] | tuple[int, ...] = (16, 25),
        num_steps: int = 4,
        sampler: FewStepKind = "sde",
        format_version: int = FORMAT_VERSION,
    ) -> None:
        """Bind the networks.

        Args:
            unet: The denoiser.
            vae: The autoencoder.
            text_encoder: The text tower.
            image_encoder: The image tower.
            image_projector: The resampler.
            base_scale: As in `ClipPipeline`.
            num_frames: As in `ClipPipeline`.
            num_steps: Steps that the student was trained for.
            sampler: How it was sampled in training.
            format_version: As in `ClipPipeline`.
        """
        super().__init__(
            unet=unet,
            vae=vae,
            text_encoder=text_encoder,
            image_encoder=image_encoder,
            image_projector=image_projector,
            base_scale=base_scale,
            num_frames=num_frames,
            format_version=format_version,
        )
        self.register_to_config(num_steps=num_steps, sampler=sampler)

    @torch.no_grad()
    def __call__(
        self,
        guidance: Guidance | Sequence[Guidance],
        *,
        generator: torch.Generator,
        num_inference_steps: int | None = None,
        sampler: FewStepKind | None = None,
        callback_on_step_end: PipelineCallback | None = None,
    ) -> ClipOutput:
        """Generate clips.

        Args:
            guidance: Renders of one or several clips of one size.
            generator: Draws the posterior samples, the initial noise and the noise of each step,
                in this order, on its own device.
            num_inference_steps: 1, 2, 4 or 8; none for as many as the student was trained for.
            sampler: "sde" re-noises at each step, "ode" is DDIM; none for that of training.
            callback_on_step_end: Told about each step.

        Returns:
            The frames.

        Raises:
            InputError: The guidance does not suit, or the step count is another.
        """
        if num_inference_steps is None:
            num_inference_steps = int(self.config["num_steps"])
        if num_inference_steps not in FEW_STEPS:
            raise InputError(
                f"A few-step student runs with {', '.join(map(str, FEW_STEPS))} steps, "
                f"{num_inference_steps} came: use ViewCrafterPipeline for more."
            )
        times = self.schedule.timesteps(num_inference_steps)
        condition, x_T = self._prepare(guidance, generator)
        bar, step = self._progress(num_inference_steps, callback_on_step_end)
        with bar:
            z = sample_few_steps(
                denoiser(ViewCrafterBackbone(self.unet), condition),
                x_T,
                self.schedule,
                times=times,
                kind=sampler or self.config["sampler"],
                noise=seeded_noise(generator),
                callback=step,
            )
        return self._finish(z)
