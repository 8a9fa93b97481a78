"""The architecture at a size that runs in milliseconds."""

import torch

from fvgen_recon.diffusion.backbone import Condition
from fvgen_recon.diffusion.viewcrafter.unet import ViewCrafterUNet

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
