"""Relocation and covariances against closed forms, gsplat's torch function and its strategy."""

import math

import gsplat.strategy.ops as gsplat_ops
import pytest
import torch
from gsplat.cuda._torch_impl import _quat_scale_to_covar_preci
from gsplat.strategy import MCMCStrategy
from scipy.spatial.transform import Rotation
from torch import Tensor
from torch.testing import assert_close

from fvgen_recon.render.gaussian_relocation import (
    compute_relocation,
    quat_scale_to_covar_preci,
    quaternion_rotation,
)


def binomials(size: int = 51) -> Tensor:
    rows = [[float(math.comb(n, k)) for k in range(size)] for n in range(size)]
    return torch.tensor(rows, dtype=torch.float64)


def test_one_gaussian_stays_itself() -> None:
    opacities, scales = torch.tensor([0.01, 0.5, 0.99]), torch.rand(3, 3)
    new = compute_relocation(opacities, scales, torch.ones(3).long(), binomials())
    assert_close(new, (opacities, scales))


def test_two_gaussians_have_the_closed_form() -> None:
    opacities, scales = torch.tensor([0.2, 0.75]), torch.ones(2, 3)
    new_opacities, new_scales = compute_relocation(
        opacities, scales, torch.tensor([2, 2]), binomials()
    )
    half = 1 - torch.sqrt(1 - opacities)
    assert_close(new_opacities, half)
    width = opacities / (2 * half - half**2 / math.sqrt(2))
    assert_close(new_scales, width[:, None].expand(2, 3))


@pytest.mark.parametrize("count", [1, 2, 3, 7, 20, 51])
def test_together_they_look_like_the_one(count: int) -> None:
    opacities = torch.tensor([0.05, 0.4, 0.9, 0.999]).double()
    scales = torch.full((4, 3), 1.5).double()
    ratios = torch.full((4,), count)
    new_opacities, new_scales = compute_relocation(opacities, scales, ratios, binomials())
    assert_close((1 - new_opacities) ** count, 1 - opacities)
    x = torch.linspace(-30, 30, 60001).double()
    density = torch.exp(-0.5 * (x / new_scales[:, :1]) ** 2)
    blended = 1 - (1 - new_opacities[:, None] * density) ** count
    integral = torch.trapezoid(blended, x)
    # The alternating sum of equation 9 loses digits where both count and opacity are large.
    expected = opacities * 1.5 * math.sqrt(2 * math.pi)
    assert_close(integral, expected, rtol=1e-5, atol=1e-8)


def test_counts_are_held_within_the_table_and_limits_are_finite() -> None:
    opacities, scales = torch.tensor([0.0, 1.0, 0.5]), torch.ones(3, 3)
    many = compute_relocation(opacities, scales, torch.tensor([3, 3, 400]), binomials(5))
    five = compute_relocation(opacities, scales, torch.tensor([3, 3, 5]), binomials(5))
    assert_close(many, five)
    assert many[0][:2].tolist() == [0.0, 1.0]
    assert bool(torch.isfinite(many[1]).all())
    assert_close(many[1][0], torch.ones(3))


def test_covariances_are_gsplats(rng: torch.Generator) -> None:
    quats, scales = torch.randn(6, 4, generator=rng), torch.rand(6, 3, generator=rng) + 0.2
    for triu in (False, True):
        ours = quat_scale_to_covar_preci(quats, scales, triu=triu)
        assert_close(ours, _quat_scale_to_covar_preci(quats, scales, triu=triu))
    assert quat_scale_to_covar_preci(quats, scales, False, False) == (None, None)


def test_rotations_are_scipys(rng: torch.Generator) -> None:
    quats = torch.randn(9, 4, generator=rng).double()
    expected = torch.from_numpy(Rotation.from_quat(quats[:, [1, 2, 3, 0]].numpy()).as_matrix())
    assert_close(quaternion_rotation(quats), expected)


def test_gsplats_chain_runs_on_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gsplat_ops, "compute_relocation", compute_relocation)
    monkeypatch.setattr(gsplat_ops, "quat_scale_to_covar_preci", quat_scale_to_covar_preci)
    torch.manual_seed(0)
    params = torch.nn.ParameterDict(
        {
            "means": torch.randn(40, 3),
            "quats": torch.randn(40, 4),
            "scales": torch.randn(40, 3) - 2,
            "opacities": torch.cat([torch.full((10,), -8.0), torch.randn(30)]),
        }
    )
    optimizers = {k: torch.optim.Adam([p]) for k, p in params.items()}
    strategy = MCMCStrategy(refine_start_iter=0, refine_every=1, cap_max=60)
    state = strategy.initialize_state()
    strategy.step_post_backward(params, optimizers, state, 1, {}, lr=1e-4)
    assert len(params["means"]) == 42
    assert params["opacities"].sigmoid().min().item() >= 0.005 - 1e-6
    assert all(bool(torch.isfinite(p).all()) for p in params.values())
