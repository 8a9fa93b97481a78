"""Pipelines in diffusers' manner: renders in, frames out; the teacher's own."""

import importlib.util
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DiffusionPipeline
from jaxtyping import Float
from torch import Tensor
from transformers import CLIPTextModel, CLIPVisionModel

from fvgen_recon.diffusion.backbone import Condition
from fvgen_recon.diffusion.sampler import (
    GuidanceScale,
    SampleStep,
    denoiser,
    sample_ddim,
    seeded_noise,
)
from fvgen_recon.diffusion.schedule import ViewCrafterSchedule
from fvgen_recon.diffusion.viewcrafter.backbone import ViewCrafterBackbone
from fvgen_recon.diffusion.viewcrafter.checkpoint import FILES, FORMAT_VERSION, check_version
from fvgen_recon.diffusion.viewcrafter.codec import ViewCrafterCodec
from fvgen_recon.diffusion.viewcrafter.kernel import load_kernels
from fvgen_recon.diffusion.viewcrafter.layer import SpatialTransformer
from fvgen_recon.diffusion.viewcrafter.norm import use_channel_norms
from fvgen_recon.diffusion.viewcrafter.replay import replay_forwards
from fvgen_recon.diffusion.viewcrafter.resampler import ImageResampler
from fvgen_recon.diffusion.viewcrafter.unet import ViewCrafterUNet
from fvgen_recon.diffusion.viewcrafter.upsample import merge_upsampling_layers
from fvgen_recon.errors import InputError, WeightsError
from fvgen_recon.io.file import read_json
from fvgen_recon.types import Guidance

