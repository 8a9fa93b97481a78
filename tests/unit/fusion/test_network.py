"""The network that weighs render against frame: its start, its sizes, its files."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fvgen_recon.errors import WeightsError
from fvgen_recon.fusion.checkpoint import load_fusion, read_fusion_card, save_fusion
from fvgen_recon.fusion.config import FusionConfig
from fvgen_recon.fusion.network import FusionNetwork, join_bands, split_bands
from fvgen_recon.fusion.view import FusionView, ViewFacts

SMALL = FusionConfig(widths=(4, 6, 8), num_blocks=(1, 1, 1))
FACTS = ViewFacts(share=0.25, num_inputs=3, num_members=3, angle=0.3, distance=0.7, scale=0.6)


def _view(height: int, width: int, count: int = 1, seed: int = 0) -> FusionView:
    rng = torch.Generator().manual_seed(seed)

    def draw(channels: int) -> torch.Tensor:
        return torch.rand(count, channels, height, width, generator=rng)

    return FusionView(
        splat=draw(3),
        spread=0.1 * draw(1),
        opacity=draw(1),
        frame=draw(3),
        trusted=draw(1).round(),
        layered=draw(1).round(),
        facts=FACTS.row().expand(count, -1),
    )


def _stirred(config: FusionConfig = SMALL, strength: float = 0.05) -> FusionNetwork:
    """Return a network whose every weight is at work."""
    torch.manual_seed(1)
    rng = torch.Generator().manual_seed(1)
    network = FusionNetwork(config)
    for weight in network.parameters():
        weight.data += strength * torch.randn(weight.shape, generator=rng)
    return network.requires_grad_(False)


@pytest.mark.parametrize("size", [(1, 1), (5, 7), (32, 48), (33, 100)])
def test_untrained_it_is_the_plain_rule_at_any_size(size):
    view = _view(*size)
    image = FusionNetwork(FusionConfig())(view)
    torch.testing.assert_close(image, 0.75 * view.splat + 0.25 * view.frame, atol=1e-6, rtol=0)


def test_its_size_fits_the_package():
    count = sum(p.numel() for p in FusionNetwork(FusionConfig()).parameters())
    assert 2 * count < 5e6  # Bytes in bfloat16.


def test_every_weight_can_learn_and_every_map_and_fact_matters():
    network = _stirred().requires_grad_(True)
    view = _view(16, 16, count=2)
    network(view).square().mean().backward()
    for name, weight in network.named_parameters():
        assert weight.grad is not None, name
        assert float(weight.grad.abs().max()) > 0, name
    before = network(view)
    for name in ("splat", "spread", "opacity", "frame", "trusted", "layered"):
        changed = replace(view, **{name: 1 - getattr(view, name)})
        assert not torch.allclose(network(changed), before, atol=1e-6), name
    for place in range(view.facts.shape[1]):
        facts = view.facts.clone()
        facts[:, place] *= 1.3
        assert not torch.allclose(network(replace(view, facts=facts)), before, atol=1e-7), place


def test_bands_are_those_of_a_pyramid():
    image = _view(16, 24).splat
    bands = split_bands(image, 4)
    assert [tuple(band.shape[-2:]) for band in bands] == [(16, 24), (8, 12), (4, 6), (2, 3)]
    torch.testing.assert_close(join_bands(bands), image)
    torch.testing.assert_close(bands[-1], torch.nn.functional.avg_pool2d(image, 8))
    # A smooth image has no detail.
    assert float(split_bands(torch.full_like(image, 0.3), 4)[0].abs().max()) < 1e-6


def test_nothing_is_added_that_neither_shows():
    """Whatever the weights say, two images of one colour stay between both."""
    network, view = _stirred(), _view(16, 24)
    for weight in network.head.parameters():
        weight.mul_(20)
    splat, frame = (torch.full_like(view.splat, value) for value in (0.2, 0.6))
    image = network(replace(view, splat=splat, frame=frame))
    assert float(image.min()) > 0.2 - 1e-5
    assert float(image.max()) < 0.6 + 1e-5
    assert float(image.max() - image.min()) > 0.02


def test_what_lies_far_away_matters_and_the_rest_of_the_batch_does_not():
    network = _stirred(FusionConfig(widths=(4, 4, 4, 4, 4)), strength=0.3)
    view = _view(96, 96, count=2)
    splat = view.splat.clone()
    splat[0, :, 40:56, 75:] = 0
    moved = network(replace(view, splat=splat)) - network(view)
    assert float(moved[0, :, 48, 15].abs().max()) > 0
    assert float(moved[1].abs().max()) == 0


@pytest.mark.parametrize(("storage", "tolerance"), [("bfloat16", 5e-3), ("int8", 2e-2)])
def test_a_network_comes_back_from_its_folder(tmp_path: Path, storage, tolerance):
    network, view = _stirred(), _view(16, 24)
    card = save_fusion(tmp_path, network, {"steps": 3}, storage)
    assert read_fusion_card(tmp_path) == card
    again = load_fusion(tmp_path)
    assert again.config == SMALL
    torch.testing.assert_close(again(view), network(view), atol=tolerance, rtol=0)


def test_damaged_and_missing_weights_are_told_of(tmp_path: Path):
    with pytest.raises(WeightsError, match="No fusion network at"):
        load_fusion(tmp_path)
    save_fusion(tmp_path, _stirred(), {})
    weights = tmp_path / "weights.safetensors"
    data = weights.read_bytes()
    weights.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(WeightsError, match="checksum does not fit"):
        load_fusion(tmp_path)
    weights.unlink()
    with pytest.raises(WeightsError, match="are missing"):
        load_fusion(tmp_path)
    (tmp_path / "config.json").write_text('{"schema": 1, "config": {"depth": [3]}}')
    with pytest.raises(WeightsError, match="not the config of a fusion network"):
        load_fusion(tmp_path)
