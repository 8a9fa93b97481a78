"""A small bank of clips with structure to learn, and networks small enough to learn it."""

from pathlib import Path

import torch

from fvgen_recon.diffusion.compact.config import CompactConfig
from fvgen_recon.distill.clip import ClipBank, ClipBatch, save_clips

CONFIG = CompactConfig(
    widths=(16, 16, 16), num_blocks=(1, 1, 1), num_attention=1, head_dim=16, embedding=32
)
CPU = torch.device("cpu")


def make_clips(
    num_clips: int = 4, num_frames: int = 4, seed: int = 0, *, num_alternatives: int = 0
) -> ClipBatch:
    """Smooth photos; renders are the photos with holes, layers are darker and shifted photos."""
    rng = torch.Generator().manual_seed(seed)
    coarse = torch.rand(num_clips * num_frames, 3, 4, 6, generator=rng)
    photos = torch.nn.functional.interpolate(coarse, (32, 48), mode="bicubic").clamp(0, 1)
    target = (photos * 255).round().byte().unflatten(0, (num_clips, num_frames))
    mask = torch.rand(num_clips, num_frames, 1, 32, 48, generator=rng) > 0.4
    mask[:, [0, -1]] = True
    near = (target * 0.8).byte()
    layers = torch.stack([near.roll(1, -1), near.roll(-1, -1)], dim=1)
    return ClipBatch(
        frames=target * mask,
        mask=mask,
        layers=layers,
        layer_masks=torch.rand(num_clips, 2, num_frames, 1, 32, 48, generator=rng) > 0.2,
        target=target,
        gap_deg=torch.linspace(5, 35, num_clips),
        alternatives=torch.stack([near.roll(2 * k, -2) for k in range(num_alternatives)], dim=1)
        if num_alternatives
        else layers[:, :0],
        alternative_masks=torch.rand(
            num_clips, num_alternatives, num_frames, 1, 32, 48, generator=rng
        )
        > 0.2,
        hints=torch.rand(
            num_clips, 3 + num_alternatives, num_frames, 2, 8, 12, generator=rng
        ).half(),
    )


def make_bank(folder: Path, num_chunks: int = 2) -> ClipBank:
    """The bank of those clips, in several files."""
    folder.mkdir(parents=True)
    for index in range(num_chunks):
        save_clips(folder / f"{index}.safetensors", make_clips(seed=index))
    bank = ClipBank(folder, CPU, seed=0)
    bank.refresh()
    return bank


def squared_distance(image: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    """Stands in for a perceptual distance."""
    return (image - truth).square().mean(dim=(1, 2, 3))
