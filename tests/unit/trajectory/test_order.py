import itertools

import numpy as np
import torch
from factories import make_cameras

from fvgen_recon.trajectory.order import _shortest_near, path_length, visit_order
from fvgen_recon.trajectory.pose import pose_distances, scene_unit


def make_scattered_cameras(num_views, seed):
    cameras = make_cameras(40, arc_deg=200.0)
    chosen = torch.randperm(40, generator=torch.Generator().manual_seed(seed))[:num_views]
    return cameras[chosen]


def distances(cameras):
    return pose_distances(cameras, cameras, unit=scene_unit(cameras)).numpy()


def test_order_is_the_shortest_open_path():
    rng = np.random.default_rng(0)
    for seed in range(5):
        cameras = make_scattered_cameras(7, seed)
        noise = torch.from_numpy(rng.normal(size=(7, 3))).float()
        cameras.c2w[:, :3, 3] += noise
        table = distances(cameras)
        best = min(path_length(table, list(order)) for order in itertools.permutations(range(7)))
        assert np.isclose(path_length(table, list(visit_order(cameras))), best)


def test_views_on_an_arc_are_visited_along_it():
    for num_views in (2, 9, 12, 20):
        cameras = make_scattered_cameras(num_views, seed=1)
        angle = torch.atan2(cameras.position[:, 0], -cameras.position[:, 2])
        along = angle[list(visit_order(cameras))]
        steps = along.diff()
        assert (steps > 0).all() or (steps < 0).all()


def test_order_is_deterministic_and_starts_at_the_smaller_end():
    for seed in range(4):
        order = visit_order(make_scattered_cameras(8, seed))
        assert sorted(order) == list(range(8))
        assert order[0] < order[-1]
        assert order == visit_order(make_scattered_cameras(8, seed))


def test_many_views_come_within_a_tenth_of_the_shortest_path():
    rng = np.random.default_rng(3)
    points = rng.normal(size=(10, 2))
    table = np.linalg.norm(points[:, None] - points[None], axis=-1)
    cameras = make_cameras(10)
    cameras.c2w[:, :3, :3] = torch.eye(3)
    cameras.c2w[:, :2, 3] = torch.from_numpy(points).float()
    cameras.c2w[:, 2, 3] = 0
    exact = path_length(table, list(visit_order(cameras)))
    near = path_length(table, _shortest_near(table))
    assert exact <= near + 1e-6
    assert near <= 1.1 * exact


def test_identical_cameras_have_an_order():
    cameras = make_cameras(1)[[0, 0, 0]]
    assert sorted(visit_order(cameras)) == [0, 1, 2]
