"""What can be set about the stages and the training loop."""

import warnings
from dataclasses import dataclass, field
from typing import Literal

from fvgen_recon.diffusion.sampler import GuidanceScale
from fvgen_recon.distill.losses import Divergence
from fvgen_recon.distill.rollout import NoiseRange, RolloutSettings
from fvgen_recon.errors import InputError

Space = Literal["target", "velocity"]
"""Where denoising errors are measured: the network's own output, or the velocity."""


@dataclass(frozen=True, kw_only=True, slots=True)
class AnchorSettings:
    """Optional pull of the student towards the real clip of the same condition."""

    l1: float = 0.0
    """Weight of the mean absolute difference of latents."""
    perceptual: float = 0.0
    """Weight of `Roles.perceptual`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PenaltySettings:
    """Approximate R1 and R2; off by default, and warned about, since they flatten the logit."""

    r1: float = 0.0
    """Weight on real clips."""
    r2: float = 0.0
    """Weight on generated clips."""
    sigma: float = 0.05
    """Size of the perturbation."""

    def __post_init__(self) -> None:
        """Warn that ratio weights will be off."""
        if self.r1 > 0 or self.r2 > 0:
            warnings.warn(
                "Gradient penalties flatten the discriminator: its logit is no longer the log "
                "density ratio, and weights made from it lean towards 1.",
                stacklevel=3,
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class GanSettings:
    """Stage 1: adversarial start on real clips."""

    rollout: RolloutSettings = field(default_factory=RolloutSettings)
    noise: NoiseRange = field(default_factory=NoiseRange)
    penalty: PenaltySettings = field(default_factory=PenaltySettings)
    anchor: AnchorSettings = field(default_factory=AnchorSettings)


@dataclass(frozen=True, kw_only=True, slots=True)
class DmdSettings:
    """Stage 2: distribution matching."""

    rollout: RolloutSettings = field(default_factory=RolloutSettings)
    noise: NoiseRange = field(default_factory=NoiseRange)
    divergence: Divergence = "soft_rkl"
    """Which weight; `rkl` is plain DMD and needs no discriminator."""
    guidance: GuidanceScale = field(default_factory=GuidanceScale)
    """Guidance of the teacher's score; the student learns it in."""
    normalise: bool = True
    """Divide each clip's gradient by its mean distance to the teacher's prediction, as DMD does. A
    mean over few numbers is a poor normaliser; then the plain difference in x0 is better."""
    train_disc: bool = False
    """Keep training the discriminator; the paper freezes it."""
    gan_weight: float = 0.0
    """Weight of the adversarial loss of the student; 0 in the paper, above 0 in DMD2."""
    disc_on: Literal["teacher", "critic"] = "teacher"
    """Whose features the discriminator sees; DMD2 takes the critic's and trains them along."""
    penalty: PenaltySettings = field(default_factory=PenaltySettings)
    data_forcing: float = 0.0
    """Share of the student's updates in which the teacher looks at the noised real clip instead."""
    critic_space: Space = "target"
    """Where the critic's error is measured."""
    anchor: AnchorSettings = field(default_factory=AnchorSettings)

    def __post_init__(self) -> None:
        """Refuse combinations that contradict each other."""
        if self.disc_on == "critic" and not self.train_disc:
            raise InputError(
                "A discriminator on the critic's features must keep training (train_disc), since "
                "those features change."
            )
        if self.disc_on == "critic" and (self.penalty.r1 > 0 or self.penalty.r2 > 0):
            raise InputError(
                "Gradient penalties are for a discriminator on the teacher's features: leave them "
                "out."
            )

    @property
    def uses_disc(self) -> bool:
        """Whether there is anything for a discriminator to do."""
        return self.divergence != "rkl" or self.gan_weight > 0 or self.train_disc


@dataclass(frozen=True, kw_only=True, slots=True)
class OdeSettings:
    """Regression on the teacher's deterministic path (CausVid)."""

    rollout: RolloutSettings = field(default_factory=RolloutSettings)
    guidance: GuidanceScale = field(default_factory=GuidanceScale)
    teacher_steps: int = 48
    """Steps of the teacher where the batch brings no stored path; a multiple of the student's."""
    stored: bool = False
    """Take the path from the batch instead of running the teacher."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DiffusionSettings:
    """Training of a diffusion model on real clips."""

    noise: NoiseRange = field(default_factory=lambda: NoiseRange(low=0.0, high=1.0))
    pure_noise_share: float = 0.0
    """Share of clips that are trained at pure noise, whatever the range says."""
    null_share: float = 0.1
    """Share of clips whose context is dropped, for guidance."""
    space: Space = "target"
    """Where the error is measured."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RegressionSettings:
    """Training of the answer to pure noise with L1 and, if wanted, a perceptual distance."""

    anchor: AnchorSettings = field(default_factory=lambda: AnchorSettings(l1=1.0))


StageSettings = GanSettings | DmdSettings | OdeSettings | DiffusionSettings | RegressionSettings


def stage_rollout(stage: StageSettings) -> RolloutSettings:
    """Return how the student of a stage is sampled; those without a sampler take one step."""
    if isinstance(stage, (GanSettings, DmdSettings, OdeSettings)):
        return stage.rollout
    return RolloutSettings(num_steps=1)


