"""The generators that a user can choose by name."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from fvgen_recon.densify.bank import Bank
from fvgen_recon.densify.replay import ReplayGenerator
from fvgen_recon.diffusion.generator import VideoGenerator
from fvgen_recon.diffusion.passthrough import RenderGenerator
from fvgen_recon.errors import InputError, WeightsError

DEFAULT_GENERATOR = "render"
"""What is used when a user names none; the one line to switch."""

SHIPPED_STUDENT = Path(__file__).resolve().parent.parent / "weights" / "student"
"""Where the package keeps the compact student."""


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


def _load_student(config: GeneratorConfig) -> VideoGenerator:
    from fvgen_recon.diffusion.compact.generator import load_generator as load_compact_student
    from fvgen_recon.diffusion.viewcrafter.generator import load_student

    folder = config.weights or SHIPPED_STUDENT
    if _is_pipeline(folder):
        return load_student(
            folder,
            num_frames=config.num_frames,
            num_steps=config.num_steps or 4,
            device=config.device,
        )
    if not (folder / "config.json").is_file():
        raise WeightsError(
            f"There are no student weights in {folder}: give a folder with the weights of a "
            "compact model or of a full-size pipeline, or choose the generator `render`."
        )
    return load_compact_student(
        folder, device=config.device, num_steps=config.num_steps, num_frames=config.num_frames
    )


def _load_teacher(config: GeneratorConfig) -> VideoGenerator:
    from fvgen_recon.diffusion.viewcrafter.generator import load_teacher

    if config.weights is None or not _is_pipeline(config.weights):
        raise WeightsError(
            f"The generator `teacher` needs a full-size pipeline folder and {config.weights} is "
            "none: make one with scripts/convert_viewcrafter.py."
        )
    return load_teacher(
        config.weights,
        num_frames=config.num_frames,
        num_steps=config.num_steps or 50,
        device=config.device,
    )


def _is_pipeline(folder: Path) -> bool:
    """Return whether a folder is a full-size pipeline in diffusers' layout."""
    return (folder / "model_index.json").is_file()


GENERATORS: dict[str, Callable[[GeneratorConfig], VideoGenerator]] = {
    "render": _load_render,
    "replay": _load_replay,
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
