from dataclasses import replace

import pytest
import torch
from factories import make_cloud, make_scene

from fvgen_recon.errors import InputError
from fvgen_recon.geometry.projection import project_points
from fvgen_recon.pointcloud import ESTIMATORS, make_estimator
from fvgen_recon.pointcloud.alignment import align_cameras, align_points
from fvgen_recon.pointcloud.frustum import RandomPoints


def test_the_sources_are_there():
    assert set(ESTIMATORS) == {"plane-sweep", "mvs", "stereo", "dataset", "dust3r", "random"}


def test_a_source_is_made_by_name_and_an_unknown_name_is_told():
    assert make_estimator("random") == RandomPoints()
    with pytest.raises(InputError, match="no point-cloud estimator `magic`: choose one of plane"):
        make_estimator("magic")


def test_dataset_returns_the_scenes_points():
    cloud = make_cloud(50)
    scene = replace(make_scene(), points=cloud)
    assert ESTIMATORS["dataset"]().estimate(scene) is cloud


@pytest.mark.parametrize("points", [None, make_cloud(1)[:0]])
def test_dataset_without_points_is_refused(points):
    with pytest.raises(InputError, match="holds no points"):
        ESTIMATORS["dataset"]().estimate(replace(make_scene(), points=points))


def test_random_points_are_seeded_and_seen_twice():
    scene = make_scene()
    cloud = RandomPoints(num_points=500, seed=4).estimate(scene)
    again = RandomPoints(num_points=500, seed=4).estimate(scene)
    other = RandomPoints(num_points=500, seed=5).estimate(scene)
    assert torch.equal(cloud.xyz, again.xyz)
    assert not torch.equal(cloud.xyz[:10], other.xyz[:10])
    uv, z = project_points(cloud.xyz, scene.cameras)
    limit = torch.tensor([scene.cameras.width, scene.cameras.height])
    seen = (z > 0) & ((uv >= 0) & (uv <= limit)).all(-1)
    assert bool((seen.sum(dim=0) >= 2).all())
    assert len(cloud) == 500
    assert bool((cloud.confidence < 0.5).all())
    assert cloud.view.unique().tolist() == [0, 1, 2]


def test_alignment_recovers_a_similarity(rng):
    source = torch.randn(20, 3, generator=rng)
    turn = torch.linalg.qr(torch.randn(3, 3, generator=rng)).Q
    turn = turn * torch.sign(torch.linalg.det(turn))
    target = 2.5 * source @ turn.mT + torch.tensor([1.0, -2.0, 0.5])
    found = align_points(source, target)
    assert found.scale == pytest.approx(2.5, rel=1e-5)
    assert torch.allclose(found.rotation, turn, atol=1e-5)
    assert torch.allclose(found.apply(source), target, atol=1e-5)


def test_alignment_never_mirrors(rng):
    source = torch.randn(20, 3, generator=rng)
    found = align_points(source, source * torch.tensor([1.0, 1.0, -1.0]))
    assert torch.linalg.det(found.rotation) == pytest.approx(1.0, abs=1e-5)


def test_two_cameras_suffice_to_align():
    # Two centres alone would leave the turn about the line between them free.
    cameras = make_scene(2).cameras
    moved = cameras.c2w.clone()
    moved[:, :3, 3] = moved[:, :3, 3] * 0.2 + 3.0
    found = align_cameras(moved, cameras)
    assert found.scale == pytest.approx(5.0, rel=1e-4)
    assert torch.allclose(found.rotation, torch.eye(3), atol=1e-4)
    assert torch.allclose(found.apply(moved[:, :3, 3]), cameras.position, atol=1e-4)
