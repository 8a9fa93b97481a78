"""A compact network small enough for tests, with weights that are not at their start."""

import torch

from fvgen_recon.diffusion.compact.backbone import CompactBackbone
from fvgen_recon.diffusion.compact.config import CompactConfig

TINY = CompactConfig(
    patch=2, widths=(8, 8, 16), num_blocks=(1, 1, 1), num_attention=2, head_dim=16, embedding=16
)


def make_backbone(seed: int = 0, scale: float = 0.05) -> CompactBackbone:
    """Zero-started layers are moved off zero, so that every path matters."""
    torch.manual_seed(seed)
    backbone = CompactBackbone(TINY)
    with torch.no_grad():
        for parameter in backbone.parameters():
            parameter.add_(scale * torch.randn_like(parameter))
    return backbone.eval()
