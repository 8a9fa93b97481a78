"""The discriminator's heads: neutral start, clips on their own, calibration, refusals."""

import pytest
import torch
from torch import nn

from fvgen_recon.diffusion.discriminator import ClipDiscriminator
from fvgen_recon.errors import InputError


def make() -> ClipDiscriminator:
    torch.manual_seed(0)
    disc = ClipDiscriminator((6, 4), layers=(0, 2), width=16)
    for head in disc.heads:
        nn.init.normal_(head.last.weight)  # pyright: ignore[reportArgumentType]
    return disc


def features(num: int = 3) -> tuple[torch.Tensor, ...]:
    rng = torch.Generator().manual_seed(1)
    shapes = ((6, 4, 3, 5), (5, 4, 6, 10), (4, 4, 12, 20))
    return tuple(torch.randn(num, *shape, generator=rng) for shape in shapes)


def test_untrained_heads_are_undecided() -> None:
    logit = ClipDiscriminator((6,), width=16)(features())
    assert logit.tolist() == [0.0, 0.0, 0.0]


def test_each_clip_is_judged_on_its_own() -> None:
    disc, all_features = make(), features()
    together = disc(all_features)
    alone = torch.cat([disc(tuple(f[i : i + 1] for f in all_features)) for i in range(3)])
    torch.testing.assert_close(together, alone)
    assert together.std() > 1e-3


def test_selected_layers_count_and_others_do_not() -> None:
    disc, given = make(), list(features())
    before = disc(given)
    given[1] = given[1] * 5
    assert torch.equal(before, disc(given))
    given[2] = given[2] + 1
    assert not torch.allclose(before, disc(given))


def test_logit_is_indifferent_to_the_scale_of_features_but_sees_their_mean() -> None:
    disc, given = make(), features()
    for head in disc.heads:
        nn.init.zeros_(head.body[0].bias)  # pyright: ignore[reportArgumentType]
    torch.testing.assert_close(disc(given), disc([1000 * f for f in given]), rtol=1e-3, atol=1e-4)
    assert not torch.allclose(disc(given), disc([f + 0.5 for f in given]), atol=1e-2)


def test_logit_is_the_mean_of_the_heads_over_the_temperature() -> None:
    disc, given = make(), features()
    by_hand = (disc.heads[0](given[0]) + disc.heads[1](given[2])) / 2
    torch.testing.assert_close(disc(given), by_hand)
    disc.set_temperature(4.0)
    torch.testing.assert_close(disc(given), by_hand)
    torch.testing.assert_close(disc(given, calibrated=True), by_hand / 4)
    assert disc.state_dict()["temperature"] == 4.0


def test_logits_are_float32_under_autocast() -> None:
    with torch.autocast("cpu", torch.bfloat16):
        assert make()(features()).dtype == torch.float32


def test_lists_that_do_not_fit_are_told() -> None:
    with pytest.raises(InputError, match="one number of channels for each"):
        ClipDiscriminator((6, 4), layers=(0,))
    with pytest.raises(InputError, match="multiple of 32"):
        ClipDiscriminator((6,), width=70)
