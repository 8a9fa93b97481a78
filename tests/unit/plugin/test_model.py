"""The splat without CUDA and without a network: renders, losses, checkpoints, new Gaussians."""

import pytest
import torch
from factories import make_cameras, make_cloud
from nerfstudio.cameras.cameras import Cameras as NerfCameras
from nerfstudio.cameras.cameras import CameraType
from nerfstudio.data.scene_box import OrientedBox, SceneBox
from nerfstudio.models.splatfacto import SplatfactoModel

from fvgen_nerfstudio.camera import to_nerfstudio, view_matrices
from fvgen_nerfstudio.gaussian import NAMES
from fvgen_nerfstudio.metric import ImageMetrics
from fvgen_nerfstudio.model import FvgenModel, FvgenModelConfig
from fvgen_nerfstudio.perceptual import PerceptualMetrics
from fvgen_recon.errors import WeightsError


def _model(num_points: int = 60, **options) -> FvgenModel:
    torch.manual_seed(0)
    cloud = make_cloud(num_points)
    config = FvgenModelConfig(sh_degree=1, num_downscales=0, background_color="black", **options)
    model = config.setup(
        scene_box=SceneBox(aabb=torch.tensor([[-1.0] * 3, [1.0] * 3])),
        num_train_data=3,
        seed_points=(cloud.xyz, cloud.rgb * 255),
    )
    assert isinstance(model, FvgenModel)
    return model


def _seeded(num_points: int = 60, **options) -> FvgenModel:
    """A splat whose points know their member, their confidence and their width."""
    cloud = make_cloud(num_points)
    config = FvgenModelConfig(sh_degree=0, num_downscales=0, background_color="black", **options)
    model = config.setup(
        scene_box=SceneBox(aabb=torch.tensor([[-1.0] * 3, [1.0] * 3])),
        num_train_data=3,
        seed_points=(cloud.xyz, cloud.rgb * 255),
        metadata={
            "points3D_confidence": torch.linspace(0, 1, num_points),
            "points3D_spacing": torch.linspace(0, 0.1, num_points),
            "points3D_member": torch.ones(num_points, dtype=torch.long),
        },
    )
    assert isinstance(model, FvgenModel)
    model.optimizers = _optimizers(model)
    return model


def _photo(view: int) -> NerfCameras:
    camera = to_nerfstudio(make_cameras(3, 24, 32)[view])
    camera.metadata = {"cam_idx": view}
    return camera


def _optimizers(model: FvgenModel) -> dict[str, torch.optim.Optimizer]:
    groups = model.get_gaussian_param_groups()
    return {name: torch.optim.Adam(groups[name], lr=0.01) for name in NAMES}


def _step(model: FvgenModel, batch: dict, step: int = 0) -> dict:
    model.train()
    model.step = step
    outputs = model(to_nerfstudio(make_cameras(3, 24, 32)[1]))
    metrics = model.get_metrics_dict(outputs, batch)
    losses = model.get_loss_dict(outputs, batch, metrics)
    for optimizer in model.optimizers.values():
        optimizer.zero_grad()
    sum(losses.values()).backward()
    for optimizer in model.optimizers.values():
        optimizer.step()
    model.step_post_backward(step)
    return {**metrics, **losses}


@pytest.fixture
def batch(rng) -> dict:
    return {"image": torch.rand(24, 32, 3, generator=rng)}


def test_seeds_take_size_and_opacity_from_what_is_known():
    model = _seeded(seed_size=0.5, seed_opacity=(0.1, 0.7))
    opacity = torch.sigmoid(model.opacities.detach()).squeeze(-1)
    torch.testing.assert_close(opacity, torch.linspace(0.1, 0.7, 60))
    sigma = torch.exp(model.scales.detach())
    torch.testing.assert_close(sigma[1:, 0], torch.linspace(0, 0.05, 60)[1:])
    assert sigma[0, 0] > 0.05  # Of unknown width: as far as its neighbours are.


