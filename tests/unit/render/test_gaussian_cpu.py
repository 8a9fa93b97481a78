"""The CPU rasteriser against its slow twin, closed forms and gsplat's own expectations."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from gaussian_factory import (
    SplatScene,
    make_splat_scene,
    random_loss,
    run_fast,
    run_reference,
)
from gsplat.cuda._torch_impl import _isect_offset_encode, _isect_tiles
from gsplat.strategy import DefaultStrategy
from torch import Tensor
from torch.testing import assert_close

from fvgen_recon.errors import InputError
from fvgen_recon.render.gaussian import rasterize

MODES = ("RGB", "D", "ED", "RGB+D", "RGB+ED")
EXACT = {"rtol": 1e-9, "atol": 1e-10}
# gsplat adds 1e-6 to the compensation in its derivative, and so do the kernels; the twin does not.
COMPENSATED = {"rtol": 2e-5, "atol": 2e-5}


def compare(scene: SplatScene, tolerance: dict[str, float] = EXACT, **options: Any) -> None:
    """Compare values and every gradient of the kernels and the twin."""
    ours, theirs = scene.fresh(), scene.fresh()
    if "backgrounds" in options:
        ours_options = theirs_options = options
    else:
        ours_options = {**options, "backgrounds": ours.backgrounds}
        theirs_options = {**options, "backgrounds": theirs.backgrounds}
    colors, alphas, info = run_fast(ours, **ours_options)
    twin = run_reference(theirs, **theirs_options)
    assert_close(colors, twin.colors, **EXACT)
    assert_close(alphas, twin.alphas, **EXACT)
    assert_close(info["radii"], twin.radii)
    seen = twin.radii > 0
    for name in ("means2d", "depths", "conics", "opacities"):
        assert_close(info[name][seen], getattr(twin, name)[seen], **EXACT)
    random_loss(colors, alphas).backward()
    random_loss(twin.colors, twin.alphas).backward()
    for name, leaf in ours.leaves().items():
        expected = theirs.leaves()[name].grad
        if expected is None:
            assert leaf.grad is None, name
            continue
        assert leaf.grad is not None, name
        scale = float(expected.abs().max().clamp_min(1e-6))
        assert_close(leaf.grad / scale, expected / scale, **tolerance, msg=lambda m, n=name: n + m)
    assert_close(info["means2d"].grad, twin.means2d.grad, **EXACT)
    assert_close(info["means2d"].absgrad, twin.absolute_gradient(), **EXACT)


def facing(depths: list[float], *, size: float = 0.05, dtype: Any = torch.float64) -> SplatScene:
    """Round white Gaussians one behind the other on the axis through the centre of pixel (8, 8)."""
    num = len(depths)
    return SplatScene(
        means=torch.stack([torch.zeros(num), torch.zeros(num), torch.tensor(depths)], -1),
        quats=torch.tensor([[1.0, 0, 0, 0]]).expand(num, 4),
        scales=torch.full((num, 3), size),
        opacities=torch.full((num,), 0.5),
        colors=torch.ones(num, 3),
        viewmats=torch.eye(4)[None],
        backgrounds=torch.zeros(1, 3),
        Ks=torch.tensor([[[20.0, 0, 8.5], [0, 20.0, 8.5], [0, 0, 1]]]),
        width=17,
        height=17,
    ).fresh(dtype=dtype)


@pytest.mark.parametrize("render_mode", MODES)
def test_values_and_gradients_equal_the_twin(render_mode: str) -> None:
    compare(make_splat_scene(), render_mode=render_mode)


@pytest.mark.parametrize("render_mode", ["RGB", "RGB+ED"])
def test_antialiased_equals_the_twin(render_mode: str) -> None:
    compare(
        make_splat_scene(size=0.08),
        COMPENSATED,
        render_mode=render_mode,
        rasterize_mode="antialiased",
    )


@pytest.mark.parametrize("sh_degree", [0, 1, 2, 3])
def test_each_degree_of_harmonics_equals_the_twin(sh_degree: int) -> None:
    compare(make_splat_scene(seed=sh_degree), sh_degree=sh_degree, backgrounds=None)


def test_harmonics_may_differ_by_camera() -> None:
    scene = make_splat_scene()
    other = torch.stack([scene.colors, scene.colors.flip(0)])
    compare(replace(scene, colors=other))


@pytest.mark.parametrize("shape", [(40, 1), (40, 5), (2, 40, 4)])
def test_plain_colours_of_any_width_equal_the_twin(shape: tuple[int, ...], rng: Any) -> None:
    scene = make_splat_scene()
    colors = torch.rand(shape, generator=rng, dtype=torch.float64)
    backgrounds = torch.rand(2, shape[-1], generator=rng, dtype=torch.float64)
    scene = replace(scene, colors=colors, backgrounds=backgrounds)
    compare(scene, sh_degree=None, render_mode="RGB+D")


@pytest.mark.parametrize(
    "options",
    [
        {"tile_size": 8},
        {"tile_size": 11},
        {"eps2d": 1.5},
        {"near_plane": 3.8, "far_plane": 4.4},
        {"radius_clip": 12.0},
    ],
)
def test_options_equal_the_twin(options: dict[str, Any]) -> None:
    compare(make_splat_scene(seed=3), **options)


@pytest.mark.parametrize("size", [1e-4, 1.5, 40.0])
def test_tiny_and_huge_gaussians_equal_the_twin(size: float) -> None:
    # Huge footprints have conics near 0, whose gradients are large: a looser relative measure.
    compare(make_splat_scene(25, size=size), {"rtol": 1e-6, "atol": 1e-7})


def test_needles_equal_the_twin() -> None:
    scene = make_splat_scene(60, seed=5)
    needles = scene.scales.detach() * torch.tensor([30.0, 0.02, 0.02])
    compare(replace(scene, scales=needles), {"rtol": 1e-7, "atol": 1e-8})


def test_finite_differences_agree_with_the_gradients() -> None:
    scene = make_splat_scene(4, 1, height=7, width=9, size=0.5, seed=1)

    def render(*leaves: Tensor) -> tuple[Tensor, Tensor]:
        names = tuple(scene.leaves())
        moved = replace(scene, **dict(zip(names, leaves, strict=True)))
        return run_fast(moved, render_mode="RGB+ED")[:2]

    leaves = tuple(scene.leaves().values())
    assert torch.autograd.gradcheck(render, leaves, eps=1e-6, atol=1e-5, rtol=1e-4)


def test_single_precision_follows_double() -> None:
    scene = make_splat_scene(300, seed=2)
    exact, rough = scene.fresh(), scene.fresh(dtype=torch.float32)
    results = [run_fast(s, render_mode="RGB+ED") for s in (exact, rough)]
    assert results[1][0].dtype == torch.float32
    for (colors, alphas, _), s in zip(results, (exact, rough), strict=True):
        random_loss(colors, alphas).backward()
        assert s.means.grad is not None
    assert_close(results[1][1].double(), results[0][1], rtol=1e-4, atol=1e-4)
    assert_close(results[1][0].double(), results[0][0], rtol=1e-3, atol=1e-3)
    for name, leaf in rough.leaves().items():
        expected = exact.leaves()[name].grad
        assert leaf.grad is not None
        assert expected is not None
        error = (leaf.grad.double() - expected).norm() / expected.norm()
        assert error < 1e-3, (name, float(error))


def test_results_do_not_depend_on_the_number_of_threads() -> None:
    scene = make_splat_scene(5000, size=0.02, height=64, width=96, dtype=torch.float32)
    before, grads = torch.get_num_threads(), []
    try:
        for num_threads in (1, 3):
            torch.set_num_threads(num_threads)
            own = scene.fresh()
            colors, alphas, info = run_fast(own)
            random_loss(colors, alphas).backward()
            leaves = [leaf.grad for leaf in own.leaves().values()]
            grads.append([colors, *leaves, info["means2d"].absgrad])
    finally:
        torch.set_num_threads(before)
    for one, three in zip(*grads, strict=True):
        assert torch.equal(one, three)


@pytest.mark.parametrize("rasterize_mode", ["classic", "antialiased"])
def test_packed_results_are_the_seen_rows_of_the_others(rasterize_mode: str) -> None:
    scene = make_splat_scene(seed=4)
    full, packed = scene.fresh(), scene.fresh()
    dense = run_fast(full, rasterize_mode=rasterize_mode, render_mode="RGB+D")
    short = run_fast(packed, rasterize_mode=rasterize_mode, render_mode="RGB+D", packed=True)
    assert torch.equal(dense[0], short[0])
    cameras, gaussians = torch.nonzero(dense[2]["radii"], as_tuple=True)
    assert 0 < len(gaussians) < dense[2]["radii"].numel()
    assert torch.equal(short[2]["camera_ids"], cameras)
    assert torch.equal(short[2]["gaussian_ids"], gaussians)
    for colors, alphas, _ in (dense, short):
        random_loss(colors, alphas).backward()
    for name in ("radii", "means2d", "depths", "conics", "opacities", "tiles_per_gauss"):
        assert torch.equal(short[2][name], dense[2][name][cameras, gaussians]), name
    for name in ("grad", "absgrad"):
        expected = getattr(dense[2]["means2d"], name)[cameras, gaussians]
        assert torch.equal(getattr(short[2]["means2d"], name), expected)
    for name, leaf in packed.leaves().items():
        assert_close(leaf.grad, full.leaves()[name].grad, **EXACT)


def test_tile_lists_are_gsplats() -> None:
    scene = make_splat_scene(200, seed=6, dtype=torch.float32)
    _, _, info = run_fast(scene)
    sizes = (info["tile_width"], info["tile_height"])
    lists = _isect_tiles(info["means2d"], info["radii"], info["depths"], 16, *sizes)
    assert_close(info["tiles_per_gauss"], lists[0])
    assert torch.equal(info["isect_ids"], lists[1])
    assert torch.equal(info["flatten_ids"], lists[2])
    assert torch.equal(info["isect_offsets"], _isect_offset_encode(lists[1], 2, *sizes))


def test_info_has_the_keys_of_gsplat() -> None:
    _, _, info = run_fast(make_splat_scene())
    assert set(info) == {
        "camera_ids", "gaussian_ids", "radii", "means2d", "depths", "conics", "opacities",
        "tile_width", "tile_height", "tiles_per_gauss", "isect_ids", "flatten_ids",
        "isect_offsets", "width", "height", "tile_size", "n_cameras",
    }  # fmt: skip
    assert (info["width"], info["height"], info["n_cameras"]) == (45, 33, 2)
    assert info["radii"].dtype == torch.int32
    assert info["radii"].shape == (2, 40)


def test_one_gaussian_has_the_closed_form() -> None:
    scene = facing([4.0], size=0.5)
    colors, alphas, info = run_fast(scene, sh_degree=None, render_mode="RGB+ED")
    variance = (20.0 * 0.5 / 4.0) ** 2 + 0.3
    distance = torch.arange(17, dtype=torch.float64) - 8
    squared = distance[:, None] ** 2 + distance[None] ** 2
    expected = 0.5 * torch.exp(-squared / (2 * variance))
    expected = torch.where(expected >= 1 / 255, expected, 0)
    assert_close(alphas[0, ..., 0], expected)
    assert_close(colors[0, ..., 0], expected)
    assert_close(colors[0, ..., 3], torch.where(expected > 0, 4.0, 0.0).double())
    assert info["radii"].item() == 8  # 3 * sqrt(6.55 + sqrt(0.01)) = 7.74
    assert_close(info["means2d"][0, 0].detach(), torch.tensor([8.5, 8.5]).double())


def test_blending_stops_before_the_last_ten_thousandth() -> None:
    # Half of the light passes each; 2^-14 would be the first under 1e-4.
    scene = facing([2.0 + 0.1 * i for i in range(20)])
    _, alphas, _ = run_fast(scene, sh_degree=None)
    assert alphas[0, 8, 8, 0].item() == 1 - 2**-13


def test_nearer_gaussians_cover_farther_ones_in_any_order() -> None:
    scene = facing([3.0, 1.0, 2.0])
    colors = torch.eye(3).double()
    render, _, _ = run_fast(replace(scene, colors=colors), sh_degree=None)
    assert_close(render[0, 8, 8].detach(), torch.tensor([0.125, 0.5, 0.25]).double())


def test_opacity_is_held_under_0999_and_has_no_gradient_there() -> None:
    scene = replace(facing([2.0]), opacities=torch.ones(1).double().requires_grad_())
    _, alphas, _ = run_fast(scene, sh_degree=None)
    assert alphas[0, 8, 8, 0].item() == pytest.approx(0.999, abs=1e-12)
    (grad,) = torch.autograd.grad(alphas[0, 8, 8, 0], scene.opacities)
    assert grad.item() == 0


def unseen() -> dict[str, SplatScene]:
    """Scenes of which nothing is seen."""
    scene = facing([2.0, 3.0])
    return {
        "none": facing([]),
        "behind": facing([-2.0, -3.0]),
        "in the camera": facing([0.0, 0.0]),
        "beside": replace(scene, means=scene.means.detach() + 100 * torch.eye(3)[0].double()),
        "transparent": replace(scene, opacities=torch.full((2,), 1 / 256).double()),
    }


@pytest.mark.parametrize("name", list(unseen()))
@pytest.mark.parametrize("packed", [False, True])
def test_what_is_not_seen_leaves_the_background(name: str, packed: bool) -> None:
    scene = replace(unseen()[name], backgrounds=torch.full((1, 3), 0.25).double()).fresh()
    options = {"sh_degree": None, "render_mode": "RGB+ED", "packed": packed}
    colors, alphas, info = run_fast(scene, **options)
    assert torch.equal(colors[..., :3], torch.full((1, 17, 17, 3), 0.25).double())
    assert torch.equal(alphas, torch.zeros(1, 17, 17, 1).double())
    assert torch.equal(colors[..., 3:], torch.zeros(1, 17, 17, 1).double())
    random_loss(colors, alphas).backward()
    for leaf in (scene.means, scene.quats, scene.scales, scene.opacities, scene.colors):
        assert leaf.grad is not None
        assert torch.equal(leaf.grad, torch.zeros_like(leaf))
    assert info["means2d"].absgrad.shape == info["means2d"].shape
    assert int((info["radii"] > 0).sum()) == (2 if name == "transparent" else 0)


def test_broken_gaussians_are_left_out() -> None:
    scene = facing([2.0, 2.0, 2.0, 3.0], dtype=torch.float32)
    scales, means = scene.scales.detach().clone(), scene.means.detach().clone()
    scales[0], scales[1, 0], means[2, 2] = torch.inf, torch.nan, torch.nan
    _, alphas, info = run_fast(replace(scene, scales=scales, means=means), sh_degree=None)
    assert (info["radii"][0] > 0).tolist() == [False, False, False, True]
    assert alphas[0, 8, 8, 0].item() == pytest.approx(0.5)


@pytest.mark.parametrize("absgrad", [False, True])
def test_gsplats_default_strategy_grows_on_it(absgrad: bool) -> None:
    scene = make_splat_scene(60, 1, dtype=torch.float32)
    params = torch.nn.ParameterDict(
        {
            "means": scene.means.detach(),
            "quats": scene.quats.detach(),
            "scales": scene.scales.detach().log(),
            "opacities": torch.logit(scene.opacities.detach()),
            "colors": scene.colors.detach(),
        }
    )
    optimizers = {k: torch.optim.Adam([p], lr=1e-3) for k, p in params.items()}
    strategy = DefaultStrategy(refine_start_iter=0, refine_every=1, absgrad=absgrad)
    strategy.check_sanity(params, optimizers)
    state = strategy.initialize_state()
    colors, _, info = rasterize(
        params["means"],
        params["quats"],
        params["scales"].exp(),
        params["opacities"].sigmoid(),
        params["colors"],
        scene.viewmats.detach(),
        scene.Ks,
        scene.width,
        scene.height,
        sh_degree=3,
        packed=False,
        absgrad=absgrad,
    )
    strategy.step_pre_backward(params, optimizers, state, 1, info)
    colors.square().mean().backward()
    strategy.step_post_backward(params, optimizers, state, 1, info)
    assert len(params["means"]) > 60


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"sh_degree": 4}, "needs 25 harmonics"),
        ({"sh_degree": None}, "N D"),
        ({"sparse_grad": True}, "CUDA only"),
        ({"tile_size": 0}, "at least one pixel"),
    ],
)
def test_bad_options_get_one_sentence(change: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        run_fast(make_splat_scene(), **change)


def test_the_fifth_degree_is_refused_on_the_cpu() -> None:
    scene = make_splat_scene()
    scene = replace(scene, colors=torch.zeros(40, 36, 3).double())
    with pytest.raises(InputError, match="up to degree 3"):
        run_fast(scene, sh_degree=5)
