"""The generators that a user can choose by name."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from fvgen_recon.densify.bank import Bank
from fvgen_recon.densify.fill import FillGenerator
from fvgen_recon.densify.replay import ReplayGenerator
from fvgen_recon.diffusion.generator import VideoGenerator
from fvgen_recon.diffusion.passthrough import RenderGenerator
from fvgen_recon.errors import InputError, WeightsError

DEFAULT_GENERATOR = "regression"
"""What is used when a user names none; the one line to switch."""

SHIPPED_WEIGHTS = Path(__file__).resolve().parent.parent / "weights"
"""Where the package keeps compact models, each in a folder of its generator's name."""
COMPACT_TEACHER = SHIPPED_WEIGHTS.parents[1] / "checkpoints" / "compact-teacher"
"""The compact teacher of a checkout, which an installed package does not bring."""
NO_WEIGHTS = frozenset({"render", "fill"})
"""Generators without a network."""


@dataclass(frozen=True, kw_only=True, slots=True)
class GeneratorConfig:
    """Which generator fills the views, and how."""

    name: str = DEFAULT_GENERATOR
    """What fills the views: regression, student, teacher, fill, render or replay."""
    weights: Path | None = None
    """Folder of the weights (student, teacher, regression) or of the bank (replay); none means what
    the package brings."""
    num_steps: int | None = None
    """Network evaluations a clip; none means the model's own default."""
    num_frames: int | None = None
    """Length of a clip; none means 16, or what a full-size model makes where it is another."""
    device: str = "cpu"
    """Where the network runs."""


_LENGTH = 16


def _load_render(config: GeneratorConfig) -> VideoGenerator:
    return RenderGenerator(num_frames=config.num_frames or _LENGTH)


def _load_replay(config: GeneratorConfig) -> VideoGenerator:
    if config.weights is None:
        raise InputError("The generator `replay` needs the folder of a bank: none was given.")
    return ReplayGenerator(bank=Bank(config.weights), num_frames=config.num_frames or _LENGTH)


def _load_fill(config: GeneratorConfig) -> VideoGenerator:
    return FillGenerator(num_frames=config.num_frames or _LENGTH)


def _load_compact(config: GeneratorConfig) -> VideoGenerator:
    from fvgen_recon.diffusion.compact.generator import load_generator as load_compact_generator

    folder = config.weights or SHIPPED_WEIGHTS / config.name
    if not (folder / "config.json").is_file():
        raise WeightsError(
            f"There are no weights of a `{config.name}` in {folder}: name a folder with "
            "config.json (a compact model) or model_index.json (a full-size pipeline), or choose "
            "the generator `render` or `fill`, which need none."
        )
    generator = load_compact_generator(
        folder,
        device=config.device,
        num_steps=config.num_steps,
        num_frames=config.num_frames or _LENGTH,
    )
    return replace(generator, name=config.name)


def _load_student(config: GeneratorConfig) -> VideoGenerator:
    from fvgen_recon.diffusion.viewcrafter.generator import load_student

    if config.weights is None or not is_full_size(config.weights):
        return _load_compact(config)
    return load_student(
        config.weights,
        num_frames=config.num_frames,
        num_steps=config.num_steps,
        device=config.device,
    )


def _load_teacher(config: GeneratorConfig) -> VideoGenerator:
    from fvgen_recon.diffusion.viewcrafter.generator import load_teacher

    if config.weights is None or not is_full_size(config.weights):
        return _load_compact(config)
    return load_teacher(
        config.weights,
        num_frames=config.num_frames,
        num_steps=config.num_steps or 50,
        device=config.device,
    )


def is_full_size(folder: Path) -> bool:
    """Return whether a folder is a full-size pipeline in diffusers' layout.

    Such a model makes clips of the lengths that it was trained for, a compact one of any.
    """
    return (folder / "model_index.json").is_file()


GENERATORS: dict[str, Callable[[GeneratorConfig], VideoGenerator]] = {
    "render": _load_render,
    "fill": _load_fill,
    "replay": _load_replay,
    "regression": _load_compact,
    "student": _load_student,
    "teacher": _load_teacher,
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
