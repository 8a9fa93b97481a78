"""What a user sets in the plugin reaches the front half, and mistakes are said before training."""

import pytest

from fvgen_nerfstudio.generation import check_config, make_config
from fvgen_nerfstudio.rounds import DensifySettings
from fvgen_recon.errors import InputError


def test_settings_reach_the_front_half():
    settings = DensifySettings(
        generator="render", calibrated=True, few_steps_below=0.1, num_samples=3, long_side=64
    )
    config = make_config(settings, "plane-sweep", "cpu")
    assert config.confidence.calibrated
    assert (config.few_steps_below, config.num_samples, config.long_side) == (0.1, 3, 64)
    assert not make_config(DensifySettings(), "plane-sweep", "cpu").confidence.calibrated


def test_a_generator_without_calibrated_confidence_is_refused():
    check_config(make_config(DensifySettings(generator="render", calibrated=True), "random", "cpu"))
    unknown = DensifySettings(generator="replay", calibrated=True)
    with pytest.raises(InputError, match="no calibrated confidence"):
        check_config(make_config(unknown, "random", "cpu"))