def stage_guidance(stage: StageSettings) -> GuidanceScale:
    """Return the teacher's guidance in a stage; none where it does not score."""
    if isinstance(stage, (DmdSettings, OdeSettings)):
        return stage.guidance
    return GuidanceScale(scale=1.0, rescale=0.0)


@dataclass(frozen=True, kw_only=True, slots=True)
class OptimizerSettings:
    """AdamW for one role."""

    learning_rate: float = 1e-5
    """Step size after the warm-up."""
    betas: tuple[float, float] = (0.0, 0.999)
    """Decay of the two moments; no first moment is the habit for networks that play each other."""
    weight_decay: float = 0.01
    """Decoupled weight decay."""
    clip_norm: float = 10.0
    """Largest norm of the gradient of all weights of the role."""
    warmup_steps: int = 0
    """Student steps over which the rate rises from zero."""
    decay: Literal["constant", "cosine"] = "constant"
    """How the rate goes on: as it is, or to zero at the end of the phase."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PhaseSettings:
    """A stretch of training with one stage. A step is one update of the student."""

    name: str
    """For logs."""
    stage: StageSettings
    """What is minimised."""
    num_steps: int
    """Updates of the student."""
    judge_turns: int = 5
    """Updates of critic and discriminator before each one of the student, where there are any."""
    student: OptimizerSettings = field(default_factory=OptimizerSettings)
    critic: OptimizerSettings = field(default_factory=OptimizerSettings)
    disc: OptimizerSettings = field(default_factory=OptimizerSettings)
    ema_decay: float = 0.99
    """Decay of the student's moving average."""
    ema_start: int = 200
    """Step of the phase from which the average is taken; before that it is the student itself."""
    calibrate: int = 0
    """Updates' worth of clips on which the discriminator's temperature is fitted at the end of
    the phase; 0 leaves it at 1."""
    promote: bool = False
    """At the end of the phase the average becomes teacher, student and critic."""

    def __post_init__(self) -> None:
        """Check the numbers."""
        if self.num_steps < 1 or self.judge_turns < 0 or not 0 <= self.ema_decay < 1:
            raise InputError(
                f"Phase {self.name}: at least one step, no negative turns and an EMA decay in "
                f"[0, 1) were expected, {self.num_steps}, {self.judge_turns} and "
                f"{self.ema_decay:g} came."
            )
        stage = self.stage
        has_disc = isinstance(stage, GanSettings) or (
            isinstance(stage, DmdSettings) and stage.disc_on == "teacher"
        )
        if self.calibrate > 0 and not has_disc:
            raise InputError(
                f"Phase {self.name}: there is no discriminator on the teacher's features to "
                "calibrate; set calibrate to 0."
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainSettings:
    """A whole training run; saved as JSON with every checkpoint."""

    phases: tuple[PhaseSettings, ...]
    """One after the other."""
    batch_size: int = 1
    """Clips a process and forward."""
    accumulation: int = 1
    """Forwards before an update."""
    seed: int = 0
    """Decides all noise and the order of the clips."""
    precision: Literal["fp32", "bf16"] = "bf16"
    """Arithmetic of the networks; weights that train, losses and optimizers stay in float32."""
    parallel: Literal["ddp", "fsdp"] = "ddp"
    """Copies of the networks in each process, or shards (FSDP2). A process that no launcher started
    needs neither."""
    half_weights: bool = False
    """Without shards and in bf16: cast the weights of the large networks once an update, not in
    every forward; the optimizers keep float32 ones."""
    record_calls: bool = False
    """On GPUs: replay the calls of the large networks as CUDA graphs. Needs `half_weights` and no
    shards, and clips that no other thread prepares on the same GPU."""
    fused_calls: bool = False
    """Run recorded calls without gradients in this project's GPU kernels; ViewCrafter only."""
    activation_checkpointing: bool = False
    """Recompute blocks in the backward pass instead of storing them."""
    compile_blocks: bool = False
    """Compile the blocks of the networks; costs minutes before the first step."""
    log_every: int = 20
    """Steps between log lines; the only times at which the host waits for the device."""
    validate_every: int = 500
    """Steps between validations; 0 for none."""
    checkpoint_every: int = 500
    """Steps between checkpoints; 0 for one at the end only."""
    keep_last: int = 2
    """Checkpoints that are kept."""
    divergence_factor: float = 100.0
    """Training stops when a gradient norm exceeds its usual size by this factor."""

    def __post_init__(self) -> None:
        """Check the numbers."""
        if self.half_weights and (self.precision != "bf16" or self.parallel != "ddp"):
            raise InputError("half_weights needs precision 'bf16' and parallel 'ddp'.")
        if self.record_calls and not self.half_weights:
            raise InputError(
                "record_calls needs half_weights: other weights are cast in each call."
            )
        if self.fused_calls and not self.record_calls:
            raise InputError("fused_calls needs record_calls.")
        counts = (self.batch_size, self.accumulation, self.log_every, self.keep_last)
        if min(counts) < 1 or not self.phases:
            raise InputError(
                "Training needs at least one phase, and batch_size, accumulation, log_every and "
                f"keep_last of at least 1: {len(self.phases)} phases and {counts} came."
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class LoraSettings:
    """Low-rank adapters instead of whole networks for student and critic."""

    rank: int = 64
    """Rank of the update of each layer."""
    alpha: int = 64
    """The update is scaled by alpha / rank."""
    targets: tuple[str, ...] = ("all-linear",)
    """Names (or ends of names) of the layers; "all-linear" for every linear layer."""
