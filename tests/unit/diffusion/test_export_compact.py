"""The script that writes a trained compact model as the package ships it."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import tyro

from fvgen_recon.diffusion.compact.backbone import CompactBackbone
from fvgen_recon.diffusion.compact.checkpoint import (
    average_compact,
    load_compact,
    read_card,
    save_compact,
)
from fvgen_recon.diffusion.compact.config import CompactConfig
from fvgen_recon.errors import WeightsError
from scripts.export_compact import Arguments, main

TINY = CompactConfig(
    widths=(16, 16, 16), num_blocks=(1, 1, 1), num_attention=1, head_dim=16, embedding=32
)


def test_what_is_not_named_stays_as_it_was_kept(tmp_path: Path) -> None:
    save_compact(tmp_path / "a", CompactBackbone(TINY), role="gan", num_steps=4, sampler="ode")
    main(Arguments(weights=tmp_path / "a", out=tmp_path / "b", role="student"))
    card = read_card(tmp_path / "b")
    assert (card.role, card.num_steps, card.sampler) == ("student", 4, "ode")
    assert (card.config.fine_power, card.config.fine_nearest) == (1, False)
    named = Arguments(
        weights=tmp_path / "a",
        out=tmp_path / "b",
        role="teacher",
        num_steps=8,
        sampler="sde",
        fine_power=3.0,
        fine_nearest=True,
    )
    main(named)
    card = read_card(tmp_path / "b")
    assert (card.role, card.num_steps, card.sampler) == ("teacher", 8, "sde")
    assert (card.config.fine_power, card.config.fine_nearest) == (3, True)


@pytest.mark.parametrize(
    "slip", [["--role", "teecher"], ["--role", "teacher", "--sampler", "ddim"]]
)
def test_roles_and_samplers_that_nobody_would_read_are_refused(slip: list[str]) -> None:
    with pytest.raises(SystemExit):
        tyro.cli(Arguments, args=["--weights", "a", "--out", "b", *slip])


def test_the_mean_of_several_trainings(tmp_path: Path) -> None:
    networks = [CompactBackbone(replace(TINY, fine_power=power)) for power in (2.0, 1.0, 1.0)]
    with torch.no_grad():
        for value, network in enumerate(networks):
            for weight in network.parameters():
                weight.fill_(float(value**2))
            save_compact(tmp_path / str(value), network, role="regression", num_steps=1)
    main(
        Arguments(
            weights=tmp_path / "0",
            average=(tmp_path / "1", tmp_path / "2"),
            out=tmp_path / "mean",
            role="regression",
        )
    )
    backbone = load_compact(tmp_path / "mean")[0].backbone
    assert isinstance(backbone, CompactBackbone)
    assert backbone.config.fine_power == 2
    for weight in backbone.parameters():  # (0 + 1 + 4) / 3, in eight bits
        torch.testing.assert_close(weight, torch.full_like(weight, 5 / 3), atol=0.01, rtol=0)
    other = CompactBackbone(replace(TINY, finish=16))
    with pytest.raises(WeightsError, match="2 shapes came"):
        average_compact([networks[0], other])
