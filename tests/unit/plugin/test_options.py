"""The splat's options: those that never helped are gone; what documents and lists name is there."""

import json
import re
from dataclasses import fields
from pathlib import Path

import pytest
from nerfstudio.models.splatfacto import SplatfactoModelConfig

from fvgen_nerfstudio.method import fvgen_splat
from fvgen_nerfstudio.settings import FvgenModelConfig

ROOT = Path(__file__).resolve().parents[3]
LISTS = sorted((ROOT / "benchmarks" / "ablations").glob("*.json"))
SET_BY_THE_METHOD = {"max_gaussians", "num_members"}
"""Sizes that recipes set, and what the pipeline tells the model."""


def documented() -> set[str]:
    """Return the options of the model in the plugin's table."""
    text = (ROOT / "docs" / "plugin.md").read_text()
    rows = re.findall(r"^\| `--pipeline\.model\.(.*?) \|", text, re.MULTILINE)
    return {name.strip("` ").replace("-", "_") for row in rows for name in row.split(",")}


def test_the_table_of_options_has_all_and_no_other() -> None:
    stock = {field.name for field in fields(SplatfactoModelConfig)}
    own = {field.name for field in fields(FvgenModelConfig)} - stock - SET_BY_THE_METHOD
    assert documented() - stock == own
    for gone in ("cross_view", "doubt_weight", "smooth_weight"):
        assert not hasattr(FvgenModelConfig, gone)


@pytest.mark.parametrize("path", LISTS, ids=lambda path: path.name)
def test_lists_of_ablations_change_what_there_is(path: Path) -> None:
    rows = json.loads(path.read_text())
    assert rows
    for override in (word for row in rows for word in row["overrides"]):
        place, _, _ = override.partition("=")
        *owners, name = place.split(".")
        owner = fvgen_splat().config
        for step in owners:
            owner = getattr(owner, step)
        assert hasattr(owner, name), override
