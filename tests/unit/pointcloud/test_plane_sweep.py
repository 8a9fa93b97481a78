from dataclasses import replace

import pytest
import torch
from factories import make_scene
from unit.pointcloud.stage import make_stage

from fvgen_recon.errors import InputError
from fvgen_recon.geometry.projection import project_points
from fvgen_recon.geometry.rigid import look_at
from fvgen_recon.pointcloud import ESTIMATORS
from fvgen_recon.pointcloud.confidence import estimate_confidence
from fvgen_recon.pointcloud.plane_sweep import PlaneSweep
from fvgen_recon.types import Cameras, Scene


@pytest.fixture(scope="module")
def staged():
    scene, depth = make_stage()
    return scene, depth, PlaneSweep().estimate_depth(scene)


def test_depth_is_right_where_trusted(staged):
    _, truth, maps = staged
    error = (maps.depth / truth - 1).abs()
    trusted = maps.confidence >= 0.5
    assert trusted.float().mean() > 0.6
    # 0.5 % of the depth is a tenth of a pixel here; windows blur the ball's outline.
    assert error[trusted].median() < 0.005
    assert (error[trusted] < 0.03).float().mean() > 0.89
    assert error.median() < 0.007


def test_depth_has_no_bias(staged):
    # A half-pixel slip in the warp would shift all depths one way.
    _, truth, maps = staged
    trusted = maps.confidence >= 0.5
    signed = (maps.depth / truth - 1)[trusted]
    assert signed.median().abs() < 0.002


def test_confidence_orders_errors(staged):
    _, truth, maps = staged
    error = (maps.depth / truth - 1).abs().flatten()
    order = maps.confidence.flatten().argsort()
    third = len(order) // 3
    low, high = error[order[:third]].mean(), error[order[-third:]].mean()
    assert high < 0.5 * low


def test_evidence_decides_what_is_trusted_and_its_depths_are_not_filled(staged):
    scene, _, maps = staged
    inverse_depth, evidence = PlaneSweep().find_evidence(scene)
    trusted = estimate_confidence(evidence) >= 0.5
    assert torch.equal(trusted, maps.confidence >= 0.5)
    found = 1 / inverse_depth
    assert torch.allclose(found[trusted], maps.depth[trusted])
    assert ((found / maps.depth - 1)[~trusted].abs() > 1e-3).any()


def test_cloud_holds_every_pixel_of_every_view_and_comes_out_the_same_twice(staged):
    scene, _, maps = staged
    cloud = PlaneSweep().estimate(scene)
    assert len(cloud) == scene.images[:, 0].numel()
    assert torch.equal(cloud.view, torch.arange(3).repeat_interleave(60 * 80))
    uv, z = project_points(cloud.xyz[60 * 80 : 2 * 60 * 80], scene.cameras[1])
    assert torch.allclose(uv.reshape(60, 80, 2)[7, 11], torch.tensor([11.5, 7.5]), atol=1e-3)
    assert torch.allclose(z.reshape(60, 80), maps.depth[1], rtol=1e-5)
    assert torch.equal(cloud.confidence.reshape(3, 60, 80), maps.confidence)
    assert torch.equal(cloud.rgb[0], scene.images[0, :, 0, 0])


def test_follows_a_similarity_of_the_world(staged):
    scene, _, maps = staged
    turn = look_at(
        torch.tensor([5.0, -3.0, 2.0]), torch.tensor([1.0, 2.0, 0.5]), torch.tensor([0.0, 0.0, 1.0])
    )
    c2w = scene.cameras.c2w.clone()
    c2w[:, :3, 3] *= 7.5
    moved = replace(scene, cameras=replace(scene.cameras, c2w=turn @ c2w))
    other = PlaneSweep().estimate_depth(moved)
    ratio = other.depth / maps.depth / 7.5
    both = (maps.confidence >= 0.5) & (other.confidence >= 0.5)
    assert both.float().mean() > 0.55
    assert ((ratio - 1).abs()[both] < 0.01).float().mean() > 0.98


