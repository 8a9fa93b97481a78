"""What keeps a splat from explaining few photos by wrong shapes. Pure functions of tensors."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

_NEAR = 1e-3


def disparity_loss(
    depth: Float[Tensor, "1 H W"],
    alpha: Float[Tensor, "1 H W"],
    target: Float[Tensor, "1 h w"],
    weight: Float[Tensor, "1 h w"],
) -> Float[Tensor, ""]:
    """Return how far a rendered depth is from a measured one, in inverse depth without unit.

    Absolute differences of 1 / depth over the measured mean of 1 / depth: far things and single
    outliers count little. Pixels count by their weight and by how opaque the render is.

    Args:
        depth: Rendered expected z-depth.
        alpha: Rendered opacity in [0, 1]; no gradient flows into it.
        target: Measured z-depth, positive, at any size; sampled at the nearest pixel.
        weight: How far each measured depth may be trusted, in [0, 1].
    """
    size = depth.shape[-2:]
    target = F.interpolate(target[None], size, mode="nearest-exact")[0]
    weight = F.interpolate(weight[None], size, mode="nearest-exact")[0]
    measured = 1 / target.clamp_min(_NEAR)
    unit = (weight * measured).sum() / weight.sum().clamp_min(1e-6)
    error = (1 / depth.clamp_min(_NEAR) - measured).abs() / unit.clamp_min(1e-6)
    return (weight * alpha.detach() * error).mean()


def solid_loss(alpha: Float[Tensor, "1 H W"], weight: Float[Tensor, "1 h w"]) -> Float[Tensor, ""]:
    """Return how transparent a render is where a surface was measured.

    Where holes are filled from their surroundings, colours alone do not ask for opacity, and a
    splat that is only faintly there would look dark in viewers that fill nothing.

    Args:
        alpha: Rendered opacity in [0, 1].
        weight: How surely there is a surface, in [0, 1], at any size.
    """
    weight = F.interpolate(weight[None], alpha.shape[-2:], mode="nearest-exact")[0]
    return (weight * (1 - alpha)).mean()


def elongation_loss(scales: Float[Tensor, "N 3"], limit: float) -> Float[Tensor, ""]:
    """Return by how much Gaussians are longer, over their shortest axis, than a limit.

    Xie et al., "PhysGaussian" (2024), equation 16.
    """
    ratio = scales.amax(dim=-1) / scales.amin(dim=-1)
    return (ratio - limit).clamp_min(0).mean()


def drop_opacities(
    opacities: Float[Tensor, "N"], rate: float, generator: torch.Generator
) -> Float[Tensor, "N"]:
    """Return opacities of which a random share is 0 and the others are larger to make up for it.

    Park et al., "DropGaussian: structural regularization for sparse-view Gaussian splatting"
    (2025), equations 4 and 5.

    Args:
        opacities: Opacities in [0, 1].
        rate: Share that is dropped, in [0, 1).
        generator: Source of the choice, on the device of the opacities.
    """
    draw = torch.rand(opacities.shape, generator=generator, device=opacities.device)
    kept = (draw >= rate).to(opacities.dtype)
    return (opacities * kept / (1 - rate)).clamp_max(1.0)
