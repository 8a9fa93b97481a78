"""Renders mixed with a generator's frames: where a frame is made, how it counts, what stays out."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from nerfstudio.cameras.cameras import CameraType
from nerfstudio.data.scene_box import OrientedBox
from pipelines import advance, open_pipeline, start_run, write_room

from fvgen_nerfstudio import refiner
from fvgen_nerfstudio.camera import to_nerfstudio
from fvgen_nerfstudio.pipeline import FvgenPipeline
from fvgen_nerfstudio.refinement import UNREFINED, RefineSettings, pinhole
from fvgen_nerfstudio.refiner import Refiner
from fvgen_recon.densify.densifier import Inputs
from fvgen_recon.errors import InputError, WeightsError
from fvgen_recon.fusion.checkpoint import save_fusion
from fvgen_recon.fusion.config import FusionConfig
from fvgen_recon.fusion.network import FusionNetwork
from fvgen_recon.fusion.view import ViewFacts
from fvgen_recon.render.procedural import arc_cameras, random_scene, render_procedural
from fvgen_recon.types import Cameras, PointCloud, Scene

FILL = RefineSettings(generator="fill", num_frames=5)
"""With the fusion that the package chooses."""


@pytest.fixture(scope="module")
def truth() -> tuple[Scene, PointCloud]:
    """Return seven views of a scene with exact points of the first, the middle and the last."""
    from fvgen_recon.geometry.projection import unproject_depth

    cameras = arc_cameras([-12.0, -8.0, -4.0, 0.0, 4.0, 8.0, 12.0], radius=3.0, height=48, width=64)
    shown = render_procedural(random_scene(3), cameras, supersample=1)
    names = tuple(f"{i}.png" for i in range(7))
    inputs = [0, 3, 6]
    xyz, _ = unproject_depth(shown.depth[inputs], cameras[inputs])
    view = torch.arange(3)[:, None, None].expand(shown.depth[inputs].shape).flatten()
    cloud = PointCloud(
        xyz=xyz.reshape(-1, 3),
        rgb=shown.images[inputs].permute(0, 2, 3, 1).reshape(-1, 3),
        confidence=torch.ones(len(view)),
        view=view,
    )
    return Scene(images=shown.images, cameras=cameras, names=names), cloud


def _refiner(
    truth: tuple[Scene, PointCloud], settings: RefineSettings = FILL, views: tuple = (0, 3, 6)
) -> Refiner:
    whole, cloud = truth
    scene = Scene(
        images=whole.images[list(views)],
        cameras=whole.cameras[list(views)],
        names=tuple(whole.names[view] for view in views),
    )
    return Refiner(settings, lambda: Inputs(scene=scene, points=cloud), "cpu")


def _error(image: torch.Tensor, photo: torch.Tensor) -> float:
    return float((image - photo).abs().mean())


@pytest.mark.parametrize("view", [1, 2, 5])
def test_the_frame_is_that_of_the_pose(truth, view):
    images, cameras = truth[0].images, truth[0].cameras
    frame = _refiner(truth).frame(cameras[view])
    assert frame is not None
    assert _error(frame.image, images[view]) < 0.05
    others = [_error(frame.image, images[i]) for i in range(7) if i != view]
    assert _error(frame.image, images[view]) < min(others)


def test_the_pose_of_an_input_shows_what_its_photo_shows(truth):
    whole = truth[0]
    frame = _refiner(truth).frame(whole.cameras[3])
    assert frame is not None
    assert _error(frame.image, whole.images[3]) < 0.05


@pytest.mark.parametrize("size", [(48, 48), (24, 32), (96, 128), (30, 100)])
def test_cameras_of_other_sizes_and_shapes_get_frames_of_their_own(truth, size):
    camera = replace(truth[0].cameras[2], height=size[0], width=size[1])
    K = camera.K.clone()
    K[0, 2], K[1, 2] = size[1] / 2, size[0] / 2
    K[:2, :2] *= size[0] / 48
    camera = replace(camera, K=K)
    frame = _refiner(truth).frame(camera)
    assert frame is not None
    assert frame.image.shape == (3, *size)
    assert frame.trusted.shape == frame.layered.shape == (1, *size)
    row = Cameras(c2w=camera.c2w[None], K=K[None], height=size[0], width=size[1])
    photo = render_procedural(random_scene(3), row, supersample=1).images[0]
    centre = slice(size[1] // 2 - size[0] // 3, size[1] // 2 + size[0] // 3)
    assert _error(frame.image[..., centre], photo[..., centre]) < 0.08


def test_the_generator_works_at_no_more_than_the_size_it_is_told(truth):
    seen = []

    class Spy:
        num_frames, size_multiple, is_raw = 5, 16, False

        def generate(self, guidance, *, seed):
            seen.append(tuple(guidance.frames.shape))
            return guidance.frames

    refiner = _refiner(truth, replace(FILL, long_side=32))
    refiner.__dict__["generator"] = Spy()
    frame = refiner.frame(truth[0].cameras[2])
    assert seen == [(5, 3, 32, 32)]
    assert frame is not None
    assert frame.image.shape == (3, 48, 64)
    assert frame.scale == pytest.approx((32 * 32 / (48 * 64)) ** 0.5)


@pytest.mark.parametrize(
    ("file", "given", "asked"),
    [("config.json", None, 5), ("model_index.json", None, None), ("model_index.json", 25, 25)],
)
def test_clips_have_the_length_that_the_model_makes(
    tmp_path, monkeypatch, truth, file, given, asked
):
    (tmp_path / file).touch()
    seen = []
    monkeypatch.setattr("fvgen_nerfstudio.refiner.load_generator", seen.append)
    settings = RefineSettings(generator="student", weights=tmp_path, num_frames=given)
    _ = _refiner(truth, settings).generator
    assert [config.num_frames for config in seen] == [asked]


def test_everything_is_loaded_once(truth):
    whole, cloud = truth
    loaded = []

    def load() -> Inputs:
        loaded.append(1)
        return Inputs(scene=whole, points=cloud)

    refiner = Refiner(FILL, load, "cpu")
    assert not loaded
    for view in (1, 2, 4):
        refiner.frame(whole.cameras[view])
    assert len(loaded) == 1


def test_where_little_is_known_there_is_no_frame(truth):
    camera = truth[0].cameras[2]
    away = camera.c2w.clone()
    away[:3, 3] += 100 * away[:3, 2]
    assert _refiner(truth).frame(replace(camera, c2w=away)) is None
    turned = camera.c2w.clone()
    turned[:3, [0, 2]] *= -1
    turned[:3, 3] *= 4
    assert _refiner(truth).frame(replace(camera, c2w=turned)) is None
    assert _refiner(truth, views=(3,)).frame(camera) is None


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"generator": "magic"}, "No generator `magic` can refine"),
        ({"generator": "render"}, "No generator `render` can refine"),
        ({"generator": "teacher"}, "no weights of a `teacher`"),
        ({"weights": Path("absent")}, "no weights at absent"),
        ({"weight": 1.5}, r"must lie in \[0, 1\]: 1.5 came"),
        ({"num_frames": 2}, "at least three frames: 2 came"),
        ({"fusion": "magic"}, "put together by `magic`: choose one of default, learned, mean"),
        ({"fusion": "learned", "weight": 0.5}, "finds the weight of a frame itself"),
        ({"fusion_weights": Path("absent"), "weight": 0.5}, "finds the weight of a frame itself"),
    ],
)
def test_settings_that_cannot_work_are_refused(truth, settings, sentence):
    with pytest.raises(InputError, match=sentence):
        _refiner(truth, replace(FILL, **settings))


def test_weights_of_the_fusion_must_be_there(truth, tmp_path):
    for fusion in ("learned", "default"):
        with pytest.raises(WeightsError, match="No fusion network at"):
            _refiner(truth, replace(FILL, fusion=fusion, fusion_weights=tmp_path))
    assert _refiner(truth, replace(FILL, fusion="mean", fusion_weights=tmp_path)).fusion is None


def test_the_network_is_the_default_where_it_ships_and_no_weight_is_set(monkeypatch, tmp_path):
    monkeypatch.setattr(refiner, "SHIPPED_FUSION", tmp_path / "fusion")
    assert refiner.fusion_folder(FILL) is None
    assert refiner.fusion_folder(replace(FILL, fusion="learned")) == tmp_path / "fusion"
    (tmp_path / "fusion").mkdir()
    assert refiner.fusion_folder(FILL) == tmp_path / "fusion"
    assert refiner.fusion_folder(replace(FILL, weight=0.5)) is None
    assert refiner.fusion_folder(replace(FILL, fusion="mean")) is None


@pytest.mark.parametrize(
    ("num_members", "num_inputs", "share"),
    [(1, 2, 1 / 2), (1, 3, 1 / 2), (3, 3, 1 / 4), (1, 9, 1 / 4), (2, 6, 1 / 5)],
)
def test_a_frame_counts_as_a_member_and_less_beside_many_photos(num_members, num_inputs, share):
    assert RefineSettings().share(num_members, num_inputs) == pytest.approx(share)
    assert RefineSettings(weight=0.7).share(num_members, num_inputs) == 0.7


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("room")
    write_room(folder)
    return folder


def _pipeline(room: Path, **options) -> FvgenPipeline:
    settings = RefineSettings(generator="fill", num_frames=5, **options)
    return open_pipeline(
        room, estimator="plane-sweep", strategy="none", refine=settings, generator="none"
    )


def _camera(pipeline: FvgenPipeline):
    return to_nerfstudio(pipeline.datamanager.scene.cameras[1])


def test_images_are_mixed_outside_of_training_alone(room):
    pipeline = _pipeline(room, fusion="mean")
    model, camera = pipeline.model.eval(), _camera(pipeline)
    with torch.no_grad():
        alone = model(camera)
        outputs = model.get_outputs_for_camera(camera)
    assert model.frame_source is not None
    pose = pinhole(camera)
    assert pose is not None
    frame = model.frame_source.frame(pose)
    assert frame is not None
    torch.testing.assert_close(outputs[UNREFINED], alone["rgb"])
    middle = (alone["rgb"] + frame.image.permute(1, 2, 0)) / 2
    torch.testing.assert_close(outputs["rgb"], middle, atol=1e-5, rtol=0)
    assert (outputs["rgb"] - alone["rgb"]).abs().max() > 0.02
    for name in ("depth", "accumulation"):
        assert torch.equal(outputs[name], alone[name])
    model.optimizers = {}
    trained = model.train()(camera)
    assert UNREFINED not in trained
    torch.testing.assert_close(trained["rgb"], alone["rgb"], atol=0.02, rtol=0)


def test_the_frame_gets_the_brightness_of_the_photos_around(room):
    pipeline = _pipeline(room, weight=1.0)
    model, camera = pipeline.model.eval(), _camera(pipeline)
    before = model.get_outputs_for_camera(camera)["rgb"]
    model.exposure.log_brightness.fill_(-0.5)
    after = model.get_outputs_for_camera(camera)["rgb"]
    torch.testing.assert_close(after, before * torch.tensor(-0.5).exp(), atol=1e-5, rtol=1e-4)


def test_a_network_puts_both_together_where_there_are_weights(room, tmp_path):
    network = FusionNetwork(FusionConfig(widths=(4, 6), num_blocks=(1, 1)))
    assert network.head.bias is not None
    network.head.bias.data = torch.tensor([50.0, 50.0, 0.0])  # The frame alone, in both bands.
    save_fusion(tmp_path, network, {})
    pipeline = _pipeline(room, fusion_weights=tmp_path)
    model, camera = pipeline.model.eval(), _camera(pipeline)
    model.exposure.log_brightness.fill_(-0.5)
    assert not any("fusion" in name for name in pipeline.state_dict())
    outputs = model.get_outputs_for_camera(camera)
    pose, source = pinhole(camera), model.frame_source
    assert pose is not None
    assert source is not None
    frame = source.frame(pose)
    assert frame is not None
    lit = frame.image.permute(1, 2, 0) * torch.tensor(-0.5).exp()
    share = source.settings.share(model.config.num_members, model.num_train_data)
    plain = torch.lerp(outputs[UNREFINED], lit, share)
    torch.testing.assert_close(outputs["rgb"], 0.4 * plain + 0.6 * lit, atol=1e-5, rtol=0)
    assert float((outputs["rgb"] - outputs[UNREFINED]).abs().max()) > 0.05


def test_the_network_is_told_what_is_known_of_the_view(room):
    pipeline = _pipeline(room)
    model, camera, seen = pipeline.model.eval(), _camera(pipeline), []

    class Spy:
        settings = pipeline.config.refine
        frame = staticmethod(model.frame_source.frame)

        def fuse(self, view):
            seen.append(view)
            return view.splat

    model.frame_source = Spy()
    outputs = model.get_outputs_for_camera(camera)
    assert torch.equal(outputs["rgb"], outputs[UNREFINED])
    (view,) = seen
    assert torch.equal(view.opacity[0, 0], outputs["accumulation"][..., 0])
    assert float(view.spread.max()) == 0
    facts = ViewFacts.from_row(view.facts[0].tolist())
    assert (facts.share, facts.num_inputs, facts.num_members) == (0.5, 3, 1)
    # The pose is an input's own, and frames are made at twice the render's size.
    assert facts.angle == pytest.approx(0, abs=1e-3)
    assert facts.distance == pytest.approx(0, abs=1e-3)
    assert facts.scale == pytest.approx(2)


def test_where_the_pose_is_and_what_was_rendered_there_comes_with_the_frame(truth):
    frame = _refiner(truth).frame(truth[0].cameras[2])
    assert frame is not None
    # The nearest input is the one a third of the way from input to input ahead.
    directions = truth[0].cameras.direction.double()
    angle = math.acos(float(directions[2] @ directions[3]))
    assert frame.angle == pytest.approx(angle, abs=1e-4)
    assert frame.distance == pytest.approx(1 / 3, abs=0.02)
    for mask in (frame.trusted, frame.layered):
        assert float(mask.mean()) > 0.5
        assert float(mask.min()) < 1


@pytest.mark.parametrize("case", ["box", "fisheye", "bent"])
def test_without_a_frame_the_image_is_the_splat_s(room, case):
    pipeline = _pipeline(room)
    model, camera, box = pipeline.model.eval(), _camera(pipeline), None
    if case == "box":
        box = OrientedBox(R=torch.eye(3), T=torch.zeros(3), S=torch.full((3,), 50.0))
    elif case == "fisheye":
        camera.camera_type = torch.full_like(camera.camera_type, CameraType.FISHEYE.value)
    else:
        camera.camera_to_worlds[..., :3] *= 1.2
    outputs = model.get_outputs_for_camera(camera, box)
    assert torch.equal(outputs["rgb"], outputs[UNREFINED])


def test_checkpoints_do_not_hold_the_generator_and_bring_the_same_image_back(room, tmp_path):
    pipeline = _pipeline(room)
    advance(pipeline, start_run(pipeline, tmp_path), range(2))
    plain = open_pipeline(room, generator="none")
    pipeline.eval()
    camera = _camera(pipeline)
    image = pipeline.model.get_outputs_for_camera(camera)["rgb"]
    assert set(pipeline.state_dict()) == set(plain.state_dict())

    config = pipeline.config
    other = config.setup(device="cpu", test_mode="test")
    assert isinstance(other, FvgenPipeline)
    other.load_pipeline(pipeline.state_dict(), 1)
    again = other.eval().model.get_outputs_for_camera(camera)["rgb"]
    torch.testing.assert_close(again, image, atol=1e-5, rtol=0)


def test_the_configuration_of_a_run_from_before_works(room):
    pipeline = open_pipeline(room, generator="none")
    config = pipeline.config
    del config.refine
    other = config.setup(device="cpu", test_mode="test")
    assert isinstance(other, FvgenPipeline)
    assert other.model.frame_source is None


def test_mistakes_end_with_one_sentence_before_training(room, capsys):
    with pytest.raises(SystemExit) as stop:
        open_pipeline(room, refine=RefineSettings(generator="magic"))
    assert stop.value.code == 2
    assert "No generator `magic` can refine renders" in capsys.readouterr().err
