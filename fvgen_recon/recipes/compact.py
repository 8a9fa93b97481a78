"""Complete configurations for training the compact model."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from fvgen_recon.diffusion.compact.config import NUM_ALTERNATIVES, CompactConfig
from fvgen_recon.diffusion.sampler import GuidanceScale
from fvgen_recon.distill.budget import DistilConfig
from fvgen_recon.distill.clip import write_bank
from fvgen_recon.distill.config import AnchorSettings, DmdSettings, GanSettings, OdeSettings
from fvgen_recon.distill.losses import Divergence
from fvgen_recon.distill.pack import PackedScene
from fvgen_recon.distill.pair import PairLimits, validation_plans
from fvgen_recon.distill.pretrain import PretrainConfig
from fvgen_recon.distill.rollout import NoiseRange, RolloutSettings
from fvgen_recon.distill.source import SourceShares
from fvgen_recon.errors import InputError
from fvgen_recon.pointcloud.base import PointCloudEstimator
from fvgen_recon.pointcloud.combined import CombinedStereo
from fvgen_recon.pointcloud.plane_sweep import PlaneSweep


@dataclass(frozen=True, kw_only=True, slots=True)
class CompactRecipe:
    """Data, network and stages of one training."""

    network: CompactConfig
    num_frames: int
    """Frames of a training clip."""
    crop: tuple[int, int]
    """Height and width of training clips."""
    num_plans: int
    """Different sets of inputs; each has one to six paths."""
    num_crops: int
    """Crops made from each."""
    min_clips: int
    """Training starts when this many clips are there."""
    clips_per_scene: int
    """Validation clips of each scene."""
    num_views: int
    """Input photos in validation."""
    limits: PairLimits
    shares: SourceShares
    """Where training clips come from."""
    estimator: PointCloudEstimator
    """Source of the clouds that clips are rendered from: that of inference."""
    stages: tuple[PretrainConfig | DistilConfig, ...]
    """Stages that a training can name, in the order of their first use."""
    teacher_steps: tuple[int, ...]
    """Numbers of steps at which the teacher is measured."""
    student_steps: tuple[int, ...] = (1, 2, 4)
    """Numbers of steps at which the student is measured."""


# 0.16 is the root of the squared error that one step leaves on validation clips. Own answers and
# the perceptual distance are what keeps 4 and 8 steps within 0.3 dB of one (docs/student.md).
_TEACHER = PretrainConfig(
    name="teacher",
    seconds=60.0,
    learning_rate=3e-4,
    diffusion=True,
    spread=0.16,
    time_shift=1.5,
    own_share=0.3,
    perceptual_weight=0.15,
    perceptual_start=0.0,
)
_ANCHOR = AnchorSettings(l1=20.0, perceptual=8.0)
_LOOSE_ANCHOR = AnchorSettings(l1=5.0, perceptual=2.0)
# Four times the share of the perceptual distance that the regression had: what tells them apart.
_PERCEPTUAL_ANCHOR = AnchorSettings(l1=8.0, perceptual=16.0)
# The matching gradient is normalised to about 1 a value, where L1 alone has 20 in the anchor above.
_MATCHING_ANCHOR = AnchorSettings(l1=0.5, perceptual=0.2)
# In pixels, not latents, less noise leaves all but the finest texture to be seen: scores there tell
# the teacher's habits from the critic's, not good frames from bad ones.
_HIGH_NOISE = NoiseRange(low=0.3, high=0.98)
_NO_GUIDANCE = GuidanceScale(scale=1.0)  # There is no text to drop.
# A small model has the memory for it, and so what is matched is the sample (docs/student.md).
_ROLLOUT = RolloutSettings(gradient="all_steps")


def _gan(name: str, anchor: AnchorSettings) -> DistilConfig:
    """Stage 1: real clips as positives."""
    return DistilConfig(
        name=name, seconds=60.0, settings=GanSettings(rollout=_ROLLOUT, anchor=anchor)
    )


def _matching(name: str, settings: DmdSettings) -> DistilConfig:
    """Stage 2, and what is done in its place."""
    return DistilConfig(
        name=name, seconds=60.0, settings=settings, student_rate=2e-5, judge_rate=1e-4
    )


def _dmd(divergence: Divergence) -> DmdSettings:
    return DmdSettings(
        rollout=_ROLLOUT,
        divergence=divergence,
        guidance=_NO_GUIDANCE,
        critic_space="velocity",
    )


def distillation_stages() -> tuple[DistilConfig, ...]:
    """All stages of distillation that can be named, those of the baselines included.

    `gan` is held near the real clips by L1 and a perceptual distance, `gan-loose` with a quarter of
    their weight and `gan-free` not at all (the paper has no anchor), `gan-perceptual` more by the
    perceptual distance; `dmd` is the paper's second stage, `dmd-high` the same at high noise only.
    """
    joint = replace(_dmd("rkl"), train_disc=True, disc_on="critic", gan_weight=0.03)
    path = OdeSettings(guidance=_NO_GUIDANCE, teacher_steps=16)
    return (
        _gan("gan", _ANCHOR),
        _gan("gan-loose", _LOOSE_ANCHOR),
        _gan("gan-free", AnchorSettings()),
        _gan("gan-perceptual", _PERCEPTUAL_ANCHOR),
        _matching("dmd", _dmd("soft_rkl")),
        _matching("dmd-high", replace(_dmd("soft_rkl"), noise=_HIGH_NOISE)),
        _matching("dmd-anchored", replace(_dmd("soft_rkl"), anchor=_MATCHING_ANCHOR)),
        _matching("dmd-rkl", _dmd("rkl")),
        _matching("dmd-inverse", _dmd("neyman")),
        _matching("dmd2", joint),
        DistilConfig(name="ode", seconds=60.0, settings=path),
    )


def full() -> CompactRecipe:
    """About ten minutes on one H100 or H200."""
    return CompactRecipe(
        network=CompactConfig(gate=True, num_alternatives=NUM_ALTERNATIVES, hints=True),
        num_frames=8,
        crop=(160, 256),
        num_plans=1200,
        num_crops=2,
        min_clips=400,
        clips_per_scene=6,
        num_views=3,
        # Three photos of a whole capture lie farther apart than those that stereo is trained on.
        limits=PairLimits(max_gap_deg=75.0, max_turn_deg=80.0, max_off_axis=0.5),
        shares=SourceShares(real=0.75, procedural=0.25, splat=0.0),
        estimator=CombinedStereo(),
        stages=(
            PretrainConfig(
                name="regression", seconds=160.0, perceptual_weight=0.5, perceptual_start=0.3
            ),
            replace(_TEACHER, seconds=220.0),
            *distillation_stages(),
        ),
        teacher_steps=(1, 4, 8, 50),
    )


def sharp() -> CompactRecipe:
    """As `full`, but fine detail comes from single pixels of the likeliest render, and looks count.

    Trades a little PSNR for detail in holes. Used with power 1 its weights are no worse than those
    of `full`, and the mean of both is better (docs/student.md).
    """
    recipe = full()
    first, *later = recipe.stages
    assert isinstance(first, PretrainConfig)
    first = replace(first, perceptual_weight=1.5, perceptual_start=0.0)
    network = replace(recipe.network, fine_power=16.0, fine_nearest=True)
    return replace(recipe, network=network, stages=(first, *later))


def debug() -> CompactRecipe:
    """A minute on a CPU: everything runs, nothing is learned."""
    return CompactRecipe(
        network=CompactConfig(
            widths=(16, 16, 16),
            num_blocks=(1, 1, 1),
            num_attention=1,
            head_dim=16,
            embedding=32,
            gate=True,
            num_alternatives=NUM_ALTERNATIVES,
            hints=True,
        ),
        num_frames=4,
        crop=(48, 80),
        num_plans=4,
        num_crops=2,
        min_clips=2,
        clips_per_scene=1,
        num_views=3,
        limits=PairLimits(),
        shares=SourceShares(real=1.0, procedural=0.0, splat=0.0),
        estimator=PlaneSweep(),
        stages=(
            PretrainConfig(
                name="regression", seconds=60.0, max_steps=6, batch_size=2, perceptual_weight=0.3
            ),
            replace(_TEACHER, seconds=60.0, max_steps=6, batch_size=4),
            *(
                replace(stage, max_steps=3, batch_size=2, warmup_turns=2)
                for stage in distillation_stages()
            ),
        ),
        teacher_steps=(1, 4),
    )


RECIPES: dict[str, Callable[[], CompactRecipe]] = {"full": full, "sharp": sharp, "debug": debug}


def make_recipe(name: str) -> CompactRecipe:
    """Return a recipe by name.

    Raises:
        InputError: There is no such recipe.
    """
    if name not in RECIPES:
        raise InputError(f"There is no recipe `{name}`: choose one of {', '.join(RECIPES)}.")
    return RECIPES[name]()


def write_validation_clips(
    scenes: Sequence[PackedScene], folder: Path, recipe: CompactRecipe, device: torch.device
) -> None:
    """Make the clips that models are measured on, plain and centred; those that exist are kept."""
    plans = validation_plans(
        scenes,
        num_views=recipe.num_views,
        num_frames=recipe.num_frames,
        clips=recipe.clips_per_scene,
    )
    write_bank(
        scenes,
        plans,
        folder,
        recipe.estimator,
        crop=recipe.crop,
        num_crops=1,
        device=device,
        seed=None,
    )
