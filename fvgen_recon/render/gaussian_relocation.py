"""What Markov-chain splatting needs on the CPU: covariances, and many Gaussians made of one.

`compute_relocation` and `quat_scale_to_covar_preci` take the place of gsplat's CUDA functions of
the same names and arguments (Kheradmand et al., "3D Gaussian splatting as Markov chain Monte
Carlo", 2024); they run on any device.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor


def quaternion_rotation(quats: Float[Tensor, "*B 4"]) -> Float[Tensor, "*B 3 3"]:
    """Return the rotations of quaternions (w, x, y, z) of any length but 0."""
    w, x, y, z = (quats / quats.norm(dim=-1, keepdim=True)).unbind(-1)
    rows = [
        torch.stack([1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)], -1),
        torch.stack([2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)], -1),
        torch.stack([2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)], -1),
    ]
    return torch.stack(rows, dim=-2)


def quat_scale_to_covar_preci(
    quats: Float[Tensor, "N 4"],
    scales: Float[Tensor, "N 3"],
    compute_covar: bool = True,
    compute_preci: bool = True,
    triu: bool = False,
) -> tuple[Float[Tensor, "N ..."] | None, Float[Tensor, "N ..."] | None]:
    """Return the covariances R S S R^T of Gaussians and their inverses.

    Args:
        quats: Rotations R as quaternions (w, x, y, z) of any length but 0.
        scales: Diagonals of S: standard deviations along the Gaussians' axes.
        compute_covar: Return covariances; none otherwise.
        compute_preci: Return inverse covariances; none otherwise.
        triu: Return the six numbers of the upper triangle, row by row, not the matrices.
    """
    rotation = quaternion_rotation(quats)
    covariance = _square(rotation * scales[:, None], triu) if compute_covar else None
    precision = _square(rotation / scales[:, None], triu) if compute_preci else None
    return covariance, precision


def _square(root: Tensor, triu: bool) -> Tensor:
    matrix = root @ root.mT
    return matrix[:, [0, 0, 0, 1, 1, 2], [0, 1, 2, 1, 2, 2]] if triu else matrix


@torch.no_grad()
def compute_relocation(
    opacities: Float[Tensor, "N"],
    scales: Float[Tensor, "N 3"],
    ratios: Int[Tensor, "N"],
    binoms: Float[Tensor, "n_max n_max"],
) -> tuple[Float[Tensor, "N"], Float[Tensor, "N 3"]]:
    """Return what each of n Gaussians must be to look, together in one place, like one (eq. 9).

    Their opacity o' solves (1 - o')^n = 1 - o, and their common width keeps the integral of the
    blended opacity along a line through the centre.

    Args:
        opacities: Opacities o of the single Gaussians.
        scales: Their standard deviations.
        ratios: The number n of Gaussians that take the place of each, held within 1 and n_max.
        binoms: Binomial coefficients: row n, column k holds n over k.

    Returns:
        Opacities and standard deviations of the n Gaussians.
    """
    count = ratios.clamp(1, binoms.shape[0]).long()
    old = opacities.double()
    # log1p and expm1 keep small opacities exact; an opacity of 1 stays 1.
    new = -torch.expm1(torch.log1p(-old) / count)
    # The sum over i of (i - 1 over k), for i from 1 to n, is one row of running sums of the table.
    coefficients = binoms.double().cumsum(0)[count - 1]
    k = torch.arange(binoms.shape[0], device=opacities.device)
    signs = 1.0 - 2.0 * (k % 2)
    terms = signs / torch.sqrt(k + 1.0) * new[:, None] ** (k + 1)
    width = old / (coefficients * terms).sum(-1)
    # A Gaussian without opacity keeps its width: the limit of o / sum for o to 0 is 1.
    width = torch.where(old > 0, width, torch.ones_like(width))
    return new.to(opacities.dtype), (width[:, None] * scales).to(scales.dtype)
