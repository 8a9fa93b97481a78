"""Upsampling with fewer operations, for inference."""

import torch
import torch.nn.functional as F
from diffusers.models.upsampling import Upsample2D
from jaxtyping import Float
from torch import Tensor, nn

_TAPS = ((0.0, 0.0, 1.0), (0.0, 1.0, 1.0), (1.0, 1.0, 0.0), (1.0, 0.0, 0.0))
"""How much of each tap of a width-3 kernel goes into each tap of the merged width-4 kernel."""


class MergedUpsample(nn.Module):
    """Nearest-neighbour doubling and the 3x3 convolution after it, as one transposed convolution.

    Each output pixel sees only 2x2 different input pixels, so taps that fall on one input pixel are
    added beforehand: 4/9 of the operations, and the doubled image is never stored. Equal up to the
    rounding of the added taps. The merged kernel follows the weights at the time of construction.
    """

    merged: Tensor

    def __init__(self, upsample: Upsample2D) -> None:
        super().__init__()
        assert isinstance(upsample.conv, nn.Conv2d)
        self.conv = upsample.conv
        weight = self.conv.weight.detach()
        taps = torch.tensor(_TAPS, device=weight.device)
        merged = torch.einsum("ka,lb,oiab->iokl", taps, taps, weight.float()).to(weight.dtype)
        self.register_buffer(
            "merged", merged.contiguous(memory_format=torch.channels_last), persistent=False
        )

    def forward(
        self, hidden_states: Float[Tensor, "N C h w"], output_size: None = None
    ) -> Float[Tensor, "N Co H W"]:
        """Return features of twice the height and width."""
        assert output_size is None
        return self.convolve(hidden_states, self.conv.bias)

    def convolve(
        self, x: Float[Tensor, "N C h w"], bias: Float[Tensor, "Co"] | None = None
    ) -> Float[Tensor, "N Co H W"]:
        """Return the same with another bias or none."""
        return F.conv_transpose2d(x, self.merged, bias, stride=2, padding=1)


def merge_upsampling_layers(module: nn.Module) -> None:
    """Replace every upsampling inside a module; parameters and their names stay."""
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, Upsample2D) and isinstance(child.conv, nn.Conv2d):
                setattr(parent, name, MergedUpsample(child))
