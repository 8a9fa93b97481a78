"""The strategy: statistics against closed forms, and when opacities fall."""

import torch
from factories import make_cloud

from fvgen_nerfstudio.gaussian import NAMES, make_gaussians
from fvgen_nerfstudio.strategy import SplatStrategy


def _setup(**options):
    params = torch.nn.ParameterDict(
        {k: torch.nn.Parameter(v) for k, v in make_gaussians(make_cloud(6), 0).items()}
    )
    with torch.no_grad():
        params["opacities"].fill_(2.0)
    optimizers = {k: torch.optim.Adam([params[k]], lr=0.1) for k in NAMES}
    strategy = SplatStrategy(absgrad=True, refine_scale2d_stop_iter=1, **options)
    return params, optimizers, strategy, strategy.initialize_state(scene_scale=1.0)


def _info(radii):
    means2d = torch.zeros(1, 6, 2)
    means2d.absgrad = torch.tensor([0.3, 0.4]).expand(1, 6, 2)
    return {"means2d": means2d, "radii": radii, "width": 20, "height": 10, "n_cameras": 1}


def test_statistics_count_seen_gaussians_only():
    params, _, strategy, state = _setup()
    radii = torch.tensor([[0, 1, 2, 3, 4, 5]])
    for _ in range(2):
        strategy.observe(params, state, _info(radii))
    assert state["count"].tolist() == [0, 2, 2, 2, 2, 2]
    expected = 2 * ((0.3 * 10) ** 2 + (0.4 * 5) ** 2) ** 0.5
    torch.testing.assert_close(state["grad2d"][1:], torch.full((5,), expected))
    assert state["grad2d"][0] == 0
    torch.testing.assert_close(state["radii"], radii[0] / 20.0)


def test_opacities_are_reset_when_due_and_not_at_step_zero():
    params, optimizers, strategy, state = _setup(
        reset_every=10, refine_every=1000, prune_opa=0.05, refine_stop_iter=25
    )
    info = _info(torch.ones(1, 6))
    for step, expected in ((0, False), (9, False), (10, True), (30, False)):
        with torch.no_grad():
            params["opacities"].fill_(2.0)
        strategy.step_post_backward(params, optimizers, state, step, info)
        was_reset = bool(torch.sigmoid(params["opacities"]).max() < 0.11)
        assert was_reset == expected, step


def test_high_gradients_grow_up_to_the_limit_and_faint_ones_go():
    params, optimizers, strategy, state = _setup(
        refine_start_iter=0, refine_every=5, grow_grad2d=0.1, prune_opa=0.05, max_gaussians=8
    )
    with torch.no_grad():
        params["opacities"][0] = -6.0
        params["scales"].fill_(-6.0)
    strategy.step_post_backward(params, optimizers, state, 5, _info(torch.ones(1, 6)))
    assert len(params["means"]) == 10  # Six doubled, the faint one and its copy removed.
    means2d = torch.zeros(1, 10, 2)
    means2d.absgrad = torch.ones(1, 10, 2)
    info = _info(torch.ones(1, 10)) | {"means2d": means2d}
    strategy.step_post_backward(params, optimizers, state, 10, info)
    assert len(params["means"]) == 10
