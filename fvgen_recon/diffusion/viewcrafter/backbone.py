"""ViewCrafter's UNet behind the seam that samplers and the distillation know."""

from contextlib import nullcontext

import torch
from diffusers.models.downsampling import Downsample2D
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.upsampling import Upsample2D
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from fvgen_recon.diffusion.backbone import Condition
from fvgen_recon.diffusion.viewcrafter.layer import (
    SpatialTransformer,
    TemporalConv,
    TemporalTransformer,
)
from fvgen_recon.diffusion.viewcrafter.norm import use_channel_norms
from fvgen_recon.diffusion.viewcrafter.unet import ViewCrafterUNet

_PARTS = (
    ResnetBlock2D,
    TemporalConv,
    SpatialTransformer,
    TemporalTransformer,
    Downsample2D,
    Upsample2D,
)


class ViewCrafterBackbone(nn.Module):
    """A `VideoBackbone`: concatenates the condition's latents and casts to the network's dtype.

    The frame rate is the constant that the network was trained with. Where the weights are already
    bfloat16 (sharded training, a frozen teacher), autocast is off: it would only run normalisations
    and activations in float32, at several times the memory traffic.
    """

    def __init__(self, unet: ViewCrafterUNet) -> None:
        super().__init__()
        self.unet = unet

    def forward(
        self,
        x_t: Float[Tensor, "B C T h w"],
        t: Shaped[Tensor, "B"],
        condition: Condition,
        *,
        return_mid: bool = False,
    ) -> tuple[Float[Tensor, "B C T h w"], tuple[Tensor, ...]]:
        """Return v and, if asked for, the features that the UNet is set to return."""
        inputs, dtype = self._inputs(x_t, condition)
        with self._arithmetic(x_t.device.type, dtype):
            output, features = self.unet(inputs[0], t, inputs[1], return_mid=return_mid)
        return output.to(x_t.dtype), features

    def features(
        self, x_t: Float[Tensor, "B C T h w"], t: Shaped[Tensor, "B"], condition: Condition
    ) -> tuple[Tensor, ...]:
        """Return the features alone: half of the network for those of the bottleneck."""
        inputs, dtype = self._inputs(x_t, condition)
        with self._arithmetic(x_t.device.type, dtype):
            return self.unet.features(inputs[0], t, inputs[1])

    def compile_parts(self) -> None:
        """Compile the repeated parts one by one, with gradients; equal ones are compiled once.

        Only their forwards are: what wraps a part later (shards, recomputation) stays outside.
        """
        use_channel_norms(self.unet)
        parts: list[nn.Module] = [m for m in self.unet.modules() if isinstance(m, _PARTS)]
        for part in (*parts, self.unet.conv_norm_out):
            part.forward = torch.compile(part.forward, dynamic=False)

    def _inputs(
        self, x_t: Tensor, condition: Condition
    ) -> tuple[tuple[Tensor, Tensor], torch.dtype]:
        dtype = self.unet.conv_in.weight.dtype
        sample = torch.cat([x_t.to(dtype), condition.concat.to(dtype)], dim=1)
        # Convolutions pass the layout on, whatever that of their weights (sharded ones are plain).
        sample = sample.contiguous(memory_format=torch.channels_last_3d)
        return (sample, condition.context.to(dtype)), dtype

    def _arithmetic(self, device: str, dtype: torch.dtype) -> torch.autocast | nullcontext[None]:
        if dtype == torch.float32 or not _autocast_is_on(device):
            return nullcontext()
        return torch.autocast(device, enabled=False)


def _autocast_is_on(device: str) -> bool:
    try:
        return torch.is_autocast_enabled(device)
    except TypeError:  # PyTorch before 2.4 knows the GPU's only.
        return torch.is_autocast_enabled()
