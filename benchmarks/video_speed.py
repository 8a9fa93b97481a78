"""Seconds and memory of the full-size video model with random weights: teacher beside student.

Usage:
    python benchmarks/video_speed.py --variants eager,compiled --out benchmarks/results/video.json
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from diffusers import AutoencoderKL
from torch import Tensor, nn

from fvgen_recon.diffusion.backbone import Condition
from fvgen_recon.diffusion.sampler import (
    GuidanceScale,
    denoiser,
    sample_ddim,
    sample_few_steps,
    seeded_noise,
)
from fvgen_recon.diffusion.schedule import ViewCrafterSchedule
from fvgen_recon.diffusion.viewcrafter.architecture import vae_config
from fvgen_recon.diffusion.viewcrafter.backbone import ViewCrafterBackbone
from fvgen_recon.diffusion.viewcrafter.unet import ViewCrafterUNet
from fvgen_recon.diffusion.viewcrafter.vae import decode_latents, encode_images
from fvgen_recon.io.file import write_json


@dataclass(frozen=True)
class Options:
    """What to measure."""

    out: Path
    """JSON file with the results."""
    variants: str = "eager,compiled"
    """Any of eager, compiled, autotuned; separated by commas."""
    frames: int = 16
    """Frames of a clip."""
    height: int = 320
    """Image height in pixels."""
    width: int = 512
    """Image width in pixels."""
    repeats: int = 10
    """Timed repetitions of each part."""
    teacher_steps: int = 50
    """Steps of the teacher; 0 leaves it out."""
    small: bool = False
    """A narrow network, to try the script without a GPU."""


@dataclass(frozen=True)
class Model:
    """Networks of one variant."""

    backbone: nn.Module
    vae: AutoencoderKL
    chunk: int


def build(options: Options, device: torch.device, dtype: torch.dtype) -> Model:
    """Build the networks with random weights."""
    widths = (32, 64, 64, 64) if options.small else (320, 640, 1280, 1280)
    vae_widths = (32, 32, 32, 32) if options.small else (128, 256, 512, 512)
    torch.manual_seed(0)
    with torch.device(device):
        unet = ViewCrafterUNet(
            image_context="per_frame" if options.frames == 16 else "shared",
            block_out_channels=widths,
            attention_head_dim=8 if options.small else 64,
        )
        vae = AutoencoderKL(**vae_config(block_out_channels=vae_widths))
    # Zero-initialised layers would let later ones see nothing but zeros, which run faster.
    for parameter in unet.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.02)
    unet = unet.to(dtype).eval().requires_grad_(requires_grad=False).to_channels_last()
    vae = vae.to(dtype).eval().requires_grad_(requires_grad=False)
    vae = vae.to(memory_format=torch.channels_last)
    return Model(backbone=ViewCrafterBackbone(unet), vae=vae, chunk=options.frames)


def compiled(model: Model, mode: str | None) -> Model:
    """Compile the UNet and both halves of the autoencoder."""
    vae = model.vae
    vae.encoder = torch.compile(vae.encoder, mode=mode)
    vae.decoder = torch.compile(vae.decoder, mode=mode)
    backbone: Any = torch.compile(model.backbone, mode=mode)
    return Model(backbone=backbone, vae=vae, chunk=model.chunk)


def seconds(work: Callable[[], Any], device: torch.device, repeats: int) -> dict[str, float]:
    """Return the first call's seconds and median, min and max of the warm ones."""
    times = []
    for _ in range(repeats + 1):
        _wait(device)
        start = time.perf_counter()
        work()
        _wait(device)
        times.append(time.perf_counter() - start)
    warm = times[1:]
    return {
        "first": times[0],
        "median": float(np.median(warm)),
        "min": min(warm),
        "max": max(warm),
    }


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


@torch.inference_mode()
def measure(model: Model, options: Options, device: torch.device) -> dict[str, Any]:
    """Time each part and the whole, student and teacher."""
    frames, height, width = options.frames, options.height, options.width
    rng = torch.Generator(device=device).manual_seed(0)
    renders = torch.rand(frames, 3, height, width, device=device, generator=rng) * 2 - 1
    z_noise = torch.randn(frames, 4, height // 8, width // 8, device=device, generator=rng)
    latents = z_noise.transpose(0, 1)[None].contiguous()
    context = torch.randn(1, 77 + 256, 1024, device=device, generator=rng)
    schedule = ViewCrafterSchedule(base_scale=0.3)
    condition = Condition(concat=latents.clone(), context=context, null_context=context.flip(1))

    def encode() -> Tensor:
        return encode_images(model.vae, renders, z_noise, chunk=model.chunk)

    def decode() -> Tensor:
        return decode_latents(model.vae, z_noise, chunk=model.chunk)

    def unet() -> Any:
        return model.backbone(latents, torch.full((1,), 499, device=device), condition)

    def student() -> Tensor:
        concat = encode().transpose(0, 1)[None]
        bound = denoiser(
            model.backbone,
            Condition(concat=concat, context=context, null_context=condition.null_context),
        )
        x0 = sample_few_steps(
            bound, latents, schedule, times=schedule.timesteps(4), noise=seeded_noise(rng)
        )
        return decode_latents(model.vae, x0[0].transpose(0, 1), chunk=model.chunk)

    def teacher() -> Tensor:
        encode()
        guided = denoiser(model.backbone, condition, GuidanceScale())
        x0 = sample_ddim(
            guided,
            latents,
            schedule,
            times=schedule.timesteps(options.teacher_steps),
            noise=seeded_noise(rng),
        )
        return decode_latents(model.vae, x0[0].transpose(0, 1), chunk=model.chunk)

    result: dict[str, Any] = {}
    for name, work in (
        ("encode", encode),
        ("unet", unet),
        ("decode", decode),
        ("student", student),
    ):
        result[name] = seconds(work, device, options.repeats)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        student()
        result["student_peak_gib"] = torch.cuda.max_memory_allocated() / 2**30
    if options.teacher_steps:
        result["teacher"] = seconds(teacher, device, 2)
        result["speedup"] = result["teacher"]["median"] / result["student"]["median"]
    return result


def main(options: Options) -> None:
    """Measure every variant and print a table."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    torch.backends.cudnn.benchmark = True
    results: dict[str, Any] = {}
    modes = {"compiled": None, "autotuned": "max-autotune"}
    for variant in options.variants.split(","):
        model = build(options, device, dtype)
        if variant != "eager":
            model = compiled(model, modes[variant])
        results[variant] = measure(model, options, device)
        write_json(options.out, {"device": _name(device), "results": results})
        print(variant, {k: _short(v) for k, v in results[variant].items()}, flush=True)
        del model
        torch.compiler.reset()


def _name(device: torch.device) -> str:
    return torch.cuda.get_device_name() if device.type == "cuda" else "cpu"


def _short(value: Any) -> str:
    if not isinstance(value, dict):
        return f"{value:.2f}"
    return f"{value['median'] * 1e3:.1f} ms ({value['min'] * 1e3:.1f} to {value['max'] * 1e3:.1f})"


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
