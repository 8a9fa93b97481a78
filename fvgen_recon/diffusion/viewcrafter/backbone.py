"""ViewCrafter's UNet behind the seam that samplers and the distillation know."""

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from fvgen_recon.diffusion.backbone import Condition
from fvgen_recon.diffusion.viewcrafter.unet import ViewCrafterUNet


class ViewCrafterBackbone(nn.Module):
    """A `VideoBackbone`: concatenates the condition's latents and casts to the network's dtype.

    The frame rate is the constant that the network was trained with.
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
        dtype = self.unet.conv_in.weight.dtype
        sample = torch.cat([x_t.to(dtype), condition.concat.to(dtype)], dim=1)
        output, features = self.unet(sample, t, condition.context.to(dtype), return_mid=return_mid)
        return output.to(x_t.dtype), features