PipelineCallback = Callable[[DiffusionPipeline, SampleStep], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class ClipOutput:
    """Generated clips."""

    frames: Float[Tensor, "B T 3 H W"]
    """Frames in [0, 1], float32, on the pipeline's device."""


class ClipPipeline(DiffusionPipeline):
    """What teacher and student share: networks, checks, savers of memory and time."""

    model_cpu_offload_seq = "text_encoder->image_encoder->image_projector->unet->vae"

    def __init__(
        self,
        *,
        unet: ViewCrafterUNet,
        vae: AutoencoderKL,
        text_encoder: CLIPTextModel,
        image_encoder: CLIPVisionModel,
        image_projector: ImageResampler,
        base_scale: float = math.nan,
        num_frames: list[int] | tuple[int, ...] = (16, 25),
        format_version: int = FORMAT_VERSION,
    ) -> None:
        """Bind the networks.

        Args:
            unet: The denoiser.
            vae: The autoencoder.
            text_encoder: The text tower.
            image_encoder: The image tower.
            image_projector: The resampler.
            base_scale: Dynamic rescale that belongs to the weights; there is no default.
            num_frames: Lengths of clips that are accepted.
            format_version: Version of the folder that this came from.
        """
        super().__init__()
        self.register_modules(
            unet=unet,
            vae=vae,
            text_encoder=text_encoder,
            image_encoder=image_encoder,
            image_projector=image_projector,
        )
        self.register_to_config(
            base_scale=base_scale, num_frames=tuple(num_frames), format_version=format_version
        )
        self.schedule = ViewCrafterSchedule(base_scale=base_scale)
        self._frames_at_once: int | None = None
        self._batch_guidance = True
        self._codec: ViewCrafterCodec | None = None

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, **kwargs: Any) -> Any:
        """Load a folder written by the converter or by `save_pretrained`.

        Args:
            pretrained_model_name_or_path: The folder.
            **kwargs: As in diffusers, `torch_dtype` for example.

        Raises:
            WeightsError: The folder is of another version or kind, or incomplete.
        """
        _check_folder(Path(pretrained_model_name_or_path), cls.__name__)
        return super().from_pretrained(pretrained_model_name_or_path, **kwargs)

    @property
    def codec(self) -> ViewCrafterCodec:
        """The codec of this pipeline, on the device where it computes."""
        device = self._execution_device
        if self._codec is None or self._codec.device != device:
            self._codec = ViewCrafterCodec(
                vae=self.vae,
                text_encoder=self.text_encoder,
                image_encoder=self.image_encoder,
                image_projector=self.image_projector,
                size_multiple=self.size_multiple,
                device=device,
            )
        self._codec.frames_at_once = self._frames_at_once
        return self._codec

    @property
    def size_multiple(self) -> int:
        """Image heights and widths must be multiples of this number of pixels."""
        return self.unet.size_multiple * 2 ** (len(self.vae.config["block_out_channels"]) - 1)

    def enable_vae_slicing(self) -> None:
        """Encode and decode one frame at a time; values do not change."""
        self._frames_at_once = 1

    def disable_vae_slicing(self) -> None:
        """Encode and decode as many frames at a time as make up a small clip."""
        self._frames_at_once = None

    def enable_guidance_in_turn(self) -> None:
        """Evaluate the two branches of guidance one after the other; halves activations."""
        self._batch_guidance = False

    def disable_guidance_in_turn(self) -> None:
        """Evaluate the two branches of guidance as one batch."""
        self._batch_guidance = True

    def enable_feed_forward_chunking(self) -> None:
        """Run the widest layers one frame at a time; values do not change.

        Attention needs no such switch: it never holds a whole map of weights.
        """
        self._chunk_feed_forward(1)

    def disable_feed_forward_chunking(self) -> None:
        """Run the widest layers on all frames at once."""
        self._chunk_feed_forward(None)

    def enable_compilation(
        self,
        mode: str = "default",
        *,
        merge_upsampling: bool = True,
        kernels: Path | None = None,
    ) -> None:
        """Compile the UNet and the autoencoder, for inference only, with faster equal layers.

        The first clip of each size takes minutes. `save_kernels` after it and `kernels` in a later
        process shorten that to seconds. cuDNN is told to search for the fastest convolutions.

        Args:
            mode: As in `torch.compile`.
            merge_upsampling: Whether doubling and the convolution after it become one operation;
                equal up to rounding. Later changes of those weights are not seen.
            kernels: What `save_kernels` wrote, loaded where it exists.
        """
        if kernels is not None and kernels.is_file():
            load_kernels(kernels)
        torch.backends.cudnn.benchmark = True
        self.unet.to_channels_last()
        for module in (self.unet, self.vae.encoder, self.vae.decoder):
            use_channel_norms(module)
            if merge_upsampling:
                merge_upsampling_layers(module)
        for module in (self.vae.encoder, self.vae.decoder):
            module.to(memory_format=torch.channels_last)
            module.compile(mode=mode, dynamic=False)
        self.unet.compile(mode=mode, dynamic=False, fullgraph=True)

    def enable_kernels(self) -> None:
        """Run UNet and autoencoder in this project's GPU kernels, for inference only.

        Ready in seconds and for every size, unlike `enable_compilation`, which this replaces.
        Values change by rounding only. Kernels are tried first, and one that does not work on this
        GPU is left out with a warning. Evaluations are recorded once for each size of clip as CUDA
        graphs, which keep the memory of their activations. cuDNN is told to search for the fastest
        convolutions.

        Call it last: later changes of the networks' settings, and of the weights of upsampling
        layers, are not seen. Offloading is no use with it, because recordings end where weights
        move.

        Raises:
            InputError: The pipeline is not on a GPU, or Triton is missing.
        """
        if self.device.type != "cuda" or importlib.util.find_spec("triton") is None:
            raise InputError(
                "Kernels need Triton and a pipeline on a GPU: call to('cuda') first, or leave out "
                "enable_kernels."
            )
        from fvgen_recon.diffusion.viewcrafter.fused import use_fused_layers
        from fvgen_recon.diffusion.viewcrafter.kernels.check import working_kernels

        kernels = working_kernels(self.device, self.unet.dtype)
        torch.backends.cudnn.benchmark = True
        self.unet.to_channels_last()
        for module in (self.vae.encoder, self.vae.decoder):
            module.to(memory_format=torch.channels_last)
        for module in (self.unet, self.vae):
            merge_upsampling_layers(module)
            use_fused_layers(module, kernels)
        replay_forwards([self.unet, self.vae.encoder, self.vae.decoder])

    def _chunk_feed_forward(self, size: int | None) -> None:
        for module in self.unet.modules():
            if isinstance(module, SpatialTransformer):
                for block in module.transformer_blocks:
                    block.set_chunk_feed_forward(size, 0)  # type: ignore[operator]

    def _prepare(
        self, guidance: Guidance | Sequence[Guidance], generator: torch.Generator
    ) -> tuple[Condition, Tensor]:
        """Check the input; return the condition and the initial noise."""
        clips = [guidance] if isinstance(guidance, Guidance) else list(guidance)
        if not clips:
            raise InputError("A pipeline needs the guidance of at least one clip: none came.")
        accepted = tuple(self.config["num_frames"])
        wrong = [len(clip) for clip in clips if len(clip) not in accepted]
        if wrong:
            raise InputError(
                f"Guidance of {' or '.join(map(str, accepted))} frames was expected, {wrong[0]} "
                "frames came: plan the trajectory with that many."
            )
        self.codec.check_size(*clips[0].frames.shape[-2:])
        condition = self.codec.condition(clips, generator)
        return condition, seeded_noise(generator)(0, condition.concat)

    def _finish(self, z: Tensor) -> ClipOutput:
        frames = self.codec.decode(z)
        self.maybe_free_model_hooks()
        return ClipOutput(frames=frames)

    def _progress(
        self, num_steps: int, callback: PipelineCallback | None
    ) -> tuple[Any, Callable[[SampleStep], None]]:
        bar = self.progress_bar(total=num_steps)  # type: ignore[attr-defined]

        def step(done: SampleStep) -> None:
            bar.update()
            if callback is not None:
                callback(self, done)

        return bar, step


