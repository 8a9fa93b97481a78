"""Opacities as an exported file holds them, which may differ from those that are rendered.

Our renders are the mean of a splat's members, and colours from around flow in behind what is not
opaque. A file knows neither: viewers of it draw all Gaussians at once, on one colour.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from nerfstudio.models.splatfacto import SplatfactoModel
from torch import Tensor

from fvgen_nerfstudio.settings import FvgenModelConfig


class ExportedModel(SplatfactoModel):
    """A splat whose exported opacities can be set apart from its own."""

    config: FvgenModelConfig

    @property
    def opacities(self) -> Float[Tensor, "N 1"]:
        """Logits of the opacities as exporters read them; in training those of the splat."""
        logits, times = self.gauss_params["opacities"], self.config.export_opacity
        return logits if self.training or times == 1 else repeat_opacity(logits, times)


def repeat_opacity(logits: Float[Tensor, "..."], times: float) -> Float[Tensor, "..."]:
    """Return the logits of opacities that so many Gaussians at one place would have together.

    With opacity o that is 1 - (1 - o)^times. A fraction undoes it: so many members, each with 1 /
    members, are as opaque as one of them where they show the same.

    Args:
        logits: Logits of opacities.
        times: How many, above 0.
    """
    depth = (times * F.softplus(logits)).clamp_min(torch.finfo(logits.dtype).tiny)
    return depth + torch.log(-torch.expm1(-depth))
