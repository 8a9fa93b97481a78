import cv2
import numpy as np
import pytest
import torch

from fvgen_recon.errors import InputError
from fvgen_recon.geometry.projection import pixel_centres
from fvgen_recon.io.scenes import Lens
from fvgen_recon.io.scenes.undistortion import distort, pinhole_camera, undistort
from fvgen_recon.types import Cameras


def brown(*values: float) -> Lens:
    """Leading coefficients of k1 k2 p1 p2 k3 k4 k5 k6."""
    return Lens(coefficients=(*values, *(0.0,) * (8 - len(values))))


LENSES = {
    "barrel": brown(-0.2, 0.03),
    "pincushion": brown(0.15, 0.01),
    "tangential": brown(-0.05, 0.0, 0.01, -0.02, 0.01),
    "rational": brown(0.1, 0.02, 0.001, 0.002, 0.01, 0.2, 0.01, 0.001),
    "fisheye": Lens(is_fisheye=True, coefficients=(0.05, -0.01, 0.002, 0.0)),
}


def camera(height: int = 60, width: int = 80) -> Cameras:
    K = torch.tensor([[70.0, 0, 41.3], [0, 68.0, 28.9], [0, 0, 1]])
    return Cameras(c2w=torch.eye(4), K=K, height=height, width=width)


def rays(cameras: Cameras) -> np.ndarray:
    K = cameras.K.double().numpy()
    pixels = pixel_centres(cameras.height, cameras.width, cameras.K).double().numpy()
    return ((pixels - K[:2, 2]) / K[[0, 1], [0, 1]]).reshape(-1, 2)


def straighten(points: np.ndarray, lens: Lens) -> np.ndarray:
    """The slow inverse of `distort`, by fixed-point iteration."""
    straight = points.copy()
    for _ in range(300):
        straight += 0.7 * (points - distort(straight, lens))
    return straight


def picture(points: np.ndarray, size: tuple[int, int]) -> torch.Tensor:
    """A smooth pattern over the plane z = 1."""
    x, y = points[:, 0], points[:, 1]
    colours = [0.5 + 0.4 * np.sin(5 * x), 0.5 + 0.4 * np.cos(4 * y), 0.5 + 0.4 * np.sin(3 * x * y)]
    return torch.from_numpy(np.stack(colours)).float().reshape(3, *size)


@pytest.mark.parametrize("name", LENSES)
def test_distortion_is_opencvs(name):
    lens, points = LENSES[name], rays(camera())[::97]
    if lens.is_fisheye:
        expected = cv2.fisheye.distortPoints(
            points[:, None].copy(), np.eye(3), np.array(lens.coefficients)
        )
    else:
        world = np.concatenate([points, np.ones((len(points), 1))], axis=-1)
        expected, _ = cv2.projectPoints(
            world, np.zeros(3), np.zeros(3), np.eye(3), np.array(lens.coefficients)
        )
    np.testing.assert_allclose(distort(points, lens), expected[:, 0], atol=1e-9)


@pytest.mark.parametrize("name", LENSES)
def test_an_undistorted_photo_is_what_the_pinhole_camera_sees_up_to_its_borders(name):
    lens, native = LENSES[name], camera()
    size = (native.height, native.width)
    photo = picture(straighten(rays(native), lens), size)
    target = pinhole_camera(native, lens)
    seen = picture(rays(target), size)
    assert float((undistort(photo, native, lens) - seen).abs().max()) < 0.004
    assert float((photo - seen).abs().max()) > 0.02


def test_the_pinhole_is_zoomed_only_where_the_photo_does_not_reach():
    native = camera()
    assert pinhole_camera(native, LENSES["barrel"]) is native
    zoomed = pinhole_camera(native, LENSES["pincushion"])
    zoom = zoomed.K[0, 0] / native.K[0, 0]
    assert 1.01 < float(zoom) < 1.2
    torch.testing.assert_close(zoomed.K[1, 1] / native.K[1, 1], zoom)
    torch.testing.assert_close(zoomed.K[:2, 2], native.K[:2, 2])


def test_a_lens_without_distortion_changes_nothing(rng):
    image = torch.rand(3, 60, 80, generator=rng)
    assert undistort(image, camera(), Lens()) is image
    assert pinhole_camera(camera(), Lens()) is not None


def test_a_fold_is_zoomed_away_or_refused():
    strong = brown(-1.2)
    native = camera()
    target = pinhole_camera(native, strong)
    reach = float(np.linalg.norm(rays(target), axis=-1).max())
    assert reach <= (3 * 1.2) ** -0.5 * 1.002  # r (1 - 1.2 r^2) grows up to 1 / sqrt(3.6)
    with pytest.raises(InputError, match="fold"):
        pinhole_camera(native, brown(-500.0))
