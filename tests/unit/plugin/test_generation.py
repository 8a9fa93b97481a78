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
    plain = make_config(DensifySettings(), "plane-sweep", "cpu")
    assert not plain.confidence.calibrated
    assert plain.generator.num_frames is None  # A full-size model knows its own length.


def test_a_generator_without_calibrated_confidence_is_refused():
    check_config(make_config(DensifySettings(generator="render", calibrated=True), "random", "cpu"))
    unknown = DensifySettings(generator="replay", calibrated=True)
    with pytest.raises(InputError, match="no calibrated confidence"):
        check_config(make_config(unknown, "random", "cpu"))


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (DensifySettings(generator="render", num_frames=1), "two frames: num_frames 1 came"),
        (DensifySettings(generator="render", num_frames=0), "two frames: num_frames 0 came"),
        (DensifySettings(generator="render", long_side=0), "one pixel: long_side 0 came"),
    ],
)
def test_sizes_of_no_clip_are_refused_before_training(settings, sentence):
    with pytest.raises(InputError, match=sentence):
        check_config(make_config(settings, "plane-sweep", "cpu"))