class ViewCrafterPipeline(ClipPipeline):
    """The teacher: DDIM with classifier-free guidance, 50 steps by default."""

    @torch.no_grad()
    def __call__(
        self,
        guidance: Guidance | Sequence[Guidance],
        *,
        generator: torch.Generator,
        num_inference_steps: int = 50,
        guidance_scale: float = 7.5,
        guidance_rescale: float = 0.7,
        eta: float = 1.0,
        callback_on_step_end: PipelineCallback | None = None,
    ) -> ClipOutput:
        """Generate clips.

        Args:
            guidance: Renders of one or several clips of one size.
            generator: Draws the posterior samples, the initial noise and the noise of each step,
                in this order, on its own device.
            num_inference_steps: Steps; each costs two evaluations of the network.
            guidance_scale: Weight of the conditional branch; 1 switches guidance off.
            guidance_rescale: How far the deviation is pulled back, 0 to 1.
            eta: 1 adds noise at each step, 0 is deterministic.
            callback_on_step_end: Told about each step.

        Returns:
            The frames.

        Raises:
            InputError: The guidance does not suit, or a number is out of range.
        """
        scale = GuidanceScale(scale=guidance_scale, rescale=guidance_rescale)
        times = self.schedule.timesteps(num_inference_steps)
        condition, x_T = self._prepare(guidance, generator)
        bar, step = self._progress(num_inference_steps, callback_on_step_end)
        with bar:
            z = sample_ddim(
                denoiser(
                    ViewCrafterBackbone(self.unet),
                    condition,
                    scale,
                    batch_guidance=self._batch_guidance,
                ),
                x_T,
                self.schedule,
                times=times,
                eta=eta,
                noise=seeded_noise(generator),
                callback=step,
            )
        return self._finish(z)


def _check_folder(folder: Path, kind: str) -> None:
    """Refuse what is not a model of this release before anything is loaded."""
    if not (folder / "model_index.json").is_file():
        raise WeightsError(
            f"{folder} holds no model_index.json: convert an original checkpoint with "
            "scripts/convert_viewcrafter.py, or name the folder of a saved pipeline."
        )
    index = read_json(folder / "model_index.json")
    check_version(index.get("format_version"), folder)
    if index.get("_class_name") != kind:
        raise WeightsError(
            f"{folder} holds a {index.get('_class_name')} and a {kind} was asked for: load it as "
            "what it is, or distil a student from the teacher first."
        )
    missing = [name for name in FILES if not (folder / name / "config.json").is_file()]
    if missing:
        raise WeightsError(f"{folder} lacks {missing[0]}/config.json: use a complete model.")
    config = read_json(folder / "unet" / "config.json")
    if config.get("image_context") not in ("shared", "per_frame"):
        raise WeightsError(
            f"{folder / 'unet' / 'config.json'} does not record image_context ('shared' or "
            "'per_frame'), so it is of another version: convert the original checkpoint again."
        )
