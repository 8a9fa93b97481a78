"""The CPU kernels against gsplat's CUDA kernels: values, every gradient, intermediate results.

Both compute in float32, in different orders and with different exponentials, and both rasterisers
decide by thresholds: a Gaussian counts in a pixel from an opacity of 1/255, a radius is rounded
up, a pixel is finished at a transmittance of 1e-4. Rounding flips a few of these decisions, which
moves pixels by a few thousandths; an expected depth may jump from nothing to a few units at the
rim of what is seen. So most numbers must agree closely and all of them in the norm. Noise of a
millionth in the inputs of the CPU kernels changes images by up to 4e-5 and gradients by up to
1.2e-3 in the norm here; the bounds leave a factor of eight or more, and are a hundredth of what a
missing term or a wrong sign does.
"""

from typing import Any

import pytest
import torch
from gaussian_factory import SplatScene, make_splat_scene, random_loss, run_fast
from torch import Tensor

pytestmark = pytest.mark.gpu

NORM = 2e-3
DEPTH_NORM = 1e-2
GRADIENT_NORM = 1e-2


def distance(value: Tensor, expected: Tensor) -> float:
    """Norm of the difference over the norm of what was expected."""
    value, expected = value.detach().cpu().double(), expected.detach().cpu().double()
    assert bool(torch.isfinite(value).all())
    return float((value - expected).norm() / expected.norm().clamp_min(1e-12))


def run(scene: SplatScene, device: str, **options: Any) -> tuple[SplatScene, Any]:
    """Rasterise on a device and run the backward pass of a loss that weighs everything."""
    own = scene.fresh(device=device, dtype=torch.float32)
    result = run_fast(own, **options)
    random_loss(result[0], result[1]).backward()
    return own, result


def check_images(ours: Tensor, theirs: Tensor, bound: float = NORM) -> None:
    """Most numbers agree closely, all of them in the norm."""
    assert ours.shape == theirs.shape
    assert distance(ours, theirs) < bound
    scale = float(theirs.detach().abs().max())
    apart = (ours.detach().cpu() - theirs.detach().cpu()).abs() > 1e-4 * scale
    assert float(apart.double().mean()) < 1e-2


def compare(scene: SplatScene, **options: Any) -> None:
    """Compare the devices' images, gradients and intermediate results."""
    cpu, (colors, alphas, info) = run(scene, "cpu", **options)
    gpu, (cuda_colors, cuda_alphas, cuda_info) = run(scene, "cuda", **options)
    has_ratio = options.get("render_mode", "RGB") in ("ED", "RGB+ED")
    check_images(colors, cuda_colors, DEPTH_NORM if has_ratio else NORM)
    check_images(alphas, cuda_alphas)
    for name, leaf in cpu.leaves().items():
        expected = gpu.leaves()[name].grad
        if expected is None:
            assert leaf.grad is None or not bool(leaf.grad.any()), name
            continue
        assert leaf.grad is not None, name
        error = distance(leaf.grad, expected)
        assert error < GRADIENT_NORM, (name, error)
    check_info(info, cuda_info)


def check_info(info: dict[str, Any], cuda_info: dict[str, Any]) -> None:
    """Compare what densification reads."""
    radii, cuda_radii = info["radii"], cuda_info["radii"].cpu()
    assert radii.shape == cuda_radii.shape
    assert float((radii != cuda_radii).double().mean()) < 5e-3
    seen = (radii > 0) & (cuda_radii > 0)
    assert int(seen.sum()) > 100
    for name in ("means2d", "depths", "conics", "opacities"):
        error = distance(info[name][seen], cuda_info[name].cpu()[seen])
        assert error < 1e-3, (name, error)
    ours, theirs = info["means2d"], cuda_info["means2d"]
    for name in ("grad", "absgrad"):
        error = distance(getattr(ours, name)[seen], getattr(theirs, name).cpu()[seen])
        assert error < GRADIENT_NORM, (name, error)
    for name in ("width", "height", "n_cameras", "tile_size", "tile_width", "tile_height"):
        assert info[name] == cuda_info[name], name


def crowd(seed: int = 0) -> SplatScene:
    """Enough Gaussians to fill the images, with sizes down to under a pixel."""
    return make_splat_scene(2000, 2, height=97, width=131, size=0.05, seed=seed)


@pytest.mark.parametrize("rasterize_mode", ["classic", "antialiased"])
@pytest.mark.parametrize("render_mode", ["RGB", "RGB+ED", "RGB+D", "ED", "D"])
def test_values_and_gradients_are_gsplats(render_mode: str, rasterize_mode: str) -> None:
    compare(crowd(), render_mode=render_mode, rasterize_mode=rasterize_mode)


@pytest.mark.parametrize("sh_degree", [0, 1, 2])
def test_lower_degrees_are_gsplats(sh_degree: int) -> None:
    compare(crowd(seed=sh_degree + 1), sh_degree=sh_degree, backgrounds=None)


def test_plain_colours_and_options_are_gsplats() -> None:
    scene = crowd(seed=5)
    options = {"near_plane": 3.0, "far_plane": 5.0, "radius_clip": 3.0, "eps2d": 0.5}
    plain = SplatScene(**{**vars(scene), "colors": torch.sigmoid(scene.colors[:, 0].detach())})
    compare(plain, sh_degree=None, **options)


def test_packed_is_gsplats() -> None:
    scene = crowd(seed=6)
    cpu, (colors, _, info) = run(scene, "cpu", packed=True)
    gpu, (cuda_colors, _, cuda_info) = run(scene, "cuda", packed=True)
    check_images(colors, cuda_colors)
    for name, leaf in cpu.leaves().items():
        expected = gpu.leaves()[name].grad
        assert leaf.grad is not None
        assert expected is not None
        assert distance(leaf.grad, expected) < GRADIENT_NORM, name
    rows = [seen_rows(i) for i in (info, cuda_info)]
    assert len(rows[0] ^ rows[1]) < 0.005 * len(rows[0])
    assert info["radii"].dim() == cuda_info["radii"].dim() == 1
    for name in ("means2d", "depths", "conics", "opacities"):
        assert info[name].dim() == cuda_info[name].dim(), name


def seen_rows(info: dict[str, Any]) -> set[tuple[int, int]]:
    """Pairs of camera and Gaussian that are seen."""
    return set(zip(info["camera_ids"].tolist(), info["gaussian_ids"].tolist(), strict=True))


def test_radii_are_one_a_gaussian_and_camera_on_both() -> None:
    for device in ("cpu", "cuda"):
        _, (_, _, info) = run(crowd(), device)
        assert info["radii"].shape == (2, 2000)
