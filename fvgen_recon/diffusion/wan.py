"""Wan's flow-matching transformer behind the seams of this project, in one file.

It shows what another video model of diffusers needs: a backbone, a codec, a generator, and one
function each to read and to write a folder. The layout is Wan 2.2's for image-to-video (Wan Team
2025): noisy latents, four mask channels and the latents of a guiding clip enter side by side. Here
the guiding clip is the render of the trusted points, and the mask says how much of each latent
pixel is trusted, where the original says which frames are given.

The autoencoder is causal in time: 4 k + 1 frames become k + 1 latent frames, so `T` counts frames
of a clip and latent frames of a latent. Prompts are constants; their tokens lie in a file.
"""

import hashlib
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLWan, WanTransformer3DModel
from jaxtyping import Float, Shaped
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from fvgen_recon.diffusion.backbone import Condition, VideoModel
from fvgen_recon.diffusion.sampler import (
    FewStepKind,
    denoiser,
    sample_few_steps,
    seeded_noise,
)
from fvgen_recon.diffusion.schedule import FlowSchedule
from fvgen_recon.errors import InputError, WeightsError
from fvgen_recon.io.file import atomic_path, read_json, write_json
from fvgen_recon.types import Guidance

NUM_TIMES = 1001
"""Wan's network wants 1000 times the share of noise: `FlowSchedule` then counts from 0 to 1000."""

MASK_CHANNELS = 4
"""One for each frame that a latent frame stands for."""

_PROMPT = "prompt.safetensors"
_CARD = "student.json"
_SCHEDULER = "scheduler/scheduler_config.json"


