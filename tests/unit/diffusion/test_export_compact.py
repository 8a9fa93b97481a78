"""The script that writes a trained compact model as the package ships it."""

from pathlib import Path

import pytest
import tyro

from fvgen_recon.diffusion.compact.backbone import CompactBackbone
from fvgen_recon.diffusion.compact.checkpoint import read_card, save_compact
from fvgen_recon.diffusion.compact.config import CompactConfig
from scripts.export_compact import Arguments, main

TINY = CompactConfig(
    widths=(16, 16, 16), num_blocks=(1, 1, 1), num_attention=1, head_dim=16, embedding=32
)


def test_what_is_not_named_stays_as_it_was_kept(tmp_path: Path) -> None:
    save_compact(tmp_path / "a", CompactBackbone(TINY), role="gan", num_steps=4, sampler="ode")
    main(Arguments(weights=tmp_path / "a", out=tmp_path / "b", role="student"))
    card = read_card(tmp_path / "b")
    assert (card.role, card.num_steps, card.sampler) == ("student", 4, "ode")
    named = Arguments(
        weights=tmp_path / "a", out=tmp_path / "b", role="teacher", num_steps=8, sampler="sde"
    )
    main(named)
    card = read_card(tmp_path / "b")
    assert (card.role, card.num_steps, card.sampler) == ("teacher", 8, "sde")


@pytest.mark.parametrize(
    "slip", [["--role", "teecher"], ["--role", "teacher", "--sampler", "ddim"]]
)
def test_roles_and_samplers_that_nobody_would_read_are_refused(slip: list[str]) -> None:
    with pytest.raises(SystemExit):
        tyro.cli(Arguments, args=["--weights", "a", "--out", "b", *slip])