def test_measured_depth_pulls_gaussians_to_it(batch):
    model = _seeded(depth_weight=1.0).train()
    measured = torch.full((1, 12, 16), 3.0)  # They lie four units from the cameras.
    view = {**batch, "depth": measured, "depth_weight": torch.ones(1, 12, 16)}
    losses = model.get_loss_dict(model(_photo(1)), view)
    losses["depth_loss"].backward()
    towards = -to_nerfstudio(make_cameras(3, 24, 32)[1]).camera_to_worlds[0, :, 2]
    step = -(model.gauss_params["means"].grad @ towards)
    assert step.sum() < 0
    generated = {**view, "is_generated": True, "weight": torch.ones(24, 32, 1), "factor": 1.0}
    assert "depth_loss" not in model.get_loss_dict(model(_photo(1)), generated)


def test_surfaces_are_asked_to_be_opaque_where_no_depth_is_asked_for(batch):
    model = _seeded(solid_weight=0.5, depth_weight=0.0).train()
    measured = {"depth": torch.full((1, 12, 16), 3.0), "depth_weight": torch.ones(1, 12, 16)}
    losses = model.get_loss_dict(model(_photo(1)), {**batch, **measured})
    assert "depth_loss" not in losses
    losses["solid_loss"].backward()
    assert model.gauss_params["opacities"].grad.abs().sum() > 0


def test_dropout_rises_with_the_run_and_never_touches_evaluation():
    model = _seeded(dropout=0.5)
    model.num_steps = 100
    shown = {}
    for step in (0, 50, 100):
        model.step = step
        shown[step] = (model.train()._opacities(model.opacities) == 0).float().mean().item()
    assert shown[0] == 0
    assert 0.05 < shown[50] < 0.45
    assert 0.3 < shown[100] < 0.7
    assert (model.eval()._opacities(model.opacities) > 0).all()


def test_rounds_see_all_gaussians_in_the_midst_of_training():
    model = _seeded(dropout=0.5)
    model.num_steps = model.step = 100
    cameras = make_cameras(3, 24, 32)
    wanted = model.eval().render_black(cameras)
    for ours, plain in zip(model.train().render_black(cameras), wanted, strict=True):
        torch.testing.assert_close(ours, plain)
    assert model.training


def test_unknown_pixels_take_colours_from_around():
    flat, diffuse = (_seeded(unknown=u, seed_size=0.3).eval() for u in ("color", "diffuse"))
    camera = to_nerfstudio(make_cameras(3, 24, 32)[1])
    first, second = (model.get_outputs_for_camera(camera) for model in (flat, diffuse))
    empty = first["accumulation"][..., 0] == 0
    assert empty.any()
    assert first["rgb"][empty].max() == 0
    assert second["rgb"][empty].min() > 0
    trained = diffuse.train()(camera)["rgb"]
    torch.testing.assert_close(trained, first["rgb"])
    always = _seeded(unknown="diffuse-always", seed_size=0.3).train()
    torch.testing.assert_close(always(camera)["rgb"], second["rgb"])


@pytest.mark.parametrize("make", [_seeded, _model])
def test_a_view_without_any_gaussian_has_their_mean_colour_and_is_not_black(make):
    model = make(unknown="diffuse-always").eval()
    camera = to_nerfstudio(make_cameras(3, 24, 32)[1])
    camera.camera_to_worlds[..., 2] *= -1  # Looks away from all of them.
    camera.camera_to_worlds[..., 0] *= -1
    outputs = model.get_outputs_for_camera(camera)
    assert float(outputs["accumulation"].max()) == 0
    mean = model.colors.detach().clamp(0, 1).mean(dim=0)
    assert float(mean.min()) > 0.2
    torch.testing.assert_close(outputs["rgb"], mean.expand(24, 32, 3))


def test_what_is_known_of_gaussians_follows_them_when_they_are_added_and_removed(batch):
    model = _seeded(strategy="default", densify_grad_thresh=0.0, warmup_length=0, refine_every=2)
    assert len(model.strategy_state["member"]) == 60
    for step in (1, 2):
        _step(model, batch, step)
    assert model.num_points != 60
    assert len(model.strategy_state["member"]) == model.num_points
    assert (model.strategy_state["member"] == 1).all()
    assert model.add_points(make_cloud(5, seed=9)) == 5
    assert (model.strategy_state["member"][-5:] == 0).all()


