"""Settings of the splat, on top of splatfacto's."""

from dataclasses import dataclass, field
from typing import Literal

from nerfstudio.models.splatfacto import SplatfactoModelConfig

from fvgen_recon.errors import InputError


def _model() -> type:
    """Return the model's class; it imports these settings, so it is imported when asked for."""
    from fvgen_nerfstudio.model import FvgenModel

    return FvgenModel


@dataclass
class FvgenModelConfig(SplatfactoModelConfig):
    """Splatfacto's options; generated views bring their own weights with them."""

    _target: type = field(default_factory=_model)
    max_gaussians: int = 2_000_000
    """Number of Gaussians above which no more are added."""
    strategy: Literal["default", "mcmc", "none"] = "default"
    """How Gaussians are added and removed: by screen-space gradients, by Markov chain, not at
    all."""
    seed_size: float = 0.0
    """Standard deviation of the first Gaussians over the width that their point covers in its
    photo; 0 takes the distance to the nearest points."""
    seed_opacity: tuple[float, float] = (0.1, 0.1)
    """Opacity of the first Gaussians at confidence 0 and at confidence 1."""
    num_members: int = 1
    """Number of members, sets of Gaussians that are trained apart and whose renders are averaged;
    the pipeline sets it when a run starts."""
    export_opacity: float = 1.0
    """How many times each Gaussian counts in an exported .ply: its opacity o becomes
    1 - (1 - o)^times there. 1 / members makes members that show the same as opaque as one."""
    depth_weight: float = 0.0
    """Weight of the difference between rendered and measured inverse depth on photos."""
    solid_weight: float = 0.0
    """Weight of the transparency of renders where photos have measured depth."""
    dropout: float = 0.0
    """Share of Gaussians left out of a training render at the end of the run; rises from 0."""
    opacity_weight: float = 0.0
    """Weight of the mean opacity; the Markov chain's own is 0.01."""
    scale_weight: float = 0.0
    """Weight of the mean standard deviation, in world units; the Markov chain's own is 0.01."""
    replay: bool = True
    """Whether a CUDA device records the losses' kernels once and launches them together."""
    near: float = 0.5
    """Outside of training nothing is drawn nearer than this share of the nearest distance that an
    input photo shows: what looks right in a photo far away may hang before a camera beside it. 0
    draws all."""
    unknown: Literal["color", "diffuse", "diffuse-always"] = "color"
    """What is shown where no Gaussian is: one colour, or colours from around the hole, in
    evaluation or in training too."""


def check_model(config: FvgenModelConfig) -> None:
    """Check, before anything is read, the numbers that have limits.

    Raises:
        InputError: One of them is beyond its limits.
    """
    limits = (
        ("dropout", config.dropout, 0 <= config.dropout < 1, "in [0, 1)"),
        ("near", config.near, 0 <= config.near <= 1, "in [0, 1]"),
        ("export-opacity", config.export_opacity, config.export_opacity > 0, "above 0"),
        (
            "seed-opacity",
            " ".join(f"{opacity:g}" for opacity in config.seed_opacity),
            all(0 < opacity < 1 for opacity in config.seed_opacity),
            "in (0, 1)",
        ),
    )
    for name, value, is_within, limit in limits:
        if not is_within:
            raise InputError(f"--pipeline.model.{name} must be {limit}: {value} came.")
