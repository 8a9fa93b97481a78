"""Gaussians from points: closed forms, and optimizers that keep hold of what they optimise."""

import math

import torch
from factories import make_cloud

from fvgen_nerfstudio.gaussian import (
    NAMES,
    SH_C0,
    append_gaussians,
    draw_points,
    make_gaussians,
    neighbour_distance,
    thin_cloud,
)
from fvgen_recon.types import PointCloud


def _grid_cloud() -> PointCloud:
    xyz = torch.cartesian_prod(*[torch.arange(3.0)] * 3) * 0.5
    n = len(xyz)
    return PointCloud(
        xyz=xyz,
        rgb=torch.full((n, 3), 0.75),
        confidence=torch.ones(n),
        view=torch.zeros(n, dtype=torch.long),
    )


def test_neighbour_distance_on_a_grid_is_its_spacing():
    torch.testing.assert_close(neighbour_distance(_grid_cloud().xyz), torch.full((27,), 0.5))


def test_points_on_top_of_each_other_stay_finite():
    scales = make_gaussians(_grid_cloud()[torch.zeros(5, dtype=torch.long)], 1)["scales"]
    assert torch.isfinite(scales).all()


def test_gaussians_show_the_points_colours():
    cloud = _grid_cloud()
    harmonic = make_gaussians(cloud, 2)
    torch.testing.assert_close(harmonic["features_dc"] * SH_C0 + 0.5, cloud.rgb)
    assert harmonic["features_rest"].shape == (27, 8, 3)
    plain = make_gaussians(cloud, 0)
    torch.testing.assert_close(torch.sigmoid(plain["features_dc"]), cloud.rgb)
    torch.testing.assert_close(torch.sigmoid(plain["opacities"]), torch.full((27, 1), 0.1))
    torch.testing.assert_close(plain["scales"], torch.full((27, 3), math.log(0.5)))


def test_appended_gaussians_are_trained_and_the_old_keep_their_moments():
    params = torch.nn.ParameterDict(
        {k: torch.nn.Parameter(v) for k, v in make_gaussians(make_cloud(20), 1).items()}
    )
    optimizers = {k: torch.optim.Adam([params[k]], lr=0.1) for k in NAMES}
    sum(p.square().sum() for p in params.values()).backward()
    for optimizer in optimizers.values():
        optimizer.step()
    moment = optimizers["means"].state[params["means"]]["exp_avg"].clone()
    state = {"grad2d": torch.ones(20), "count": torch.ones(20), "scene_scale": 1.0}
    append_gaussians(params, optimizers, state, make_gaussians(make_cloud(7, seed=1), 1))
    assert all(len(params[name]) == 27 for name in NAMES)
    assert state["grad2d"].tolist() == [1.0] * 20 + [0.0] * 7
    kept = optimizers["means"].state[params["means"]]["exp_avg"]
    torch.testing.assert_close(kept, torch.cat([moment, torch.zeros(7, 3)]))
    before = params["means"].detach().clone()
    params["means"].square().sum().backward()
    optimizers["means"].step()
    assert ((params["means"] - before).abs().amax(1) > 0).all()


def test_thinning_prefers_confident_points_and_repeats():
    cloud = make_cloud(400)
    confidence = torch.where(torch.arange(400) < 200, 1.0, 0.01)
    cloud = PointCloud(xyz=cloud.xyz, rgb=cloud.rgb, confidence=confidence, view=cloud.view)
    thin = thin_cloud(cloud, 100)
    assert len(thin) == 100
    assert (thin.confidence == 1).float().mean() > 0.9
    torch.testing.assert_close(thin.xyz, thin_cloud(cloud, 100).xyz)
    assert thin_cloud(cloud, 400) is cloud


def test_points_are_drawn_by_confidence_with_the_chance_that_is_told():
    confidence = torch.tensor([0.0, 0.9]).repeat_interleave(20_000)
    drawn, chance = draw_points(confidence, 8_000, seed=2, least=0.1)
    assert len(drawn) == len(drawn.unique()) == 8_000
    assert (drawn.diff() > 0).all()
    is_sure = drawn >= 20_000
    for group in (is_sure, ~is_sure):
        share = float(group.sum()) / 20_000
        torch.testing.assert_close(
            chance[group], torch.full((int(group.sum()),), share), rtol=0.1, atol=0
        )
    assert chance[is_sure].min() > 5 * chance[~is_sure].max()
    drawn, chance = draw_points(confidence[:5], 10)
    assert drawn.tolist() == [0, 1, 2, 3, 4]
    assert (chance == 1).all()