def test_poses_become_the_matrices_that_the_rasteriser_wants():
    cameras = make_cameras(3)
    torch.testing.assert_close(
        view_matrices(to_nerfstudio(cameras).camera_to_worlds), cameras.w2c, atol=1e-6, rtol=0
    )


def test_it_is_a_splatfacto_model_without_networks_inside():
    model = _model()
    assert isinstance(model, SplatfactoModel)
    assert set(model.state_dict()) == {f"gauss_params.{n}" for n in NAMES} | {
        "device_indicator_param",
        "exposure.log_brightness",
        "exposure.position",
        "nearest",
        "_extra_state",
    }


def test_what_hangs_before_a_camera_is_not_drawn_outside_of_training():
    # The points lie about four units from the cameras, and no photo shows anything nearer than 10.
    model = _model()
    model.optimizers = _optimizers(model)
    model.load_state_dict({**model.state_dict(), "nearest": torch.tensor(10.0)})
    camera = _photo(0)
    model.config.near = 0.1
    drawn = model.eval().get_outputs_for_camera(camera)["accumulation"].max()
    assert drawn > 0.05
    model.config.near = 0.9
    assert model.get_outputs_for_camera(camera)["accumulation"].max() == 0
    assert model.render_black(make_cameras(1, 24, 32))[1].max() == 0
    torch.testing.assert_close(model.train()(camera)["accumulation"].max(), drawn)
    older = {name: value for name, value in model.state_dict().items() if name != "nearest"}
    model.load_state_dict(older)
    assert model.eval().get_outputs_for_camera(camera)["accumulation"].max() == drawn


def test_outputs_are_those_of_the_nerfstudio_contract():
    model = _model().eval()
    outputs = model.get_outputs_for_camera(to_nerfstudio(make_cameras(3, 24, 32)[0]))
    shapes = {k: tuple(v.shape) for k, v in outputs.items()}
    image, plane = (24, 32, 3), (24, 32, 1)
    assert shapes == {"rgb": image, "depth": plane, "accumulation": plane, "background": image}
    seen = outputs["accumulation"] > 0.05
    assert seen.any()
    assert outputs["depth"][seen].min() > 1  # The cameras are four units from the points.
    assert outputs["depth"][seen].max() < 7


def test_renders_on_black_agree_with_outputs():
    model = _model().eval()
    cameras = make_cameras(2, 24, 32)
    frames, alpha, depth = model.render_black(cameras)
    outputs = model.get_outputs_for_camera(to_nerfstudio(cameras[1]))
    torch.testing.assert_close(frames[1].permute(1, 2, 0), outputs["rgb"])
    torch.testing.assert_close(alpha[1].permute(1, 2, 0), outputs["accumulation"])
    seen = alpha[1, 0] > 0
    torch.testing.assert_close(depth[1, 0][seen], outputs["depth"][..., 0][seen])
    assert depth[1, 0][~seen].abs().sum() == 0


def test_training_at_half_size_keeps_the_field_of_view():
    model = _model(num_points=200)
    model.config.num_downscales = 1
    camera = to_nerfstudio(make_cameras(3, 24, 32)[0])
    model.optimizers = _optimizers(model)
    half = model.train().get_outputs(camera)["accumulation"].detach()
    full = model.eval().get_outputs_for_camera(camera)["accumulation"].detach()
    assert half.shape == (12, 16, 1)
    assert int(camera.width) == 32
    shrunk = full.reshape(12, 2, 16, 2).mean(dim=(1, 3))
    assert (half[..., 0] - shrunk).abs().mean() < 0.1 * shrunk.mean()


def test_a_generated_view_is_weighed_and_reported_apart(batch):
    model = _model()
    model.optimizers = _optimizers(model)
    real = _step(model, batch)
    assert "psnr" in real
    assert "psnr_real" in real
    assert "psnr_generated" not in real
    none = _step(
        model, {**batch, "is_generated": True, "weight": torch.zeros(24, 32, 1), "factor": 1.0}
    )
    assert none["main_loss"] == 0
    assert "psnr" not in none
    assert "psnr_generated" in none
    assert set(model.running_loss) == {"mixed", "real", "generated"}
    assert model.running_loss["real"] == pytest.approx(real["main_loss"].item())
    assert model.running_loss["generated"] == 0
    assert 0 < model.running_loss["mixed"] < model.running_loss["real"]


