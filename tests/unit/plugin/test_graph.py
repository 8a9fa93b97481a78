"""Recorded functions return what the functions themselves return, at every call."""

import pytest
import torch

from fvgen_nerfstudio.graph import Replayed
from fvgen_nerfstudio.loss import dssim


def _function(prediction: torch.Tensor, target: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return dssim(prediction, target), (prediction - target).abs().mean()


def _gradient(function, prediction: torch.Tensor, target: torch.Tensor) -> list[torch.Tensor]:
    leaf = prediction.clone().requires_grad_()
    outputs = function(leaf * 1.0, target)
    (outputs[0] + 3 * outputs[1]).backward()
    return [*(output.detach().clone() for output in outputs), leaf.grad]


def _images(size: tuple[int, int], seed: int, device: str) -> list[torch.Tensor]:
    rng = torch.Generator().manual_seed(seed)
    return [torch.rand(3, *size, generator=rng).to(device) for _ in range(2)]


def test_on_the_cpu_the_function_is_called_as_it_is():
    images = _images((16, 20), 0, "cpu")
    for ours, plain in zip(
        _gradient(Replayed(_function), *images), _gradient(_function, *images), strict=True
    ):
        torch.testing.assert_close(ours, plain, atol=0, rtol=0)


@pytest.mark.gpu
def test_a_recording_follows_its_inputs_and_their_sizes():
    replayed = Replayed(_function)
    for seed, size in enumerate([(16, 20), (16, 20), (32, 24), (16, 20)]):
        images = _images(size, seed, "cuda")
        expected = _gradient(_function, *images)
        for ours, plain in zip(_gradient(replayed, *images), expected, strict=True):
            torch.testing.assert_close(ours, plain, atol=1e-6, rtol=1e-5)
    with torch.no_grad():
        torch.testing.assert_close(replayed(*images)[0], _function(*images)[0])