def test_exposure_does_not_matter(staged):
    scene, truth, _ = staged
    gain = torch.tensor([0.7, 1.0, 0.85])[:, None, None, None]
    maps = PlaneSweep().estimate_depth(replace(scene, images=scene.images * gain))
    trusted = maps.confidence >= 0.5
    assert trusted.float().mean() > 0.55
    assert ((maps.depth / truth - 1).abs()[trusted] < 0.03).float().mean() > 0.88


def test_wrong_poses_are_not_trusted(staged):
    # The photos were taken along a horizontal arc, these cameras stand on a vertical one.
    scene, _, maps = staged
    c2w = scene.cameras.c2w.clone()
    c2w[:, :3, 3] = c2w[:, :3, 3] + torch.tensor([[1.0, -1, 0], [0, 0, 0], [-1, 1, 0]]) * 0.55
    moved = replace(scene, cameras=replace(scene.cameras, c2w=c2w))
    wrong = PlaneSweep().estimate_depth(moved)
    assert (wrong.confidence >= 0.5).float().mean() < 0.3
    assert wrong.confidence.mean() < 0.6 * maps.confidence.mean()


def test_large_photos_are_reduced_and_come_back(staged):
    scene, truth, _ = staged
    maps = PlaneSweep(long_side=40).estimate_depth(scene)
    assert maps.depth.shape == truth.shape
    trusted = maps.confidence >= 0.5
    assert ((maps.depth / truth - 1).abs()[trusted] < 0.06).float().mean() > 0.9


def test_one_view_is_refused():
    scene = make_scene(1)
    for name in ("plane-sweep", "random"):
        with pytest.raises(InputError, match="at least two views"):
            ESTIMATORS[name]().estimate(scene)


def test_views_that_look_apart_are_refused():
    scene = make_scene(2)
    position = torch.tensor([[0.0, 0.0, -1.0], [0.0, 0.0, 1.0]])
    c2w = look_at(position, 2 * position, torch.tensor([0.0, -1.0, 0.0]))
    apart = replace(scene, cameras=replace(scene.cameras, c2w=c2w))
    for name in ("plane-sweep", "random"):
        with pytest.raises(InputError, match="do not overlap"):
            ESTIMATORS[name]().estimate(apart)


def test_one_standpoint_is_refused():
    scene = make_scene(2)
    c2w = scene.cameras.c2w.clone()
    c2w[:, :3, 3] = 1.0
    with pytest.raises(InputError, match="different places"):
        PlaneSweep().estimate(replace(scene, cameras=replace(scene.cameras, c2w=c2w)))


def test_photos_of_different_things_are_refused(staged):
    scene, _, _ = staged
    noise = torch.rand(scene.images.shape, generator=torch.Generator().manual_seed(3))
    with pytest.raises(InputError, match="nothing in common"):
        PlaneSweep().estimate(replace(scene, images=noise))


def test_a_view_without_neighbours_is_not_trusted(staged):
    scene, _, _ = staged
    c2w = look_at(
        torch.tensor([0.0, 0.0, 9.0]),
        torch.tensor([0.0, 0.0, 99.0]),
        torch.tensor([0.0, -1.0, 0.0]),
    )
    lonely = Scene(
        images=torch.cat([scene.images, scene.images[:1].flip(-1)]),
        cameras=Cameras(
            c2w=torch.cat([scene.cameras.c2w, c2w[None]]),
            K=torch.cat([scene.cameras.K, scene.cameras.K[:1]]),
            height=60,
            width=80,
        ),
        names=(*scene.names, "lonely.png"),
    )
    maps = PlaneSweep().estimate_depth(lonely)
    assert bool(torch.isfinite(maps.depth).all())
    assert (maps.confidence[3] < 0.5).all()
    assert (maps.confidence[:3] >= 0.5).float().mean() > 0.5