def test_full_weight_costs_what_a_photo_costs(batch):
    model = _model()
    model.optimizers = _optimizers(model)
    outputs = model.train()(to_nerfstudio(make_cameras(3, 24, 32)[1]))
    real = model.get_loss_dict(outputs, batch)["main_loss"]
    generated = {**batch, "is_generated": True, "weight": torch.ones(24, 32, 1), "factor": 1.0}
    torch.testing.assert_close(
        model.get_loss_dict(outputs, generated)["main_loss"], real, atol=2e-5, rtol=0
    )


def test_a_small_factor_shrinks_the_loss_and_not_the_growth(batch):
    whole, grown = [], []
    for factor in (1.0, 0.1):
        model = _model()
        model.optimizers = _optimizers(model)
        weight = torch.ones(24, 32, 1)
        view = {**batch, "is_generated": True, "weight": weight, "factor": factor}
        whole.append(_step(model, view)["main_loss"].detach())
        grown.append(model.strategy_state["grad2d"])
    torch.testing.assert_close(whole[1], 0.1 * whole[0])
    assert grown[0].max() > 0
    torch.testing.assert_close(grown[1], grown[0], rtol=1e-3, atol=1e-7)


def test_a_loaded_model_goes_on_training(batch):
    trained = _model(num_points=80)
    fresh = _model(num_points=60)
    fresh.optimizers = _optimizers(fresh)
    before = {name: fresh.gauss_params[name] for name in NAMES}
    fresh.update_to_step(123)
    fresh.load_state_dict(trained.state_dict())
    assert fresh.step == 123
    for name in NAMES:
        assert fresh.gauss_params[name] is before[name]
        assert fresh.gauss_params[name].data_ptr() != trained.gauss_params[name].data_ptr()
        torch.testing.assert_close(fresh.gauss_params[name], trained.gauss_params[name])
    _step(fresh, batch)
    moved = (fresh.gauss_params["features_dc"] - trained.gauss_params["features_dc"]).abs()
    assert moved.max() > 1e-3


def test_checkpoints_of_stock_splatfacto_load_and_others_are_named():
    model = _model()
    state = {**model.state_dict(), "lpips.net.lin0.model.1.weight": torch.ones(1)}
    model.load_state_dict(state, strict=True)
    with pytest.raises(WeightsError, match="not of a splat"):
        model.load_state_dict({"field.weight": torch.ones(3)})
    wrong = {**model.state_dict(), "gauss_params.features_rest": torch.zeros(60, 15, 3)}
    with pytest.raises(WeightsError, match="same SH degree"):
        model.load_state_dict(wrong)


def test_added_gaussians_are_seen_and_the_limit_holds(batch):
    model = _model(max_gaussians=100)
    model.optimizers = _optimizers(model)
    _step(model, batch)
    assert model.add_points(make_cloud(30, seed=3)) == 30
    assert model.num_points == 90
    assert model.add_points(make_cloud(30, seed=4)) == 0
    _step(model, batch, step=1)
    assert model.gauss_params["means"].grad is not None


