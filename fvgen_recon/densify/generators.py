"""The generators that a user can choose by name."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from fvgen_recon.densify.bank import Bank
from fvgen_recon.densify.replay import ReplayGenerator
from fvgen_recon.diffusion.generator import VideoGenerator
from fvgen_recon.diffusion.passthrough import RenderGenerator
from fvgen_recon.errors import InputError

DEFAULT_GENERATOR = "render"
"""What is used when a user names none; the one line to switch."""


@dataclass(frozen=True, kw_only=True, slots=True)
class GeneratorConfig:
    """Which generator fills the views, and how."""

    name: str = DEFAULT_GENERATOR
    """One of `GENERATORS`."""
    weights: Path | None = None
    """Folder of the weights (student, teacher) or of the bank (replay); none means the shipped."""
    num_steps: int | None = None
    """Network evaluations a clip; none means the model's own default."""
    num_frames: int = 16
    """Length of a clip."""
    device: str = "cpu"
    """Where the network runs."""


def _load_render(config: GeneratorConfig) -> VideoGenerator:
    return RenderGenerator(num_frames=config.num_frames)


def _load_replay(config: GeneratorConfig) -> VideoGenerator:
    if config.weights is None:
        raise InputError("The generator `replay` needs the folder of a bank: none was given.")
    return ReplayGenerator(bank=Bank(config.weights), num_frames=config.num_frames)


GENERATORS: dict[str, Callable[[GeneratorConfig], VideoGenerator]] = {
    "render": _load_render,
    "replay": _load_replay,
}


def load_generator(config: GeneratorConfig) -> VideoGenerator:
    """Load a generator by name.

    Raises:
        InputError: There is no generator of that name.
    """
    if config.name not in GENERATORS:
        known = ", ".join(sorted(GENERATORS))
        raise InputError(f"There is no generator `{config.name}`: choose one of {known}.")
    return GENERATORS[config.name](config)
