"""Splits are frozen: the ids in this file must never move."""

import pytest

from fvgen_recon.errors import InputError
from fvgen_recon.evaluation.protocol import (
    Split,
    folder_split,
    fsgs_split,
    mipnerf360_split,
)


def test_folder_rule() -> None:
    split = folder_split(50, 6)
    assert split.test == (4, 12, 20, 28, 36, 44)
    assert split.inputs == (0, 10, 19, 30, 39, 49)
    small = folder_split(11, 3)
    assert small.test == (2, 6, 10)
    assert small.inputs == (0, 5, 9)


def test_rounding_changes_ids() -> None:
    assert fsgs_split(100, 12).inputs != fsgs_split(100, 12, rounding="floor").inputs
    assert fsgs_split(100, 12).test == tuple(range(0, 100, 8))


def test_reconfusion_ids() -> None:
    split = mipnerf360_split("bicycle", 194, 3)
    assert split.inputs == (2, 28, 110)
    assert split.test[-1] == 192
    assert len(split.test) == 25
    for scene, count in (("bonsai", 292), ("counter", 240)):
        nested = [set(mipnerf360_split(scene, count, n).inputs) for n in (3, 6, 9)]
        assert nested[0] < nested[1] < nested[2]


def test_bad_questions_get_a_sentence() -> None:
    with pytest.raises(InputError, match="whole public release"):
        mipnerf360_split("bicycle", 100, 3)
    with pytest.raises(InputError, match="3, 6 and 9"):
        mipnerf360_split("bicycle", 194, 4)
    with pytest.raises(InputError, match="not a scene"):
        mipnerf360_split("barn", 194, 3)
    with pytest.raises(InputError, match="ask for fewer"):
        folder_split(8, 7)
    with pytest.raises(InputError, match="both inputs and test"):
        Split(inputs=(1, 2), test=(2,), rule="")
