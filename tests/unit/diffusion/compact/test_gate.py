"""The gate through which the noisy frame reaches the output."""

import json
from dataclasses import replace

import pytest
import torch
from unit.diffusion.compact.miniature import TINY, make_backbone
from unit.diffusion.compact.test_compact_backbone import make_inputs

from fvgen_recon.diffusion.compact.backbone import CompactBackbone
from fvgen_recon.diffusion.compact.checkpoint import load_compact, read_card, save_compact, widen
from fvgen_recon.diffusion.compact.head import pass_gate

GATED = replace(TINY, gate=True)


def make_gated(scale: float = 0.05) -> CompactBackbone:
    torch.manual_seed(0)
    backbone = CompactBackbone(GATED)
    with torch.no_grad():
        for parameter in backbone.parameters():
            parameter.add_(scale * torch.randn_like(parameter))
    return backbone.eval()


def _column(*levels: float) -> torch.Tensor:
    return torch.tensor(levels).view(-1, 1, 1, 1)


def test_mix_against_wieners_formula(rng):
    guess, noisy = torch.randn(2, 3, 3, 4, 5, generator=rng)
    doubt = 0.2 * torch.randn(3, 1, 4, 5, generator=rng)
    level = _column(0.05, 0.5, 0.9)
    got = pass_gate(guess, noisy, level, doubt)
    s = 0.03 * torch.exp(3.4 * torch.tanh(8 * doubt / 3.4))
    sigma = level / (1 - level)
    share = s**2 / (s**2 + sigma**2)
    wanted = share * noisy / (1 - level) + (1 - share) * guess
    torch.testing.assert_close(got, wanted, atol=1e-5, rtol=1e-4)


def test_all_of_the_frame_without_noise_and_none_of_pure_noise(rng):
    guess, noisy = torch.randn(2, 2, 3, 4, 5, generator=rng)
    # Whatever the network says of its doubt.
    for doubt in (-1e4, 0.0, 1e4):
        got = pass_gate(guess, noisy, _column(0.0, 1.0), torch.full((2, 1, 4, 5), doubt))
        torch.testing.assert_close(got[0], noisy[0], atol=1e-6, rtol=1e-6)
        assert torch.equal(got[1], guess[1])


@pytest.mark.parametrize("level", [0.0, 0.001, 0.999, 1.0])
def test_gradients_are_finite_at_the_ends(rng, level):
    tensors = [torch.randn(1, c, 4, 5, generator=rng).requires_grad_() for c in (3, 3, 1)]
    guess, noisy, doubt = tensors
    pass_gate(guess, noisy, _column(level), doubt).square().sum().backward()
    for tensor in tensors:
        assert tensor.grad is not None
        assert bool(tensor.grad.isfinite().all())


@pytest.mark.parametrize("level", [0.02, 0.03, 0.05])
def test_an_honest_doubt_beats_the_guess_and_the_frame(rng, level):
    x0 = torch.rand(1, 3, 64, 64, generator=rng) * 2 - 1
    guess = x0 + 0.03 * torch.randn(x0.shape, generator=rng)  # off by what a doubt of 0 says
    noisy = (1 - level) * x0 + level * torch.randn(x0.shape, generator=rng)
    mixed = pass_gate(guess, noisy, _column(level), torch.zeros(1, 1, 64, 64))
    variance = 1 / (1 / 0.03**2 + ((1 - level) / level) ** 2)
    assert float((mixed - x0).square().mean()) == pytest.approx(variance, rel=0.05)
    assert variance < min(0.03**2, (level / (1 - level)) ** 2)


def test_a_network_with_a_gate_gives_back_a_frame_without_noise():
    x, t, condition = make_inputs(num_clips=2)
    with torch.no_grad():
        x0, _ = make_gated()(x, torch.zeros_like(t), condition)
    torch.testing.assert_close(x0, x, atol=1e-5, rtol=1e-5)


def test_every_clip_has_a_time_of_its_own():
    backbone = make_gated()
    x, _, condition = make_inputs(num_clips=2)
    t = torch.tensor([30.5, 400.0])
    with torch.no_grad():
        both, _ = backbone(x, t, condition)
        for i in range(2):
            alone, _ = backbone(x[i : i + 1], t[i : i + 1], condition[i : i + 1])
            # An untrained gate is steep: it makes more of what two layouts of a batch round apart.
            torch.testing.assert_close(both[i : i + 1], alone, atol=2e-4, rtol=1e-3)
        other, _ = backbone(x[:1], t[1:], condition[:1])
    assert (other - both[:1]).abs().max() > 0.1


def test_every_weight_of_a_gated_network_is_trained():
    backbone = make_gated()
    x, t, condition = make_inputs()
    backbone(x, t // 4, condition)[0].square().mean().backward()
    unused = [n for n, p in backbone.named_parameters() if p.grad is None or not p.grad.any()]
    assert unused == []


def test_no_value_decides_what_is_computed():
    backbone = make_gated().to("meta")
    x, t, condition = make_inputs()
    x0, _ = backbone(x.to("meta"), t.to("meta"), condition.to("meta"))
    assert x0.shape == x.shape


def test_a_new_gate_keeps_the_answer_to_pure_noise():
    plain = make_backbone()
    gated = widen(plain, gate=True, num_alternatives=0)
    x, t, condition = make_inputs()
    with torch.no_grad():
        pure = torch.full_like(t, 999)
        torch.testing.assert_close(
            gated(x, pure, condition)[0], plain(x, pure, condition)[0], atol=1e-6, rtol=1e-5
        )
        less = torch.full_like(t, 100)
        assert (gated(x, less, condition)[0] - plain(x, less, condition)[0]).abs().max() > 0.1
    assert gated.config == GATED
    assert not plain.config.gate


def test_a_gate_that_is_there_stays():
    gated = make_gated()
    again = widen(gated, gate=True, num_alternatives=0)
    for name, value in again.state_dict().items():
        assert torch.equal(value, gated.state_dict()[name]), name


def test_what_is_kept_comes_back_with_its_gate(tmp_path):
    gated = make_gated()
    with torch.no_grad():
        for parameter in gated.parameters():
            parameter.copy_(parameter.bfloat16())
    save_compact(tmp_path, gated, role="teacher", num_steps=8)
    model, card = load_compact(tmp_path)
    assert card.config == GATED
    x, t, condition = make_inputs()
    with torch.no_grad():
        assert torch.equal(model.backbone(x, t, condition)[0], gated(x, t, condition)[0])


def test_configs_from_before_the_gate_have_none(tmp_path):
    save_compact(tmp_path, make_backbone(), role="teacher", num_steps=8)
    file = tmp_path / "config.json"
    content = json.loads(file.read_text())
    del content["config"]["gate"]
    file.write_text(json.dumps(content))
    assert read_card(tmp_path).config == TINY
    assert load_compact(tmp_path)[1].config == TINY
