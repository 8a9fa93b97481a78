import math

import pytest
import torch
from factories import make_cameras

from fvgen_recon.errors import InputError
from fvgen_recon.trajectory.parity import compare_camera
from fvgen_recon.trajectory.teacher import (
    OrbitKeys,
    OrbitTarget,
    interpolate_views,
    orbit_along_keys,
    orbit_to_target,
    to_object_frame,
)


@pytest.mark.parity
def test_paths_equal_the_teachers(parity):
    rows = compare_camera(parity / "camera_traj.safetensors")
    assert len(rows) == 20
    assert [row for row in rows if not row.is_accepted] == []


def test_the_path_visits_its_views_and_intrinsics_run_ahead():
    cameras = make_cameras(3)
    cameras.K[1, 0, 0] += 10
    path = interpolate_views(cameras, 6)
    assert len(path) == 11
    assert torch.allclose(path.c2w[::5], cameras.c2w, atol=1e-6)
    assert torch.allclose(path.K[::5], cameras.K, atol=1e-5)
    # One frame before the view its focal length is already reached; the pose is not.
    assert torch.allclose(path.K[4], cameras.K[1], atol=1e-5)
    assert (path.position[4] - path.position[5]).norm() > (
        path.position[3] - path.position[4]
    ).norm() * 1.9


def test_two_frames_are_the_views_themselves():
    cameras = make_cameras(3)
    assert torch.allclose(interpolate_views(cameras, 2).c2w, cameras.c2w, atol=1e-6)
    with pytest.raises(InputError, match="at least two"):
        interpolate_views(cameras[:1], 8)


def test_object_frame_lies_before_the_view_with_y_up():
    cameras = make_cameras(3)
    points = torch.tensor([[0.0, 0.0, 0.0], [0.0, -1.0, 0.0]])
    c2w, moved = to_object_frame(cameras.c2w, points, view=1, radius=4.0, elevation_deg=0.0)
    # View 1 looks at the origin from a distance of 4; the world's y points down.
    assert torch.allclose(moved, torch.tensor([[0.0, 0.0, 0.0], [0.0, 1.0, 0.0]]), atol=1e-5)
    assert torch.allclose(c2w[1, :3, 3], torch.tensor([0.0, 0.0, 4.0]), atol=1e-5)


def test_orbits_start_at_the_view_and_turn_around_the_origin():
    c2w, _ = to_object_frame(make_cameras(1).c2w, torch.zeros(1, 3), view=0, radius=4.0)
    target = OrbitTarget(theta_deg=0.0, phi_deg=90.0, radius_change=0.0)
    path = orbit_to_target(c2w[0], target, 7)
    assert torch.allclose(path[0], c2w[0], atol=1e-6)
    assert torch.allclose(path[:, :3, 3].norm(dim=-1), c2w[0, :3, 3].norm().expand(7), atol=1e-5)
    assert path[-1, 0, 3] == pytest.approx(float(c2w[0, 2, 3]), abs=1e-5)


def test_keys_are_linear_up_to_three_and_keep_their_ends():
    c2w, _ = to_object_frame(make_cameras(1).c2w, torch.zeros(1, 3), view=0, radius=4.0)
    few = OrbitKeys(phi_deg=(0.0, 30.0), theta_deg=(0.0, 0.0), radius_change=(0.0, 0.0))
    path = orbit_along_keys(c2w[0], few, 4)
    angle = torch.atan2(path[:, 0, 3], path[:, 2, 3])
    expected = torch.tensor([0.0, 10.0, 20.0, 30.0]) * math.pi / 180
    assert torch.allclose(angle, expected, atol=1e-5)
    many = OrbitKeys(
        phi_deg=(0.0, 0.0), theta_deg=(0.0, 0.0), radius_change=(0.0, -0.1, -0.3, 0.2, 0.5)
    )
    z = orbit_along_keys(c2w[0], many, 9)[:, 2, 3] / c2w[0, 2, 3]
    assert z[0] == pytest.approx(1.0)
    assert z[-1] == pytest.approx(1.5)
    with pytest.raises(InputError, match="two numbers"):
        orbit_along_keys(
            c2w[0], OrbitKeys(phi_deg=(1.0,), theta_deg=(0.0, 0.0), radius_change=(0.0, 0.0)), 4
        )
