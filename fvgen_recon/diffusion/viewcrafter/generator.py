"""Teacher and student behind the seams that the rest of the project knows."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from fvgen_recon.diffusion.backbone import VideoModel
from fvgen_recon.diffusion.viewcrafter.backbone import ViewCrafterBackbone
from fvgen_recon.diffusion.viewcrafter.checkpoint import FILES, RECORD, read_record
from fvgen_recon.diffusion.viewcrafter.pipeline import ViewCrafterPipeline
from fvgen_recon.diffusion.viewcrafter.student import FVGenPipeline
from fvgen_recon.errors import InputError
from fvgen_recon.io.file import file_sha256
from fvgen_recon.types import Guidance

_Pipeline = TypeVar("_Pipeline", ViewCrafterPipeline, FVGenPipeline)


@dataclass(frozen=True, kw_only=True, slots=True)
class PipelineGenerator:
    """A `VideoGenerator` made of a pipeline."""

    pipeline: ViewCrafterPipeline | FVGenPipeline
    name: str
    num_frames: int
    """Length of the clips that it makes."""
    num_steps: int
    """Steps of the sampler; the teacher evaluates its network twice in each."""
    size_multiple: int
    weights_hash: str
    is_raw: bool = True
    """Its renders are the teacher's: a model sees at work what it has learnt from."""

    def generate(self, guidance: Guidance, *, seed: int) -> Float[Tensor, "T 3 H W"]:
        """Return frames in [0, 1] on the guidance's device.

        Raises:
            InputError: The frame count or the image size does not suit.
        """
        if len(guidance) != self.num_frames:
            raise InputError(
                f"The {self.name} makes clips of {self.num_frames} frames, guidance of "
                f"{len(guidance)} came: plan the trajectory with {self.num_frames}."
            )
        rng = torch.Generator().manual_seed(seed)
        output = self.pipeline(guidance, generator=rng, num_inference_steps=self.num_steps)
        return output.frames[0].to(guidance.frames.device)


def load_teacher(
    folder: Path,
    *,
    num_frames: int | None = 25,
    num_steps: int = 50,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> PipelineGenerator:
    """Load a converted ViewCrafter checkpoint.

    Args:
        folder: What `scripts/convert_viewcrafter.py` wrote.
        num_frames: Length of the clips; 25 for most released models, none for the model's own.
        num_steps: Steps of the sampler.
        device: Where to compute.
        dtype: Precision of the networks.

    Raises:
        WeightsError: The folder is incomplete, of another version or a student.
        InputError: The model does not make clips of that length.
    """
    pipeline = _load(ViewCrafterPipeline, folder, device, dtype)
    return _generator(pipeline, folder, "teacher", num_frames, num_steps)


def load_student(
    folder: Path,
    *,
    num_frames: int | None = 16,
    num_steps: int | None = None,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> PipelineGenerator:
    """Load a distilled student that `FVGenPipeline.save_pretrained` wrote.

    Args:
        folder: The student.
        num_frames: Length of the clips; none for the model's own.
        num_steps: Steps: 1, 2, 4 or 8; none for those that it was trained for.
        device: Where to compute.
        dtype: Precision of the networks.

    Raises:
        WeightsError: The folder is incomplete, of another version or a teacher.
        InputError: The model does not make clips of that length.
    """
    pipeline = _load(FVGenPipeline, folder, device, dtype)
    num_steps = int(pipeline.config["num_steps"] if num_steps is None else num_steps)
    return _generator(pipeline, folder, "student", num_frames, num_steps)


def load_video_model(
    folder: Path, *, device: str = "cpu", dtype: torch.dtype = torch.float32
) -> VideoModel:
    """Load a converted checkpoint as codec, backbone and schedule, for the distillation.

    Raises:
        WeightsError: The folder is incomplete, of another version or a student.
    """
    pipeline = _load(ViewCrafterPipeline, folder, device, dtype)
    return VideoModel(
        codec=pipeline.codec,
        backbone=ViewCrafterBackbone(pipeline.unet),
        schedule=pipeline.schedule,
        name="viewcrafter",
        weights_hash=weights_hash(folder),
    )


def weights_hash(folder: Path) -> str:
    """Return one SHA-256 for all weights of a folder; recorded checksums are not computed anew."""
    if (folder / RECORD).is_file():
        recorded = read_record(folder)["sha256"]
        checksums = [recorded[name] for name in sorted(FILES.values())]
    else:
        files = sorted(path for part in FILES for path in (folder / part).glob("*.safetensors"))
        checksums = [file_sha256(path) for path in files]
    return hashlib.sha256("".join(checksums).encode()).hexdigest()


def _load(kind: type[_Pipeline], folder: Path, device: str, dtype: torch.dtype) -> _Pipeline:
    precision = {} if dtype == torch.float32 else {"torch_dtype": dtype}
    return kind.from_pretrained(folder, **precision).to(device)


def _generator(
    pipeline: ViewCrafterPipeline | FVGenPipeline,
    folder: Path,
    name: str,
    num_frames: int | None,
    num_steps: int,
) -> PipelineGenerator:
    accepted = tuple(pipeline.config["num_frames"])
    num_frames = int(accepted[0] if num_frames is None else num_frames)
    if num_frames not in accepted:
        raise InputError(
            f"{folder} makes clips of {' or '.join(map(str, accepted))} frames, num_frames "
            f"{num_frames} came: set num_frames to {accepted[0]} or leave it out."
        )
    pipeline.set_progress_bar_config(disable=True)
    return PipelineGenerator(
        pipeline=pipeline,
        name=name,
        num_frames=num_frames,
        num_steps=num_steps,
        size_multiple=pipeline.size_multiple,
        weights_hash=weights_hash(folder),
    )
