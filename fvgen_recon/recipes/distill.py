"""Complete configurations for distillation, one function each.

What is known of FVGen's recipe is kept; what is not follows the nearest published code (DMD2,
CausVid, Self-Forcing, FastGen). `docs/method.md` says which is which.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

from fvgen_recon.diffusion.compact.config import CompactConfig
from fvgen_recon.diffusion.sampler import GuidanceScale
from fvgen_recon.distill.config import (
    AnchorSettings,
    DmdSettings,
    GanSettings,
    LoraSettings,
    OdeSettings,
    OptimizerSettings,
    PhaseSettings,
    TrainSettings,
)

NO_GUIDANCE = GuidanceScale(scale=1.0, rescale=0.0)


@dataclass(frozen=True, kw_only=True, slots=True)
class DistillRecipe:
    """Everything about a run but its data and its teacher."""

    backbone: str
    """Kind of model: a key of `distill.model.BACKBONES`."""
    train: TrainSettings
    """Phases and loop."""
    disc_layers: tuple[int, ...] = (0,)
    """Mid features that the discriminator sees; 0 is the bottleneck."""
    disc_width: int = 256
    """Channels inside its heads."""
    lora: LoraSettings | None = None
    """Adapters instead of whole networks."""
    untrained: CompactConfig | None = None
    """Start from an untrained compact model of this shape where no teacher is given."""


def paper() -> DistillRecipe:
    """FVGen: 4,000 steps against real clips, 5,000 of softened matching, 4-step student."""
    optimizer = OptimizerSettings(learning_rate=2e-6)
    judge = OptimizerSettings(learning_rate=1e-5)
    gan = PhaseSettings(
        name="gan",
        stage=GanSettings(),
        num_steps=4000,
        calibrate=16,
        student=optimizer,
        critic=judge,
        disc=judge,
    )
    phases = (gan, replace(gan, name="dmd", stage=DmdSettings(), num_steps=5000, calibrate=0))
    train = TrainSettings(phases=phases, half_weights=True, activation_checkpointing=True)
    return DistillRecipe(backbone="viewcrafter", train=train)


def lora() -> DistillRecipe:
    """The paper's recipe with adapters, for one small card."""
    recipe = paper()
    faster = OptimizerSettings(learning_rate=5e-5)
    phases = tuple(replace(phase, student=faster, critic=faster) for phase in recipe.train.phases)
    train = replace(recipe.train, phases=phases, half_weights=False)
    return replace(recipe, train=train, lora=LoraSettings())


def gan_only() -> DistillRecipe:
    """Ablation: stage 1 alone."""
    recipe = paper()
    return _with_phases(recipe, recipe.train.phases[:1])


def no_start() -> DistillRecipe:
    """Ablation: plain matching without stage 1, hence without a density ratio."""
    recipe = paper()
    dmd = replace(recipe.train.phases[1], stage=DmdSettings(divergence="rkl"))
    return _with_phases(recipe, (dmd,))


def plain_matching() -> DistillRecipe:
    """Ablation: stage 1, then plain reverse KL."""
    recipe = paper()
    dmd = replace(recipe.train.phases[1], stage=DmdSettings(divergence="rkl"))
    return _with_phases(recipe, (recipe.train.phases[0], dmd))


def dmd2() -> DistillRecipe:
    """DMD2: matching and GAN together, the discriminator on the critic's own features."""
    recipe = paper()
    stage = DmdSettings(divergence="rkl", train_disc=True, disc_on="critic", gan_weight=5e-3)
    return _with_phases(recipe, (replace(recipe.train.phases[1], name="dmd2", stage=stage),))


def causvid() -> DistillRecipe:
    """CausVid: regression on the teacher's path, then plain matching."""
    recipe = paper()
    dmd = replace(recipe.train.phases[1], stage=DmdSettings(divergence="rkl"))
    ode = PhaseSettings(
        name="ode",
        stage=OdeSettings(),
        num_steps=3000,
        student=OptimizerSettings(learning_rate=2e-6),
    )
    return _with_phases(recipe, (ode, dmd))


def compact() -> DistillRecipe:
    """Both stages for a trained compact teacher, held near the real clips."""
    student = OptimizerSettings(learning_rate=5e-5, clip_norm=1.0, warmup_steps=20, decay="cosine")
    judge = OptimizerSettings(learning_rate=2e-4, clip_norm=1.0)
    anchor = AnchorSettings(l1=1.0)
    gan = PhaseSettings(
        name="gan",
        stage=GanSettings(anchor=anchor),
        num_steps=1500,
        judge_turns=2,
        calibrate=8,
        student=student,
        critic=judge,
        disc=judge,
    )
    dmd = DmdSettings(guidance=NO_GUIDANCE, critic_space="velocity", anchor=anchor)
    phases = (gan, replace(gan, name="dmd", stage=dmd, calibrate=0))
    train = TrainSettings(phases=phases, batch_size=12)
    return DistillRecipe(backbone="compact", train=train, disc_layers=(0, 1))


def debug() -> DistillRecipe:
    """The compact recipe made tiny: every part runs on a CPU in a minute, nothing is learned."""
    recipe = compact()
    phases = tuple(
        replace(phase, num_steps=3, ema_start=1, calibrate=min(1, phase.calibrate))
        for phase in recipe.train.phases
    )
    train = replace(
        recipe.train,
        phases=phases,
        batch_size=2,
        precision="fp32",
        log_every=1,
        validate_every=3,
        checkpoint_every=2,
    )
    shape = CompactConfig(
        widths=(16, 16, 16), num_blocks=(1, 1, 1), num_attention=1, head_dim=16, embedding=32
    )
    return replace(recipe, train=train, untrained=shape, disc_width=16)


def _with_phases(recipe: DistillRecipe, phases: tuple[PhaseSettings, ...]) -> DistillRecipe:
    return replace(recipe, train=replace(recipe.train, phases=phases))


RECIPES: dict[str, Callable[[], DistillRecipe]] = {
    "paper": paper,
    "lora": lora,
    "gan-only": gan_only,
    "no-start": no_start,
    "plain-matching": plain_matching,
    "dmd2": dmd2,
    "causvid": causvid,
    "compact": compact,
    "debug": debug,
}
