"""The types refuse what their invariants forbid; shape checks are on."""

import sys
from dataclasses import replace

import pytest
import torch
from factories import make_cameras, make_scene
from jaxtyping import TypeCheckError

from fvgen_recon.errors import InputError
from fvgen_recon.geometry.conventions import opencv_to_opengl, opengl_to_opencv
from fvgen_recon.geometry.projection import inverse_intrinsics, project_points, unproject_depth
from fvgen_recon.types import Cameras, ViewBatch


@pytest.mark.skipif(sys.version_info < (3, 11), reason="see tests/conftest.py")
def test_shape_checks_are_on() -> None:
    """The canary: without a type checker behind jaxtyping, this wrong shape would pass."""
    cameras = make_cameras(2)
    with pytest.raises(TypeCheckError):
        unproject_depth(torch.ones(2, 5, 5, 5, 7), "no cameras")  # pyright: ignore
    with pytest.raises(TypeCheckError):
        replace(cameras, K=torch.eye(4).expand(2, 4, 4))


def test_cameras_must_be_rigid_and_finite() -> None:
    cameras = make_cameras(2)
    with pytest.raises(InputError, match="rigid"):
        replace(cameras, c2w=cameras.c2w * torch.tensor([2.0, 2.0, 2.0, 1.0]))
    with pytest.raises(InputError, match="rigid"):
        replace(cameras, c2w=cameras.c2w * torch.tensor([-1.0, 1.0, 1.0, 1.0]))
    with pytest.raises(InputError, match="finite"):
        replace(cameras, c2w=cameras.c2w * float("nan"))


def test_w2c_inverts_c2w() -> None:
    cameras = make_cameras(3)
    eye = torch.eye(4).expand(3, 4, 4)
    torch.testing.assert_close(cameras.w2c @ cameras.c2w, eye, atol=1e-5, rtol=0)


def test_project_inverts_unproject_at_pixel_centres() -> None:
    cameras = make_cameras(1, 4, 6)
    points, given = unproject_depth(torch.full((1, 4, 6), 3.0), cameras)
    uv, z = project_points(points[0].reshape(-1, 3), cameras[0])
    assert bool(given.all())
    torch.testing.assert_close(z, torch.full((24,), 3.0), atol=1e-5, rtol=0)
    torch.testing.assert_close(uv[0], torch.tensor([0.5, 0.5]), atol=1e-3, rtol=0)
    torch.testing.assert_close(uv[-1], torch.tensor([5.5, 3.5]), atol=1e-3, rtol=0)


def test_opengl_camera_by_hand() -> None:
    """An OpenGL camera at the origin looks along -z with y up."""
    c2w = opengl_to_opencv(torch.eye(4))
    camera = Cameras(c2w=c2w, K=torch.eye(3), height=2, width=2)
    assert camera.direction.tolist() == [0.0, 0.0, -1.0]
    assert (-camera.c2w[:3, 1]).tolist() == [0.0, 1.0, 0.0]
    torch.testing.assert_close(opencv_to_opengl(c2w), torch.eye(4))


def test_cameras_cut_out_and_moved_keep_their_values() -> None:
    cameras = make_cameras(3, 4, 6)
    part = cameras[1:].to("cpu")
    assert len(part) == 2
    assert (part.height, part.width) == (4, 6)
    assert torch.equal(part.c2w, cameras.c2w[1:])
    assert torch.equal(part.K, cameras.K[1:])
    assert torch.equal(cameras.resize(8, 6).K[:, 1], 2 * cameras.K[:, 1])
    assert cameras.height == 4
    with pytest.raises(InputError, match="1x1"):
        cameras.resize(0, 6)


def test_resize_keeps_the_field_of_view() -> None:
    camera = make_cameras(1, 32, 48).resize(16, 24)
    assert camera.K[0, 0, 2] == 12
    assert camera.K[0, 1, 2] == 8
    assert camera.K[0, 2, 2] == 1


def test_real_views_weigh_one() -> None:
    scene = make_scene(2)
    weight = torch.full((2, 1, 32, 48), 0.5)
    with pytest.raises(InputError, match="real view"):
        ViewBatch(
            images=scene.images,
            cameras=scene.cameras,
            weight=weight,
            is_real=torch.tensor([True, False]),
        )


def test_inverse_intrinsics_undo_intrinsics(rng):
    K = torch.eye(3).repeat(4, 2, 1, 1)
    K[..., 0, 0], K[..., 1, 1] = 300 + 50 * torch.rand(2, 4, 2, generator=rng)
    K[..., :2, 2] = 100 * torch.rand(4, 2, 2, generator=rng)
    K[..., 0, 1] = torch.rand(4, 2, generator=rng)
    assert torch.allclose(inverse_intrinsics(K) @ K, torch.eye(3).expand_as(K), atol=1e-4)
