"""Recorded steps of the stereo training give what plain ones give."""

import copy
import logging
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from unit.pointcloud.stage import make_stage

from fvgen_recon.distill.stereo import gradient
from fvgen_recon.distill.stereo.bank import RealScene, StereoBank
from fvgen_recon.distill.stereo.batch import StereoBatch
from fvgen_recon.distill.stereo.gradient import GradientFinder
from fvgen_recon.distill.stereo.training import StereoSettings, StereoTrainer
from fvgen_recon.pointcloud.mvs.config import MvsConfig
from fvgen_recon.pointcloud.mvs.network import MvsNetwork

pytestmark = pytest.mark.gpu

SHAPES = ((2, (32, 48)), (3, (32, 48)), (4, (48, 32)))
SETTINGS = StereoSettings(
    seconds=1e6,
    max_steps=12,
    views_a_batch=6,
    view_shares=(0.5, 0.5),
    sizes=((32, 48), (48, 64)),
    log_every=4,
)


@pytest.fixture(scope="module")
def bank() -> StereoBank:
    device = torch.device("cuda")
    scene, depth = make_stage((-12, -4, 4, 12))
    angle = torch.tensor([-12.0, -4, 4, 12])
    real = RealScene(
        name="stage",
        photos=(scene.images * 255).round().byte().to(device),
        cameras=scene.cameras,
        truth=(1 / depth).to(device),
        angle=(angle[:, None] - angle).abs(),
    )
    return StereoBank([real], device, 0)


def make_network() -> MvsNetwork:
    torch.manual_seed(0)
    network = MvsNetwork(MvsConfig())
    with torch.no_grad():  # layers that start at zero would pass no gradient
        for weight in network.parameters():
            weight.add_(0.02 * torch.randn_like(weight))
    return network.cuda()


def gradients(finder: GradientFinder, batch: StereoBatch) -> tuple[Tensor, list[Tensor]]:
    figures = finder.find(batch)
    found = [w.grad for w in finder.weights]
    return figures, [g.clone() for g in found if g is not None]


def distance(found: list[Tensor], expected: list[Tensor]) -> float:
    """Relative distance of all gradients together."""
    assert len(found) == len(expected) > 0
    first, second = (torch.cat([g.flatten() for g in gs]) for gs in (found, expected))
    return float((first - second).norm() / second.norm())


@pytest.mark.parametrize(("is_mixed", "limit"), [(False, 1e-2), (True, 3e-2)])
def test_recorded_gradients_are_the_plain_ones(
    bank: StereoBank, is_mixed: bool, limit: float, caplog: pytest.LogCaptureFixture
) -> None:
    plain_network = make_network()
    network = copy.deepcopy(plain_network)
    plain_network.is_mixed = network.is_mixed = is_mixed
    plain = GradientFinder(plain_network, is_recorded=False)
    recorded = GradientFinder(network, is_recorded=True)
    with caplog.at_level(logging.WARNING):
        for num_views, size in (*SHAPES, *SHAPES):
            batch = bank.draw(2, num_views, size, real_share=0.5)
            expected_figures, expected = gradients(plain, batch)
            figures, found = gradients(recorded, batch)
            torch.testing.assert_close(figures, expected_figures, rtol=limit, atol=limit)
            assert distance(found, expected) < limit
            with torch.no_grad():  # weights change in place: recordings must follow them
                for one, other, g in zip(plain.weights, recorded.weights, expected, strict=True):
                    other.copy_(one.sub_(1e-3 * g.sign()))
    assert recorded.is_recorded, caplog.text
    assert len(recorded.made) == len(SHAPES)


def test_a_recorded_training_follows_the_plain_one(bank: StereoBank) -> None:
    curves = []
    for is_recorded in (False, True):
        bank.rng.manual_seed(7)
        network = make_network()
        average = copy.deepcopy(network).requires_grad_(False)
        settings = replace(SETTINGS, recorded=is_recorded, learning_rate=1e-4)
        trainer = StereoTrainer(network, average, bank, settings)
        curves.append(list(trainer.run()))
        assert trainer.gradients.is_recorded == is_recorded
    for plain, recorded in zip(*curves, strict=True):
        assert recorded.step == plain.step
        for key in ("total", "coarse_entropy", "full_error", "norm"):
            assert recorded.figures[key] == pytest.approx(plain.figures[key], rel=0.1), key


def test_what_cannot_be_recorded_runs_with_a_warning(
    bank: StereoBank, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses = gradient.stereo_losses

    def looks(*args):
        found = losses(*args)
        assert float(found.total) > 0  # a look at the GPU, which no recording can hold
        return found

    monkeypatch.setattr(gradient, "stereo_losses", looks)
    network = make_network()
    batch = bank.draw(2, 2, (32, 48), real_share=0.5)
    expected_figures, expected = gradients(GradientFinder(network, is_recorded=False), batch)
    finder = GradientFinder(network, is_recorded=True)
    with caplog.at_level(logging.WARNING):
        figures, found = gradients(finder, batch)
    assert "NOT RECORDED" in caplog.text
    assert not finder.is_recorded
    torch.testing.assert_close(figures, expected_figures, rtol=1e-2, atol=1e-2)
    assert distance(found, expected) < 1e-2
