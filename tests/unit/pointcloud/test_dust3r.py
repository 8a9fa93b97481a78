"""DUSt3R's real classes at tiny random size: what we hand over and what we take back."""

import sys

import pytest
import torch
from factories import make_scene

from fvgen_recon.errors import InputError, MissingDependencyError, WeightsError
from fvgen_recon.geometry.projection import pixel_centres, project_points
from fvgen_recon.pointcloud.dust3r import Dust3r, _import, _prepare


@pytest.fixture(scope="module")
def network():
    pytest.importorskip("roma", reason="DUSt3R is not installed")
    pytest.importorskip("mini_dust3r.model", reason="DUSt3R is not installed")
    torch.manual_seed(0)
    infinity = float("inf")
    return (
        _import("model")
        .AsymmetricCroCo3DStereo(
            enc_depth=2,
            dec_depth=4,
            enc_embed_dim=48,
            dec_embed_dim=48,
            enc_num_heads=2,
            dec_num_heads=2,
            pos_embed="RoPE100",
            img_size=(64, 64),
            head_type="linear",
            depth_mode=("exp", -infinity, infinity),
            conf_mode=("exp", 1, infinity),
            landscape_only=False,
        )
        .eval()
    )


def test_known_cameras_are_held_fixed(network):
    scene = make_scene(3, 52, 64)
    cloud = Dust3r(long_side=64, num_iterations=5).estimate_with(network, scene)
    assert len(cloud) == 3 * 48 * 64
    assert bool(((cloud.confidence >= 0) & (cloud.confidence <= 1)).all())
    # Every point lies on the ray of its pixel's centre; two rows were cropped at the top.
    for view in range(3):
        uv, z = project_points(cloud.xyz[cloud.view == view], scene.cameras[view])
        expected = pixel_centres(48, 64, uv) + torch.tensor([0.0, 2.0])
        error = (uv - expected.reshape(-1, 2)).norm(dim=-1)[z > 0]
        assert len(error) > 0.99 * len(z)
        assert (error < 0.02).float().mean() > 0.95


def test_pixels_are_made_square():
    scene = make_scene(2, 64, 64)
    K = scene.cameras.K.clone()
    K[:, 0, 0] *= 0.8
    cameras = type(scene.cameras)(c2w=scene.cameras.c2w, K=K, height=64, width=64)
    squashed = type(scene)(images=scene.images, cameras=cameras, names=scene.names)
    images, fitted = _prepare(squashed, 160)
    assert images.shape[-2:] == (128, 160)
    assert torch.allclose(fitted.K[:, 0, 0], fitted.K[:, 1, 1], rtol=1e-3)


def test_free_cameras_are_laid_over_the_known_ones(network):
    scene = make_scene(3, 48, 64)
    source = Dust3r(long_side=64, num_iterations=3, keep_cameras=False)
    first = source.estimate_with(network, scene)
    second = source.estimate_with(network, scene)
    assert bool(torch.isfinite(first.xyz).all())
    assert torch.equal(first.xyz, second.xyz)


def test_weights_that_are_not_there(network, tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(WeightsError, match="could not be loaded"):
        Dust3r(weights=str(tmp_path)).load_network()


def test_weights_are_never_fetched(network, monkeypatch):
    asked = {}

    def from_pretrained(name, **options):
        asked.update(options, name=name)
        return network

    monkeypatch.setattr(type(network), "from_pretrained", from_pretrained)
    Dust3r().load_network()
    assert asked == {"name": Dust3r().weights, "local_files_only": True}


def test_one_view_is_refused():
    with pytest.raises(InputError, match="at least two views"):
        Dust3r().estimate_with(torch.nn.Identity(), make_scene(1))


def test_absent_package_is_one_sentence(monkeypatch):
    for name in list(sys.modules):
        if name.split(".")[0] in {"dust3r", "mini_dust3r"}:
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "dust3r", None)
    monkeypatch.setitem(sys.modules, "mini_dust3r", None)
    with pytest.raises(MissingDependencyError, match="not installed"):
        Dust3r().estimate(make_scene(2))
