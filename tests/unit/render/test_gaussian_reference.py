"""The slow twin against gsplat's own torch functions and closed forms."""

import math

import numpy as np
import torch
from gaussian_factory import make_splat_scene, run_reference
from gsplat.cuda._torch_impl import (
    _fully_fused_projection,
    _quat_scale_to_covar_preci,
    _spherical_harmonics,
)
from torch.testing import assert_close

from fvgen_recon.render.gaussian_reference import harmonic_basis


def test_projection_is_gsplats() -> None:
    # Only camera motions that keep all Gaussians in front: gsplat's torch function divides by z.
    scene = make_splat_scene(80, 3)
    covariances, _ = _quat_scale_to_covar_preci(scene.quats, scene.scales, True, False)
    theirs = _fully_fused_projection(
        scene.means,
        covariances,  # pyright: ignore
        scene.viewmats,
        scene.Ks,
        scene.width,
        scene.height,
        calc_compensations=True,
    )
    ours = run_reference(scene, rasterize_mode="antialiased")
    seen = theirs[0] > 0
    assert 0 < int(seen.sum()) < seen.numel()
    assert_close(ours.radii, theirs[0])
    for mine, other in zip((ours.means2d, ours.depths, ours.conics), theirs[1:4], strict=True):
        assert_close(mine[seen], other[seen])
    assert theirs[4] is not None
    assert_close(ours.opacities, scene.opacities * theirs[4])


def test_harmonics_are_gsplats(rng: torch.Generator) -> None:
    directions = torch.randn(50, 3, generator=rng).double()
    coefficients = torch.randn(50, 16, 3, generator=rng).double()
    ours = (harmonic_basis(directions)[..., None] * coefficients).sum(-2)
    assert_close(ours, _spherical_harmonics(3, directions, coefficients), rtol=1e-7, atol=1e-7)


def test_harmonics_are_orthonormal() -> None:
    # Gauss-Legendre in z and even steps in azimuth are exact for polynomials of degree 6.
    z, weight = (torch.from_numpy(a) for a in np.polynomial.legendre.leggauss(8))
    azimuth = torch.arange(16).double() * (2 * math.pi / 16)
    ring = torch.sqrt(1 - z**2)[:, None]
    axes = (ring * azimuth.cos(), ring * azimuth.sin(), z[:, None].expand(-1, 16))
    basis = harmonic_basis(torch.stack(axes, dim=-1))
    gram = torch.einsum("zak,zal,z->kl", basis, basis, weight * 2 * math.pi / 16)
    assert_close(gram, torch.eye(16).double())
