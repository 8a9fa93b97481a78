"""The architecture at a size that runs in milliseconds."""

import json
from pathlib import Path

import torch

from fvgen_recon.diffusion.backbone import Condition
from fvgen_recon.diffusion.schedule import ViewCrafterSchedule
from fvgen_recon.diffusion.viewcrafter.architecture import (
    Architecture,
    ResamplerShape,
    TextShape,
    UNetShape,
    VaeShape,
    VisionShape,
    build_parts,
)
from fvgen_recon.diffusion.viewcrafter.buffer import original_buffers
from fvgen_recon.diffusion.viewcrafter.checkpoint import convert_checkpoint
from fvgen_recon.diffusion.viewcrafter.layout import expected_shapes
from fvgen_recon.diffusion.viewcrafter.unet import ImageContext, ViewCrafterUNet
from fvgen_recon.types import Anchor, Guidance

NUM_FRAMES = 4


def make_unet(*, seed: int = 0, **changes) -> ViewCrafterUNet:
    """A UNet of two levels with random weights everywhere."""
    config = {
        "image_context": "shared",
        "block_out_channels": (32, 64),
        "layers_per_block": 1,
        "attention_levels": (True, False),
        "attention_head_dim": 16,
        "cross_attention_dim": 24,
    }
    torch.manual_seed(seed)
    unet = ViewCrafterUNet(**(config | changes)).eval()
    with torch.no_grad():
        for parameter in unet.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return unet


def make_condition(unet: ViewCrafterUNet, *, num_clips: int = 1, num_image: int = 8) -> Condition:
    """A random condition for latents of 4x6."""
    rng = torch.Generator().manual_seed(5)
    width = unet.config["cross_attention_dim"]
    return Condition(
        concat=torch.randn(num_clips, 4, NUM_FRAMES, 4, 6, generator=rng),
        context=torch.randn(num_clips, 77 + num_image, width, generator=rng),
        null_context=torch.randn(num_clips, 77 + num_image, width, generator=rng),
    )


def make_noisy(num_clips: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    """Noisy latents and times."""
    rng = torch.Generator().manual_seed(6)
    x_t = torch.randn(num_clips, 4, NUM_FRAMES, 4, 6, generator=rng)
    return x_t, torch.linspace(900, 100, num_clips).long()


FULL_VOCABULARY = 49408
"""What the constant prompts need."""


def small_architecture(vocab_size: int = 600) -> Architecture:
    """All parts of a model at a size of a few hundred thousand parameters."""
    return Architecture(
        unet=UNetShape(
            block_out_channels=(32, 64),
            layers_per_block=1,
            attention_levels=(True, False),
            attention_head_dim=16,
        ),
        resampler=ResamplerShape(dim=32, depth=2, dim_head=16, heads=3, num_tokens=16, ff_mult=2),
        vae=VaeShape(block_out_channels=(32, 32, 32, 32), layers_per_block=1),
        text=TextShape(width=24, layers=2, heads=2, vocab_size=vocab_size, embed_dim=20),
        vision=VisionShape(width=40, layers=2, heads=2, patch_size=56, image_size=224),
    )


def original_tensors(architecture: Architecture, *, base_scale: float = 0.3, seed: int = 0):
    """Random tensors under every name of the original, with true schedule buffers."""
    rng = torch.Generator().manual_seed(seed)
    shapes = expected_shapes(architecture, build_parts(architecture, "shared"))
    tensors = {name: 0.05 * torch.randn(shape, generator=rng) for name, shape in shapes.items()}
    return tensors | original_buffers(ViewCrafterSchedule(base_scale=base_scale))


def write_model(folder: Path, *, image_context: ImageContext = "shared") -> Path:
    """A converted checkpoint of the small architecture that makes clips of four frames."""
    architecture = small_architecture(FULL_VOCABULARY)
    source = folder / "model.ckpt"
    torch.save({"state_dict": original_tensors(architecture)}, source)
    target = folder / "teacher"
    convert_checkpoint(source, target, image_context=image_context, architecture=architecture)
    index = target / "model_index.json"
    facts = json.loads(index.read_text())
    index.write_text(json.dumps(facts | {"num_frames": [NUM_FRAMES, NUM_FRAMES + 1]}))
    return target


def make_guidance(
    *, num_frames: int = NUM_FRAMES, height: int = 32, width: int = 48, seed: int = 0
) -> Guidance:
    """Random renders with photos at both ends."""
    rng = torch.Generator().manual_seed(seed)
    frames = torch.rand(num_frames, 3, height, width, generator=rng)
    mask = torch.rand(num_frames, 1, height, width, generator=rng) > 0.3
    mask[[0, -1]] = True
    return Guidance(
        frames=frames * mask,
        mask=mask,
        depth=mask.float(),
        layers=torch.zeros(0, num_frames, 3, height, width),
        layer_masks=torch.zeros(0, num_frames, 1, height, width, dtype=torch.bool),
        anchors=(Anchor(frame=0, view=0), Anchor(frame=num_frames - 1, view=1)),
        reference=frames[0],
    )
