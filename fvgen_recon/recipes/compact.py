"""Complete configurations for training the compact model."""

from collections.abc import Callable
from dataclasses import dataclass, replace

from fvgen_recon.diffusion.compact.config import CompactConfig
from fvgen_recon.diffusion.sampler import GuidanceScale
from fvgen_recon.distill.budget import DistilConfig
from fvgen_recon.distill.config import AnchorSettings, DmdSettings, GanSettings
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
    stages: tuple[PretrainConfig | DistilConfig, ...]
    teacher_steps: tuple[int, ...]
    """Numbers of steps at which the teacher is measured."""
    student_steps: tuple[int, ...] = (1, 2, 4)
    """Numbers of steps at which the student is measured."""


def _gan() -> DistilConfig:
    """Stage 1: real clips as positives, held near them by L1 and the perceptual distance."""
    anchor = AnchorSettings(l1=20.0, perceptual=8.0)
    return DistilConfig(name="gan", seconds=170, settings=GanSettings(anchor=anchor))


def _dmd() -> DistilConfig:
    """Stage 2: softened reverse KL with the ratio of stage 1; no guidance, no text to drop."""
    settings = DmdSettings(
        divergence="soft_rkl", guidance=GuidanceScale(scale=1.0), critic_space="velocity"
    )
    return DistilConfig(
        name="dmd", seconds=200, settings=settings, student_rate=2e-5, judge_rate=1e-4
    )


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
            _gan(),
            _dmd(),
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
            replace(_gan(), max_steps=3, batch_size=2, warmup_turns=2),
            replace(_dmd(), max_steps=3, batch_size=2, warmup_turns=2),
        ),
        teacher_steps=(1, 4),
    )


RECIPES: dict[str, Callable[[], CompactRecipe]] = {"full": full, "debug": debug}
