"""The resampler against fixtures of the original."""

from pathlib import Path

import torch

from fvgen_recon.diffusion.viewcrafter.key import load_original, same_name_rules
from fvgen_recon.diffusion.viewcrafter.parity.fixture import difference, read_fixture
from fvgen_recon.diffusion.viewcrafter.resampler import ImageResampler
from fvgen_recon.errors import InputError
from fvgen_recon.types import Difference

TOLERANCE = 1e-5


@torch.no_grad()
def compare_resampler(path: Path) -> tuple[Difference, ...]:
    """Compare the resampler with a fixture's output.

    Raises:
        InputError: The fixture is of another layout.
    """
    fixture = read_fixture(path)
    parameters = dict(fixture.fact("resampler_params"))
    try:
        num_queries = parameters.pop("num_queries")
        num_frames = parameters.pop("video_length", None) or 1
        resampler = ImageResampler(num_tokens=num_queries * num_frames, **parameters)
    except (KeyError, TypeError) as error:
        raise InputError(f"{path} does not describe a resampler: {error!r}.") from error
    load_original(resampler, same_name_rules(resampler), fixture.weights)
    output = resampler.eval()(fixture.tensor("x").float())
    return (difference("y", output, fixture.tensor("y"), TOLERANCE),)
