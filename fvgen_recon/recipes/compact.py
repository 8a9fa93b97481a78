"""Complete configurations for training the compact model."""

from collections.abc import Callable
from dataclasses import dataclass

from fvgen_recon.diffusion.compact.config import CompactConfig
from fvgen_recon.distill.pair import PairLimits
from fvgen_recon.distill.pretrain import PretrainConfig
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
    estimator: PlaneSweep
    stages: tuple[PretrainConfig, ...]
    teacher_steps: tuple[int, ...]
    """Numbers of steps at which the teacher is measured."""


def full() -> CompactRecipe:
    """About ten minutes on one H100 or H200."""
    return CompactRecipe(
        network=CompactConfig(),
        num_frames=8,
        crop=(160, 256),
        num_plans=1200,
        num_crops=2,
        min_clips=400,
        clips_per_scene=6,
        num_views=3,
        limits=PairLimits(),
        estimator=PlaneSweep(),
        stages=(
            PretrainConfig(name="regression", seconds=160, perceptual_weight=0.4),
            PretrainConfig(name="teacher", seconds=220, learning_rate=3e-4, diffusion=True),
        ),
        teacher_steps=(1, 4, 8, 50),
    )


def debug() -> CompactRecipe:
    """A minute on a CPU: everything runs, nothing is learned."""
    return CompactRecipe(
        network=CompactConfig(
            widths=(16, 16, 16), num_blocks=(1, 1, 1), num_attention=1, head_dim=16, embedding=32
        ),
        num_frames=4,
        crop=(48, 80),
        num_plans=4,
        num_crops=2,
        min_clips=2,
        clips_per_scene=1,
        num_views=3,
        limits=PairLimits(),
        estimator=PlaneSweep(),
        stages=(
            PretrainConfig(
                name="regression", seconds=60, max_steps=6, batch_size=2, perceptual_weight=0.3
            ),
            PretrainConfig(name="teacher", seconds=60, max_steps=6, batch_size=2, diffusion=True),
        ),
        teacher_steps=(1, 4),
    )


RECIPES: dict[str, Callable[[], CompactRecipe]] = {"full": full, "debug": debug}