def test_missing_lpips_is_said_once(monkeypatch, tmp_path, batch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    model = _model().eval()
    said: list[str] = []
    model.image_metrics = ImageMetrics(said.append)
    outputs = model.get_outputs_for_camera(to_nerfstudio(make_cameras(3, 24, 32)[0]))
    for _ in range(2):
        metrics, images = model.get_image_metrics_and_images(outputs, batch)
    assert "lpips" not in metrics
    assert metrics["psnr"] > 0
    assert tuple(images["img"].shape) == (24, 64, 3)
    assert len(said) == 1
    assert "AlexNet" in said[0]


def test_the_viewers_camera_and_crop_box_work():
    from nerfstudio.viewer.utils import CameraState, get_camera

    model = _model().eval()
    c2w = to_nerfstudio(make_cameras(3)[1]).camera_to_worlds[0]
    state = CameraState(fov=0.8, aspect=1.5, c2w=c2w, camera_type=CameraType.PERSPECTIVE)
    camera = get_camera(state, 24, 36)
    whole = model.get_outputs_for_camera(camera)["accumulation"]
    half = OrientedBox.from_params((2.0, 0.0, 0.0), (0.0, 0.0, 0.0), (4.0, 9.0, 9.0))
    cropped = model.get_outputs_for_camera(camera, obb_box=half)["accumulation"]
    nothing = OrientedBox.from_params((50.0, 0.0, 0.0), (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    empty = model.get_outputs_for_camera(camera, obb_box=nothing)
    assert whole.shape == (24, 36, 1)
    assert 0 < cropped.sum() < whole.sum()
    assert empty["accumulation"].sum() == 0
    assert empty["rgb"].shape == (24, 36, 3)


def test_st_lpips_is_reported_under_its_own_name(monkeypatch, tmp_path, rng):
    pytest.importorskip("stlpips_pytorch")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    metrics = PerceptualMetrics(lambda _: None)
    image = torch.rand(1, 3, 64, 96, generator=rng)
    noisy = (image + 0.3 * torch.rand(1, 3, 64, 96, generator=rng)).clamp(0, 1)
    assert set(metrics.measure(image, noisy)) == {"st_lpips"}
    assert metrics.measure(image, image)["st_lpips"] == pytest.approx(0, abs=1e-6)
    noisy_distance = metrics.measure(image, noisy)["st_lpips"]
    assert 1e-3 < noisy_distance < metrics.measure(image, torch.zeros_like(image))["st_lpips"]


def test_a_viewers_crop_box_changes_nothing_of_training():
    model = _seeded(unknown="diffuse-always", seed_size=0.3)
    plain = model.train()(_photo(1))["rgb"]
    far = OrientedBox(R=torch.eye(3), T=torch.full((3,), 9.0), S=torch.ones(3))
    model.eval().get_outputs_for_camera(_photo(1), far)
    torch.testing.assert_close(model.train()(_photo(1))["rgb"], plain)


def test_metrics_after_colour_correction_have_their_own_names(rng):
    model = _model(color_corrected_metrics=True).eval()
    target = torch.rand(24, 32, 3, generator=rng)
    outputs = {"rgb": 0.5 * target + 0.2, "background": torch.zeros(3)}
    metrics, _ = model.get_image_metrics_and_images(outputs, {"image": target})
    assert metrics["cc_psnr"] > metrics["psnr"] + 10
    assert metrics["cc_ssim"] > metrics["ssim"]
    plain, _ = _model().get_image_metrics_and_images(outputs, {"image": target})
    assert not [name for name in plain if name.startswith("cc_")]


@pytest.mark.gpu
def test_cuda_shows_what_the_cpu_shows_and_trains(batch):
    model = _model(num_points=200).eval()
    camera = to_nerfstudio(make_cameras(3, 24, 32)[1])
    expected = model.get_outputs_for_camera(camera)
    model.to("cuda")
    outputs = model.get_outputs_for_camera(camera.to("cuda"))
    for key in ("rgb", "accumulation"):
        torch.testing.assert_close(outputs[key].cpu(), expected[key], atol=2e-3, rtol=0)
    model.optimizers = _optimizers(model)
    before = model.means.detach().clone()
    for step, generated in enumerate((False, True)):
        view = {**batch, "is_generated": generated, "weight": torch.full((24, 32, 1), 0.5)}
        view["factor"] = 0.5
        model.train()
        model.step = step
        losses = model.get_loss_dict(model(camera.to("cuda")), view)
        torch.stack(list(losses.values())).sum().backward()
        for optimizer in model.optimizers.values():
            optimizer.step()
            optimizer.zero_grad()
        model.step_post_backward(step)
    assert (model.means - before).abs().max() > 0
    assert model.add_points(make_cloud(10, seed=5).to("cuda")) == 10
    assert model.means.is_cuda
