"""One brightness for all photos: right where surfaces match, careful where they do not."""

from dataclasses import dataclass, replace

import pytest
import torch
from factories import make_cameras, make_cloud

from fvgen_nerfstudio.camera import to_nerfstudio
from fvgen_nerfstudio.datamanager import FvgenDatamanagerConfig
from fvgen_nerfstudio.dataparser import FvgenDataParserConfig
from fvgen_nerfstudio.exposure import Exposure, apply_gains, estimate_gains
from fvgen_nerfstudio.source import fit_similarity
from fvgen_recon.geometry.projection import camera_rays
from fvgen_recon.io.image import write_image
from fvgen_recon.io.scenes import write_transforms
from fvgen_recon.pointcloud import ESTIMATORS
from fvgen_recon.pointcloud.depth_map import DepthMaps, lift_depth
from fvgen_recon.types import PointCloud, Scene

GAINS = torch.tensor([[1.0, 1.0, 1.0], [0.7, 0.75, 0.8], [1.2, 1.15, 1.1]])
"""Brightness of the photos, by channel."""


def _plane(gains: torch.Tensor = GAINS) -> tuple[Scene, PointCloud]:
    """A painted plane through the origin, seen in three brightnesses."""
    cameras = make_cameras(3, 48, 64)
    rays = camera_rays(cameras)
    rays = rays / (rays @ cameras.c2w[:, None, :3, 2, None])  # One unit along the optical axis.
    depth = -cameras.position[:, None, None, 2] / rays[..., 2]
    x, y, _ = (cameras.position[:, None, None] + depth[..., None] * rays).unbind(-1)
    paint = torch.stack([(3 * x).sin(), (4 * y).cos(), (2 * x + 3 * y).sin()], dim=1)
    images = (0.45 + 0.2 * paint) * gains[..., None, None]
    scene = Scene(images=images, cameras=cameras, names=("a", "b", "c"))
    maps = DepthMaps(depth=depth, confidence=torch.full_like(depth, 0.9))
    return scene, lift_depth(scene, maps)


def test_photos_come_to_the_brightness_of_their_mean():
    scene, cloud = _plane()
    gains = estimate_gains(scene.images, scene.cameras, cloud)
    share = gains.log() / (GAINS.log().mean(0) - GAINS.log())
    assert share.min() > 0.8  # Not all: some of it may be shade.
    assert share.max() < 1.0
    torch.testing.assert_close(gains.log().mean(0), torch.zeros(3), atol=1e-5, rtol=0)


def test_small_differences_stay():
    for gains in (torch.ones(3, 3), GAINS**0.2):
        scene, cloud = _plane(gains)
        found = estimate_gains(scene.images, scene.cameras, cloud)
        torch.testing.assert_close(found, torch.ones(3, 3))


def test_what_does_not_match_changes_little(rng):
    scene, cloud = _plane()
    noise = 0.1 + 0.8 * torch.rand(scene.images.shape, generator=rng)
    wrong = noise * torch.tensor([1.0, 0.6, 1.0])[:, None, None, None]
    colours = wrong.permute(0, 2, 3, 1).reshape(-1, 3)
    cloud = PointCloud(xyz=cloud.xyz, rgb=colours, confidence=cloud.confidence, view=cloud.view)
    torch.testing.assert_close(estimate_gains(wrong, scene.cameras, cloud), torch.ones(3, 3))


@pytest.mark.parametrize("confidence", [0.9, 0.3])
def test_nothing_to_compare_leaves_photos_alone(confidence):
    scene, cloud = _plane()
    lost = PointCloud(
        xyz=make_cloud(len(cloud)).xyz + 100,
        rgb=cloud.rgb,
        confidence=torch.full_like(cloud.confidence, confidence),
        view=cloud.view,
    )
    gains = estimate_gains(scene.images, scene.cameras, lost)
    torch.testing.assert_close(gains, torch.ones(3, 3))


def test_renders_have_the_brightness_of_the_photos_around():
    known = {"photo_brightness": GAINS, "photo_position": torch.eye(3)}
    exposure = Exposure(3, known)
    torch.testing.assert_close(exposure.at(torch.eye(3)[1]), GAINS[1], atol=1e-3, rtol=0)
    far, mean = exposure.at(torch.full((3,), 1e4)), GAINS.log().mean(0).exp()
    torch.testing.assert_close(far, mean, atol=1e-3, rtol=0)
    near = exposure.at(torch.tensor([0.1, 0.9, 0.0]))
    assert (near > GAINS[1]).all()
    assert (near < mean).all()


def test_training_compares_each_photo_in_its_own_brightness():
    exposure = Exposure(3, {"photo_brightness": GAINS, "photo_position": torch.eye(3)})
    camera, grey = to_nerfstudio(make_cameras(3)[0]), torch.full((1, 2, 2, 3), 0.5)
    assert torch.equal(exposure(grey, camera), grey)  # A generated view.
    camera.metadata = {"cam_idx": 2}
    torch.testing.assert_close(exposure(grey, camera), grey * GAINS[2])
    assert not torch.equal(exposure.eval()(grey, camera), grey * GAINS[2])


def test_clipped_values_stay_in_range():
    images = torch.tensor([0.0, 0.5, 1.0]).expand(1, 3, 1, 3)
    bright = apply_gains(images, torch.full((1, 3), 1.5))
    torch.testing.assert_close(bright[0, 0, 0], torch.tensor([0.0, 0.75, 1.0]))


@dataclass
class _Measured:
    """A source of points that are known."""

    cloud: PointCloud

    def estimate(self, scene: Scene) -> PointCloud:
        return self.cloud


@pytest.mark.parametrize("is_on", [True, False])
def test_points_and_the_generators_photos_are_matched_and_training_s_are_not(
    tmp_path, monkeypatch, is_on
):
    scene, cloud = _plane()
    names = tuple(f"images/{name}.png" for name in scene.names)
    for name, image in zip(names, scene.images, strict=True):
        write_image(tmp_path / name, image)
    write_transforms(tmp_path, scene.cameras, names)
    # Guesses at other depths are moved and matched as the points are.
    moved = fit_similarity(scene.cameras).points(replace(cloud, alternatives=(cloud,)))
    torch.testing.assert_close(moved.alternatives[0].xyz, moved.xyz)
    monkeypatch.setitem(ESTIMATORS, "measured", lambda: _Measured(moved))
    parser = FvgenDataParserConfig(data=tmp_path, estimator="measured", match_exposure=is_on)
    data = FvgenDatamanagerConfig(dataparser=parser).setup(device="cpu", test_mode="val")

    camera, batch = data.next_train(0)
    shot = scene.images[camera.metadata["cam_idx"]].permute(1, 2, 0)
    torch.testing.assert_close(batch["image"] / 255, shot, atol=0.003, rtol=0)
    gains = data.dataparser.gains
    assert bool((gains != 1).any()) == is_on
    matched = apply_gains(scene.images, gains)
    torch.testing.assert_close(data.scene.images, matched, atol=0.005, rtol=0)
    rgb = data.dataparser.points.rgb.view(3, 48, 64, 3).permute(0, 3, 1, 2)
    torch.testing.assert_close(rgb, matched, atol=1e-5, rtol=0)
    assert torch.equal(data.dataparser.points.alternatives[0].rgb, data.dataparser.points.rgb)
    metadata = data.train_dataparser_outputs.metadata
    torch.testing.assert_close(metadata["photo_brightness"], 1 / gains)
    positions = data.scene.cameras.position
    torch.testing.assert_close(metadata["photo_position"], positions, atol=1e-5, rtol=0)
