"""Step numbers of a configuration, brought to another length of the run."""

from typing import Any

from nerfstudio.engine.schedulers import ExponentialDecaySchedulerConfig

_MODEL_STEPS = (
    "warmup_length",
    "resolution_schedule",
    "sh_degree_interval",
    "stop_split_at",
    "stop_screen_size_at",
)


def stretch_model(model: Any, factor: float) -> None:
    """Multiply the step numbers of a splat's configuration; intervals stay at least 1."""
    _stretch(model, _MODEL_STEPS, factor)


def stretch_optimizers(optimizers: dict[str, Any], factor: float) -> None:
    """Multiply the lengths of the schedulers in a trainer's optimizers."""
    for group in optimizers.values():
        if isinstance(group["scheduler"], ExponentialDecaySchedulerConfig):
            _stretch(group["scheduler"], ("max_steps", "warmup_steps"), factor)


def _stretch(owner: Any, names: tuple[str, ...], factor: float) -> None:
    for name in names:
        old = getattr(owner, name)
        setattr(owner, name, max(min(old, 1), round(factor * old)))