class WanBackbone(nn.Module):
    """A `VideoBackbone` of Wan's transformer; the output is the velocity eps - x0.

    Mid features are the tokens after the middle block and after the block at three quarters,
    as maps.
    """

    def __init__(self, transformer: WanTransformer3DModel) -> None:
        super().__init__()
        if transformer.config["image_dim"] is not None:
            raise WeightsError(
                "This Wan model wants image tokens, which the 2.2 models do without: use one whose "
                "transformer/config.json has image_dim null."
            )
        self.transformer = transformer
        depth = len(transformer.blocks)
        self.feature_blocks = tuple(sorted({depth // 2, 3 * depth // 4}))

    def forward(
        self,
        x_t: Float[Tensor, "B C T h w"],
        t: Shaped[Tensor, "B"],
        condition: Condition,
        *,
        return_mid: bool = False,
    ) -> tuple[Float[Tensor, "B C T h w"], tuple[Tensor, ...]]:
        """Return the velocity and, if asked for, the features."""
        dtype = self.transformer.patch_embedding.weight.dtype
        sample = torch.cat([x_t.to(dtype), condition.concat.to(dtype)], dim=1)
        features: dict[int, Tensor] = {}
        with ExitStack() as stack:
            for index in self.feature_blocks if return_mid else ():
                hook = self._keep(features, index)
                stack.callback(self.transformer.blocks[index].register_forward_hook(hook).remove)
            (output,) = self.transformer(
                sample, t.float(), condition.context.to(dtype), return_dict=False
            )
        grid = [n // p for n, p in zip(x_t.shape[2:], self._patch, strict=True)]
        maps = (features[i].transpose(1, 2).unflatten(2, grid) for i in sorted(features))
        return output.to(x_t.dtype), tuple(maps)

    @property
    def _patch(self) -> tuple[int, ...]:
        return tuple(self.transformer.config["patch_size"])

    def _keep(self, features: dict[int, Tensor], index: int) -> Any:
        def hook(module: nn.Module, inputs: Any, output: Tensor) -> None:
            del module, inputs
            features[index] = output

        return hook


@dataclass(frozen=True, kw_only=True, slots=True)
class WanCodec:
    """A `Codec` of Wan's causal autoencoder and constant prompts."""

    vae: AutoencoderKLWan
    prompt: Float[Tensor, "L D"]
    """Tokens of the prompt, from Wan's text encoder."""
    null_prompt: Float[Tensor, "L D"]
    """Tokens of the empty prompt."""
    patch: int = 2
    """Side of the transformer's patches in latent pixels."""

    @property
    def latent_channels(self) -> int:
        """Channels of a latent."""
        return self.vae.config["z_dim"]

    @property
    def size_multiple(self) -> int:
        """Image heights and widths must be multiples of this number of pixels."""
        return self.patch * self.vae.config["scale_factor_spatial"]

    @torch.no_grad()
    def encode(
        self, frames: Float[Tensor, "B T 3 H W"], rng: torch.Generator | None = None
    ) -> Float[Tensor, "B C t h w"]:
        """Encode frames in [0, 1]; `rng` draws the posterior, none takes its mean.

        Raises:
            InputError: The length is not 4 k + 1 or the size does not suit.
        """
        self._check(frames)
        video = (2 * frames - 1).transpose(1, 2).to(self.vae.device, self.vae.dtype)
        posterior = self.vae.encode(video).latent_dist  # type: ignore[union-attr]
        z = posterior.mean.float()
        if rng is not None:
            noise = torch.randn(z.shape, generator=rng, device=rng.device).to(z.device)
            z = z + posterior.std.float() * noise
        mean, std = self._statistics(z.device)
        return (z - mean) / std

    @torch.no_grad()
    def decode(self, z: Float[Tensor, "B C t h w"]) -> Float[Tensor, "B T 3 H W"]:
        """Decode to frames in [0, 1]."""
        mean, std = self._statistics(self.vae.device)
        latents = z.to(self.vae.device) * std + mean
        video = self.vae.decode(latents.to(self.vae.dtype)).sample  # type: ignore[union-attr]
        return ((video.float() + 1) / 2).clamp(0, 1).transpose(1, 2)

    @torch.no_grad()
    def condition(
        self, guidance: Sequence[Guidance], rng: torch.Generator | None = None
    ) -> Condition:
        """Return mask and latents of the renders; what is not trusted is grey, as in Wan.

        The latents are the posterior's mean, as Wan conditions, so `rng` is not used.

        Raises:
            InputError: The clips differ in length or size, or do not suit.
        """
        shapes = {tuple(g.frames.shape) for g in guidance}
        if len(shapes) != 1:
            raise InputError(
                "Clips of one batch need guidance of one length and size (frames, 3, height, "
                f"width): {', '.join(map(str, sorted(shapes))) or 'none'} came."
            )
        mask = torch.stack([g.mask for g in guidance]).float()
        frames = torch.stack([g.frames for g in guidance])
        latents = self.encode(frames * mask + 0.5 * (1 - mask))
        concat = torch.cat([self._mask_channels(mask).to(latents.device), latents], dim=1)
        tokens = [
            tokens.float().to(latents.device).expand(len(guidance), -1, -1)
            for tokens in (self.prompt, self.null_prompt)
        ]
        return Condition(concat=concat, context=tokens[0], null_context=tokens[1])

    def _mask_channels(self, mask: Tensor) -> Tensor:
        """Trusted share of each latent pixel; the first frame stands for four of itself."""
        small = F.avg_pool2d(mask.flatten(0, 1), self.vae.config["scale_factor_spatial"])
        small = small.unflatten(0, mask.shape[:2])[:, :, 0]
        first = small[:, :1].expand(-1, MASK_CHANNELS, -1, -1)
        return (
            torch.cat([first, small[:, 1:]], dim=1)
            .unflatten(1, (-1, MASK_CHANNELS))
            .transpose(1, 2)
        )

    def _statistics(self, device: torch.device) -> tuple[Tensor, Tensor]:
        values = (self.vae.config["latents_mean"], self.vae.config["latents_std"])
        mean, std = (torch.tensor(v, device=device)[:, None, None, None] for v in values)
        return mean, std

    def _check(self, frames: Tensor) -> None:
        step, multiple = self.vae.config["scale_factor_temporal"], self.size_multiple
        if (frames.shape[1] - 1) % step:
            raise InputError(
                f"Wan makes clips of {step} k + 1 frames, {frames.shape[1]} came: plan the "
                f"trajectory with {frames.shape[1] // step * step + 1}."
            )
        if frames.shape[-2] % multiple or frames.shape[-1] % multiple:
            raise InputError(
                f"Frames of {frames.shape[-2]}x{frames.shape[-1]} (height x width) came: both must "
                f"be multiples of {multiple}."
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class WanGenerator:
    """A `VideoGenerator` of a few-step student."""

    model: VideoModel
    name: str
    num_frames: int
    num_steps: int
    sampler: FewStepKind
    is_raw: bool = False

    @property
    def size_multiple(self) -> int:
        """Image heights and widths must be multiples of this number of pixels."""
        return self.model.codec.size_multiple

    @property
    def weights_hash(self) -> str:
        """SHA-256 of the weights."""
        return self.model.weights_hash

    @torch.no_grad()
    def generate(self, guidance: Guidance, *, seed: int) -> Float[Tensor, "T 3 H W"]:
        """Return frames in [0, 1].

        Raises:
            InputError: The frame count or the image size does not suit.
        """
        if len(guidance) != self.num_frames:
            raise InputError(
                f"The {self.name} makes clips of {self.num_frames} frames, guidance of "
                f"{len(guidance)} came: plan the trajectory with {self.num_frames}."
            )
        model, noise = self.model, seeded_noise(torch.Generator().manual_seed(seed))
        condition = model.codec.condition([guidance])
        assert isinstance(model.schedule, FlowSchedule)
        z = sample_few_steps(
            denoiser(model.backbone, condition),  # type: ignore[arg-type]
            noise(0, condition.concat[:, MASK_CHANNELS:]),
            model.schedule,
            times=model.schedule.timesteps(self.num_steps),
            kind=self.sampler,
            noise=noise,
        )
        return model.codec.decode(z)[0].to(guidance.frames.device)


def load_wan(folder: Path, device: torch.device | str = "cpu") -> VideoModel:
    """Read a Wan image-to-video model in diffusers' layout.

    Args:
        folder: Holds `transformer/`, `vae/` and `prompt.safetensors` with the tokens `prompt` and
            `null_prompt` [L D] of Wan's text encoder; `scheduler/` says how times are spaced.
        device: Where to compute.

    Raises:
        WeightsError: A part is missing, damaged, or of another kind of Wan model.
    """
    try:
        transformer = WanTransformer3DModel.from_pretrained(folder / "transformer")
        vae = AutoencoderKLWan.from_pretrained(folder / "vae")
        tokens = load_file(folder / _PROMPT)
    except (OSError, SafetensorError) as error:
        raise WeightsError(f"{folder} is no complete Wan model: {error}.") from error
    wanted = 2 * vae.config["z_dim"] + MASK_CHANNELS
    if transformer.config["in_channels"] != wanted:
        raise WeightsError(
            f"{folder} takes {transformer.config['in_channels']} channels; an image-to-video model "
            f"with {wanted} (noisy latents, mask, guiding latents) was expected."
        )
    missing = {"prompt", "null_prompt"} - tokens.keys()
    if missing:
        raise WeightsError(f"{folder / _PROMPT} lacks {min(missing)}: save both prompts' tokens.")
    for module in (transformer, vae):
        nn.Module.to(module, device)
    codec = WanCodec(
        vae=vae.eval().requires_grad_(requires_grad=False),
        prompt=tokens["prompt"],
        null_prompt=tokens["null_prompt"],
        patch=transformer.config["patch_size"][-1],
    )
    return VideoModel(
        codec=codec,
        backbone=WanBackbone(transformer.eval()),
        schedule=FlowSchedule(
            prediction="velocity", num_timesteps=NUM_TIMES, shift=_read_shift(folder)
        ),
        name="wan",
        weights_hash=_weights_hash(folder),
    )


def save_wan(
    folder: Path,
    teacher: Path,
    student: WanBackbone,
    *,
    num_steps: int,
    sampler: FewStepKind,
) -> None:
    """Write a student beside the teacher's autoencoder and prompts.

    Args:
        folder: Where to; `load_wan_student` reads it.
        teacher: The teacher's folder.
        student: The trained backbone.
        num_steps: Steps that it was trained for.
        sampler: How it goes from step to step.
    """
    student.transformer.save_pretrained(folder / "transformer")
    AutoencoderKLWan.from_pretrained(teacher / "vae").save_pretrained(folder / "vae")
    with atomic_path(folder / _PROMPT) as temporary:
        save_file(load_file(teacher / _PROMPT), temporary)
    if (teacher / _SCHEDULER).is_file():
        write_json(folder / _SCHEDULER, read_json(teacher / _SCHEDULER))
    write_json(folder / _CARD, {"num_steps": num_steps, "sampler": sampler})


def load_wan_student(
    folder: Path, *, num_frames: int, device: torch.device | str = "cpu"
) -> WanGenerator:
    """Load what `save_wan` wrote.

    Raises:
        InputError: The folder lacks the facts about the student.
        WeightsError: A part is missing or damaged.
    """
    card = read_json(folder / _CARD)
    return WanGenerator(
        model=load_wan(folder, device),
        name="wan-student",
        num_frames=num_frames,
        num_steps=card["num_steps"],
        sampler=card["sampler"],
    )


def _read_shift(folder: Path) -> float:
    path = folder / _SCHEDULER
    return float(read_json(path).get("flow_shift", 1.0)) if path.is_file() else 1.0


def _weights_hash(folder: Path) -> str:
    checksum = hashlib.sha256()
    for part in ("transformer", "vae"):
        for path in sorted((folder / part).glob("*.safetensors")):
            with path.open("rb") as file:
                while chunk := file.read(1 << 24):
                    checksum.update(chunk)
    return checksum.hexdigest()
