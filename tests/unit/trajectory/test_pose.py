import math

import pytest
import torch
from factories import make_cameras

from fvgen_recon.geometry.rigid import look_at
from fvgen_recon.trajectory.pose import (
    move_between,
    nearest_view,
    pose_distances,
    rotation_to_vector,
    scene_unit,
    space_evenly,
)


def rotation_about(axis, angle):
    axis = torch.tensor(axis, dtype=torch.float64)
    axis = axis / axis.norm()
    x, y, z = axis.tolist()
    cross = torch.tensor([[0, -z, y], [z, 0, -x], [-y, x, 0]], dtype=torch.float64)
    return torch.linalg.matrix_exp(cross * angle), axis * angle


def test_rotation_to_vector_undoes_the_matrix_exponential():
    for angle in (0.0, 1e-9, 1e-4, 0.5, 3.0, math.pi - 1e-6):
        rotation, vector = rotation_about([1.0, -2.0, 0.5], angle)
        assert torch.allclose(rotation_to_vector(rotation), vector, atol=1e-9)


def test_half_turns_give_one_of_their_axes():
    for axis in ([1.0, 0, 0], [0, 1.0, 0], [0, 0, 1.0], [1.0, 1.0, 0]):
        rotation, vector = rotation_about(axis, math.pi)
        found = rotation_to_vector(rotation)
        assert torch.allclose(found.abs(), vector.abs(), atol=1e-6)


def test_cameras_around_a_point_keep_their_distance_and_look_at_it():
    ends = make_cameras(2, arc_deg=100.0)
    poses = move_between(ends.c2w[0], ends.c2w[1], torch.linspace(0, 1, 9))
    exact = make_cameras(9, arc_deg=100.0).c2w
    assert torch.allclose(poses, exact, atol=1e-5)


def test_a_shift_without_rotation_is_a_straight_even_line():
    first, second = torch.eye(4), torch.eye(4)
    second[:3, 3] = torch.tensor([1.0, 2.0, -3.0])
    poses = move_between(first, second, torch.linspace(0, 1, 5))
    expected = torch.linspace(0, 1, 5)[:, None] * second[:3, 3]
    assert torch.allclose(poses[:, :3, 3], expected, atol=1e-6)
    assert torch.equal(poses[:, :3, :3], torch.eye(3).expand(5, 3, 3))


def test_ends_are_exact_and_half_turns_stay_finite_and_rigid():
    position = torch.tensor([[0.0, 0.0, -2.0], [0.0, 0.0, 2.0]])
    facing = look_at(position, torch.zeros(2, 3), torch.tensor([0.0, -1.0, 0.0]))
    poses = move_between(facing[0], facing[1], torch.linspace(0, 1, 7))
    assert torch.equal(poses[0], facing[0])
    assert torch.equal(poses[-1], facing[1])
    eye = torch.eye(3).expand(7, 3, 3)
    assert torch.allclose(poses[:, :3, :3] @ poses[:, :3, :3].mT, eye, atol=1e-5)
    assert torch.allclose(poses[:, :3, 3].norm(dim=-1), torch.tensor(2.0), atol=1e-5)


def test_pose_distance_adds_distance_and_angle():
    cameras = make_cameras(2, arc_deg=60.0)
    unit = scene_unit(cameras)
    table = pose_distances(cameras, cameras, unit=unit)
    assert torch.equal(table.diagonal(), torch.zeros(2, dtype=torch.float64))
    assert torch.allclose(table[0, 1], torch.tensor(1 + math.pi / 3, dtype=torch.float64))
    assert scene_unit(cameras[[0, 0]]) == 1.0


def test_the_nearest_view_is_told_of_by_angle_and_relative_distance():
    cameras = make_cameras(5, arc_deg=80.0)
    # One input each 40 degrees; the camera lies half way between the last two.
    angle, distance = nearest_view(cameras[[0, 2, 4]], cameras[3])
    assert math.degrees(angle) == pytest.approx(20, abs=1e-3)
    assert distance == pytest.approx(math.sin(math.radians(10)) / math.sin(math.radians(20)))
    assert nearest_view(cameras[[0, 2, 4]], cameras[2]) == (0, 0)


def test_space_evenly_keeps_steps_equal_over_uneven_corners():
    corners = make_cameras(11, arc_deg=60.0)[[0, 1, 7, 10]]
    spaced = space_evenly(corners, 6, unit=1.0)
    assert torch.equal(spaced.c2w[0], corners.c2w[0])
    assert torch.equal(spaced.c2w[-1], corners.c2w[-1])
    steps = pose_distances(spaced, spaced, unit=1.0).diagonal(1)
    assert steps.amax() / steps.amin() < 1.05
    still = space_evenly(corners[[0, 0]], 4, unit=1.0)
    assert torch.allclose(still.c2w, corners.c2w[:1].expand(4, 4, 4), atol=1e-6)
