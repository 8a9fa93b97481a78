"""Markov-chain splatting: what moves, what is added, and that the picture stays."""

import pytest
import torch
from factories import make_cloud

from fvgen_nerfstudio.gaussian import NAMES, make_gaussians
from fvgen_nerfstudio.mcmc import McmcStrategy


def _splat(num_points: int = 40, opacity: float = 0.5):
    gaussians = make_gaussians(
        make_cloud(num_points), 1, opacity=torch.full((num_points,), opacity)
    )
    params = torch.nn.ParameterDict({k: torch.nn.Parameter(v) for k, v in gaussians.items()})
    optimizers = {k: torch.optim.Adam([params[k]], lr=1e-3) for k in NAMES}
    torch.stack([p.square().sum() for p in params.values()]).sum().backward()
    for optimizer in optimizers.values():
        optimizer.step()
    return params, optimizers


def _strategy(**options) -> McmcStrategy:
    settings = {
        "refine_start_iter": 0,
        "refine_stop_iter": 100,
        "refine_every": 10,
        "max_gaussians": 1000,
        "noise": 0.0,
    }
    return McmcStrategy(**{**settings, **options})


def _run(strategy, params, optimizers, step):
    state = strategy.initialize_state()
    strategy.step_post_backward(params, optimizers, state, step, {})
    return state


def test_it_grows_by_a_share_up_to_the_limit_and_only_when_due():
    params, optimizers = _splat()
    strategy = _strategy(growth=0.5, max_gaussians=70)
    _run(strategy, params, optimizers, 5)
    assert len(params["means"]) == 40
    _run(strategy, params, optimizers, 10)
    assert len(params["means"]) == 60
    _run(strategy, params, optimizers, 20)
    assert len(params["means"]) == 70
    _run(strategy, params, optimizers, 100)
    assert len(params["means"]) == 70
    for name in NAMES:
        assert optimizers[name].param_groups[0]["params"] == [params[name]]
        assert len(optimizers[name].state[params[name]]["exp_avg"]) == 70


def test_faint_gaussians_move_onto_opaque_ones():
    params, optimizers = _splat()
    with torch.no_grad():
        params["opacities"][:7] = torch.logit(torch.tensor(0.001))
    old = params["means"].detach().clone()
    _run(_strategy(growth=0.0), params, optimizers, 10)
    opacity = torch.sigmoid(params["opacities"]).squeeze(-1)
    assert opacity.min() > 0.005
    distance = torch.cdist(params["means"][:7], old[7:]).amin(1)
    assert distance.max() < 1e-3  # Far less than the points are apart.
    torch.testing.assert_close(params["means"][7:].detach(), old[7:])


def test_copies_are_fainter_than_their_source_and_blend_to_its_opacity():
    params, optimizers = _splat(num_points=2)
    with torch.no_grad():
        params["opacities"][0] = torch.logit(torch.tensor(0.001))
        params["opacities"][1] = torch.logit(torch.tensor(0.6))
    before = float(params["scales"][1, 0].detach())
    _run(_strategy(growth=0.0), params, optimizers, 10)
    opacity = torch.sigmoid(params["opacities"].detach()).squeeze(-1)
    torch.testing.assert_close(opacity[0], opacity[1])
    assert 1 - float((1 - opacity).prod()) == pytest.approx(0.6, abs=1e-5)
    assert float(params["scales"][1, 0].detach()) != before


def test_faint_gaussians_jitter_within_their_shape_and_opaque_ones_stay():
    params, optimizers = _splat(num_points=400)
    with torch.no_grad():
        params["opacities"][:200] = torch.logit(torch.tensor(1e-4))
        params["scales"][:200] = torch.tensor([-9.0, -2.0, -9.0])
    old = params["means"].detach().clone()
    _run(_strategy(noise=1e3), params, optimizers, 5)
    moved = (params["means"].detach() - old).abs()
    assert moved[200:].max() < 1e-6
    assert moved[:200, 1].mean() > 100 * moved[:200, 0].mean()


def test_the_same_step_makes_the_same_choice():
    ends = []
    for _ in range(2):
        params, optimizers = _splat()
        _run(_strategy(noise=1e5), params, optimizers, 10)
        ends.append(params["means"].detach())
    assert torch.equal(*ends)
