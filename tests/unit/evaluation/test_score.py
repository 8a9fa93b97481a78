import math

import pytest
import torch
from factories import make_cameras, make_scene

from fvgen_recon.errors import InputError
from fvgen_recon.evaluation.covisibility import seen_by_inputs
from fvgen_recon.evaluation.judge import Jury
from fvgen_recon.evaluation.score import (
    HeldOut,
    fit_render,
    mean_scores,
    read_renders,
    score_renders,
)
from fvgen_recon.io.image import write_image
from fvgen_recon.pointcloud.mvs.semantic import EfficientNetLite0
from fvgen_recon.types import PointCloud


@pytest.fixture
def jury():
    torch.manual_seed(0)
    judges = {"distance": lambda image, truth: (image - truth).abs().mean(dim=(1, 2, 3))}
    return Jury(judges=judges, eyes=EfficientNetLite0().eval(), device="cpu")


def make_truth(rng, num_views=2, side=64):
    photos = 0.2 + 0.6 * torch.rand(num_views, 3, side, side, generator=rng)
    seen = torch.zeros(num_views, 1, side, side, dtype=torch.bool)
    seen[0, :, : side // 2] = True
    return HeldOut(views=(4, 12)[:num_views], photos=photos, seen=seen)


def test_seen_and_unseen_pixels_are_told_apart(rng, jury):
    truth = make_truth(rng)
    renders = truth.photos.clone()
    renders[0, :, 32:] += 0.1
    renders[1] += 0.01
    first, second = score_renders(list(renders), truth, jury)[0]
    assert (first.view, second.view) == (4, 12)
    assert first.psnr_seen == pytest.approx(100.0)
    assert first.psnr_unseen == pytest.approx(20.0, abs=1e-3)
    assert first.seen_share == 0.5
    assert first.distances["distance"] == pytest.approx(0.05, abs=1e-5)
    assert math.isnan(second.psnr_seen)
    assert second.psnr == pytest.approx(40.0, abs=1e-2)
    means = mean_scores([first, second])
    assert means["psnr_seen"] == pytest.approx(100.0)
    assert means["distance"] == pytest.approx((0.05 + 0.01) / 2, abs=1e-5)


def test_features_of_renders_and_photos_are_kept(rng, jury):
    truth = make_truth(rng)
    moments = score_renders(list(truth.photos), truth, jury)[1]
    assert moments["renders"].count == moments["photos"].count == 2 * 4 * 4
    torch.testing.assert_close(moments["renders"].total, moments["photos"].total)


def test_small_images_have_no_perceptual_distance(rng, jury):
    truth = make_truth(rng, num_views=1, side=16)
    (score,), _ = score_renders(list(truth.photos), truth, jury)
    assert score.distances == {}


def test_renders_are_found_by_id_or_by_name(tmp_path, rng):
    images = torch.rand(2, 3, 8, 8, generator=rng)
    write_image(tmp_path / "00004.png", images[0])
    write_image(tmp_path / "photo_b.png", images[1])
    found = read_renders(tmp_path, (4, 12), ("images/photo_a.jpg", "images/photo_b.jpg"))
    torch.testing.assert_close(torch.stack(found), images, atol=0.003, rtol=0)
    with pytest.raises(InputError, match=r"00013\.png or c\.png was expected"):
        read_renders(tmp_path, (13,), ("c.jpg",))


def test_renders_of_another_size_are_fitted_and_of_another_shape_refused():
    image = torch.full((3, 20, 30), 0.5)
    torch.testing.assert_close(fit_render(image, 40, 60), torch.full((3, 40, 60), 0.5))
    with pytest.raises(InputError, match="render the whole view"):
        fit_render(image, 40, 40)


class Wall:
    """A wall in front of the left half of the scene."""

    confidence = 1.0

    def estimate(self, scene):
        x, y = torch.meshgrid(torch.linspace(-2, 0, 200), torch.linspace(-1, 1, 200), indexing="xy")
        xyz = torch.stack([x, y, torch.zeros_like(x)], dim=-1).reshape(-1, 3)
        return PointCloud(
            xyz=xyz,
            rgb=torch.rand(len(xyz), 3),
            confidence=torch.full((len(xyz),), self.confidence),
            view=torch.zeros(len(xyz), dtype=torch.long),
        )


def test_seen_is_where_trusted_points_of_the_inputs_show():
    scene, cameras = make_scene(3), make_cameras(1)
    mask = seen_by_inputs(scene, cameras, Wall())
    assert mask.shape == (1, 1, 32, 48)
    assert mask[0, 0, 8:24, 10:22].all()
    assert not mask[0, 0, :, 26:].any()
    doubtful = Wall()
    doubtful.confidence = 0.4
    assert not seen_by_inputs(scene, cameras, doubtful).any()


class Blind:
    def estimate(self, scene):
        raise InputError("The views do not overlap.")


def test_nothing_is_seen_where_inputs_do_not_overlap():
    assert not seen_by_inputs(make_scene(2), make_cameras(2), Blind()).any()
