"""Working sizes and how photos and cameras follow them."""

import pytest
import torch
from factories import make_cloud, make_scene

from fvgen_recon.densify.size import fit_scene, working_size
from fvgen_recon.errors import InputError
from fvgen_recon.geometry.projection import project_points


def test_working_size_keeps_the_aspect_as_far_as_the_multiple_allows() -> None:
    assert working_size(540, 960, 512, 16) == (288, 512)
    assert working_size(946, 530, 512, 64) == (512, 256)
    assert working_size(100, 150, 512, 16) == (96, 144)
    assert working_size(10, 900, 512, 16) == (16, 512)


def test_a_size_without_pixels_is_refused() -> None:
    with pytest.raises(InputError, match="long_side of 0"):
        working_size(10, 900, 0, 16)


def test_cameras_follow_resize_and_crop() -> None:
    """A world point keeps its place in the picture, measured from the centre in units of scale."""
    scene = make_scene(2, 32, 48)
    fitted = fit_scene(scene, 64, 64)
    points = make_cloud(10).xyz
    before, _ = project_points(points, scene.cameras)
    after, _ = project_points(points, fitted.cameras)
    expected = before * 2 - torch.tensor([16.0, 0.0])
    torch.testing.assert_close(after, expected, atol=1e-3, rtol=0)
    assert fitted.images.shape == (2, 3, 64, 64)


def test_pixels_follow_the_cameras() -> None:
    """A bright square stays under its projected centre."""
    scene = make_scene(1, 32, 48)
    image = torch.zeros(1, 3, 32, 48)
    image[..., 8:12, 20:24] = 1.0  # Centre at the image point (22, 10).
    fitted = fit_scene(type(scene)(images=image, cameras=scene.cameras, names=scene.names), 16, 16)
    where = torch.nonzero(fitted.images[0, 0] > 0.6).float().mean(0) + 0.5
    expected = torch.tensor([10 / 2, (22 / 2) - 4])
    torch.testing.assert_close(where, expected, atol=0.26, rtol=0)
