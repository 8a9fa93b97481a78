"""Complete settings for training a splat, by kind of machine. Plain numbers: importing is cheap."""

from dataclasses import dataclass, field
from typing import Literal

from fvgen_recon.densify.schedule import MixingSchedule


@dataclass(frozen=True, kw_only=True, slots=True)
class SparsePrior:
    """What keeps a splat of few photos from explaining them by wrong shapes."""

    estimator: str = "stereo"
    """Where the points come from: one of `pointcloud.ESTIMATORS`."""
    ensemble: tuple[str, ...] = ()
    """Sources of points of the members of a splat whose renders are averaged; one where empty."""
    ensemble_views: int = 3
    """Up to how many input photos there are members: with more, points agree and steps are few."""
    min_confidence: float = 0.0
    """Points below this confidence are no start for a Gaussian."""
    seed_size: float = 0.4
    """Standard deviation of the first Gaussians over the width that their point covers."""
    seed_opacity: tuple[float, float] = (0.03, 0.2)
    """Opacity of the first Gaussians at confidence 0 and at confidence 1."""
    strategy: Literal["default", "mcmc", "none"] = "none"
    """How Gaussians are added and removed."""
    unknown: Literal["color", "diffuse", "diffuse-always"] = "diffuse-always"
    """What is shown where no Gaussian is."""
    dropout: float = 0.3
    """Share of Gaussians left out of a training render at the end of the run."""
    depth_weight: float = 1.0
    """Weight of the difference between rendered and measured inverse depth."""
    solid_weight: float = 0.1
    """Weight of the transparency of renders where photos have measured depth. Renders with filled
    holes need none; an exported file, which fills nothing, is full of them without."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SplatRecipe:
    """Sizes, lengths and rates of one training run."""

    num_steps: int
    """Training steps."""
    long_side: int
    """Longer image side that is trained on, in pixels; 0 keeps the photos' own size."""
    densify_long_side: int
    """Longer image side that the front half (points, renders, generator) works at, in pixels."""
    num_points: int
    """Most Gaussians to start from."""
    max_gaussians: int
    """Number of Gaussians above which no more are added."""
    num_downscales: int
    """Training starts at 1 / 2^n of the image size."""
    resolution_schedule: int
    """Steps after which the size doubles."""
    sh_degree: int
    """Degree of the spherical harmonics."""
    sh_degree_interval: int
    """Steps after which one more degree is used."""
    warmup_length: int
    """Steps before Gaussians are split or pruned."""
    refine_every: int
    """Steps between refinements."""
    reset_alpha_every: int
    """Refinements between two resets of the opacities."""
    stop_split_at: int
    """Step after which Gaussians are neither split, pruned nor reset."""
    stop_screen_size_at: int
    """Step after which a Gaussian's size on the screen no longer matters."""
    cull_alpha_thresh: float
    """Opacity below which a Gaussian is removed."""
    steps_per_save: int
    """Steps between checkpoints."""
    prior: SparsePrior = field(default_factory=SparsePrior)
    """What a splat of few photos is held to."""
    mixing: MixingSchedule = field(default_factory=MixingSchedule)
    """When generated views take part."""


def gpu_splat() -> SplatRecipe:
    """Return the settings for a CUDA device: the photos' own size, ten thousand steps.

    A third of splatfacto's thirty thousand: a handful of photos is fitted long before, and what
    follows only overfits.
    """
    return SplatRecipe(
        num_steps=10_000,
        long_side=0,
        densify_long_side=512,
        num_points=100_000,
        max_gaussians=2_000_000,
        num_downscales=0,
        resolution_schedule=1000,
        sh_degree=3,
        sh_degree_interval=1000,
        warmup_length=500,
        refine_every=100,
        reset_alpha_every=30,
        stop_split_at=6000,
        stop_screen_size_at=4000,
        cull_alpha_thresh=0.02,
        steps_per_save=2000,
        prior=SparsePrior(ensemble=("stereo", "mvs", "plane-sweep")),
    )


def cpu_splat() -> SplatRecipe:
    """Return the settings for a laptop without CUDA: small images, few Gaussians, few steps.

    In so few steps every one that is not spent on a photo is missed, so generated views take part
    in a fifth of the steps of the first half only. So few Gaussians must grow where detail asks for
    it, and leaving some out only blurs them.
    """
    return SplatRecipe(
        num_steps=600,
        long_side=256,
        densify_long_side=256,
        num_points=30_000,
        max_gaussians=40_000,
        num_downscales=0,
        resolution_schedule=150,
        sh_degree=1,
        sh_degree_interval=200,
        warmup_length=100,
        refine_every=50,
        reset_alpha_every=1000,
        stop_split_at=450,
        stop_screen_size_at=300,
        cull_alpha_thresh=0.02,
        steps_per_save=1000,
        prior=SparsePrior(estimator="plane-sweep", strategy="default", dropout=0.0),
        mixing=MixingSchedule(share=0.2, end=0.5),
    )
