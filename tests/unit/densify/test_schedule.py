"""The mixing schedule ends on real views only."""

import pytest

from fvgen_recon.densify.schedule import MixingSchedule
from fvgen_recon.errors import InputError


def test_share_rises_stays_and_ends_at_zero() -> None:
    schedule = MixingSchedule(start=0.1, end=0.8, ramp=0.2, share=0.5)
    assert schedule.share_at(0.05) == 0
    assert 0 < schedule.share_at(0.15) < schedule.share_at(0.25) < 0.5
    assert schedule.share_at(0.2) == pytest.approx(0.25)
    assert schedule.share_at(0.45) == pytest.approx(0.5)
    assert schedule.share_at(0.7) == pytest.approx(0.25)
    assert schedule.share_at(0.8) == 0
    assert schedule.share_at(1.0) == 0


def test_a_schedule_that_would_end_on_generated_views_is_refused() -> None:
    with pytest.raises(InputError, match="end < 1"):
        MixingSchedule(end=1.0)


def test_the_more_photos_the_smaller_the_share():
    schedule = MixingSchedule(share=0.4)
    assert schedule.for_inputs(1) == schedule.for_inputs(6) == schedule
    assert schedule.for_inputs(9).share == pytest.approx(0.4 * 4 / 9)
    assert schedule.for_inputs(12).share == pytest.approx(0.1)
    assert schedule.for_inputs(12).weight == schedule.weight
