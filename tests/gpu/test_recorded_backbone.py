"""Recorded calls of the compact backbone give what plain ones give, with gradients."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from fvgen_recon.diffusion.backbone import Condition, mid_features
from fvgen_recon.diffusion.compact.backbone import CompactBackbone
from fvgen_recon.diffusion.compact.config import CompactConfig
from fvgen_recon.distill.recording import Recordings

pytestmark = pytest.mark.gpu

SMALL = CompactConfig(
    widths=(32, 32, 48),
    num_blocks=(1, 1, 1),
    num_attention=1,
    head_dim=16,
    embedding=32,
    gate=True,
)


def make_pair() -> tuple[CompactBackbone, CompactBackbone]:
    torch.manual_seed(0)
    plain, recorded = (CompactBackbone(SMALL) for _ in range(2))
    with torch.no_grad():
        for parameter in plain.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    recorded.load_state_dict(plain.state_dict())
    plain, recorded = plain.cuda(), recorded.cuda()
    Recordings().record(recorded, through=True)
    return plain, recorded


def make_inputs(seed: int) -> tuple[Tensor, Tensor, Condition]:
    rng = torch.Generator("cuda").manual_seed(seed)

    def noise(channels: int) -> Tensor:
        return torch.randn(2, channels, 4, 16, 24, generator=rng, device="cuda")

    nothing = torch.zeros(2, 0, 1, device="cuda")
    # Masks are among the channels of the condition, and a mask below 0 has no logarithm.
    seen = noise(SMALL.condition_channels).sigmoid()
    condition = Condition(concat=seen, context=nothing, null_context=nothing)
    return noise(SMALL.latent_channels), torch.tensor([100, 900], device="cuda"), condition


def both(pair: tuple[CompactBackbone, CompactBackbone], ask: Callable, seed: int) -> None:
    """The recorded call equals the plain one."""
    results = [ask(network, *make_inputs(seed)) for network in pair]
    for plain, recorded in zip(*results, strict=True):
        torch.testing.assert_close(recorded, plain, atol=2e-4, rtol=2e-3)


def test_calls_without_gradients():
    pair = make_pair()
    with torch.no_grad():
        for seed in range(3):
            both(pair, lambda n, *a: [n(*a)[0]], seed)
            both(pair, lambda n, *a: [*n(*a, return_mid=True)[1]], seed)
            both(pair, mid_features, seed)


def test_gradients_of_weights_follow_the_weights():
    pair = make_pair()
    for seed in range(3):
        for network in pair:
            x, t, condition = make_inputs(seed)
            network(x, t, condition)[0].square().mean().backward()
        for plain, recorded in zip(*(n.parameters() for n in pair), strict=True):
            torch.testing.assert_close(recorded.grad, plain.grad, atol=2e-4, rtol=5e-3)
            with torch.no_grad():
                recorded.copy_(plain.sub_(0.1 * plain.grad))
            plain.grad = recorded.grad = None


def test_gradients_of_the_input_pass_a_frozen_network():
    pair = make_pair()
    for network in pair:
        network.requires_grad_(False)

    def ask(network: CompactBackbone, x: Tensor, t: Tensor, condition: Condition) -> list[Tensor]:
        x.requires_grad_(True)
        sum(f.square().mean() for f in mid_features(network, x, t, condition)).backward()
        return [x.grad]

    for seed in range(3):
        both(pair, ask, seed)


def test_a_second_forward_before_the_backward():
    pair = make_pair()

    def ask(network: CompactBackbone, x: Tensor, t: Tensor, condition: Condition) -> list[Tensor]:
        first, second = network(x, t, condition)[0], network(x + 1, t, condition)[0]
        (first * second).mean().backward()
        gradients = [p.grad.clone() for p in network.parameters()]
        network.zero_grad(set_to_none=True)
        return gradients

    for seed in range(2):
        both(pair, ask, seed)


@pytest.mark.parametrize("trains", [True, False])
def test_mixed_precision(trains: bool):
    pair = make_pair()
    results = []
    for network in pair:
        network.requires_grad_(trains)
        for seed in range(2):
            with torch.autocast("cuda", torch.bfloat16, cache_enabled=False):
                results.append(network(*make_inputs(seed))[0].detach().clone())
    torch.testing.assert_close(results[2], results[0], atol=0.05, rtol=0.05)
    torch.testing.assert_close(results[3], results[1], atol=0.05, rtol=0.05)
