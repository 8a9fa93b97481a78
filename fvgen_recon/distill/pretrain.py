"""Training of the compact model before distillation: regression, then the diffusion teacher.

Both are one network: regression trains its answer to pure noise (time 1), the teacher goes on from
there with all noise levels.
"""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from fvgen_recon.diffusion.backbone import Condition, NoiseSchedule
from fvgen_recon.diffusion.compact.codec import CompactCodec, Sources
from fvgen_recon.distill.clip import ClipBank, ClipBatch
from fvgen_recon.errors import TrainingError

_HINTS_LOST = 0.1
"""Share of the clips whose hints are taken away, since not every cloud has them."""
Perceptual = Callable[[Tensor, Tensor], Tensor]
"""Distance of images [N 3 H W] in [0, 1] to their truths, [N]."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PretrainConfig:
    """One stage of training."""

    name: str
    seconds: float
    """Wall-clock budget; the learning rate falls to zero over it."""
    max_steps: int = 1_000_000
    """Most updates; where this ends the stage, the learning rate falls over the steps."""
    batch_size: int = 16
    learning_rate: float = 4e-4
    weight_decay: float = 0.01
    warmup_steps: int = 100
    clip_norm: float = 1.0
    ema: float = 0.999
    diffusion: bool = False
    """Train at all noise levels with squared error; else only the answer to pure noise, with L1."""
    full_noise_share: float = 0.25
    """Share of the clips that see pure noise in diffusion training."""
    time_shift: float = 1.0
    """Above 1 the other times lie at higher noise: u becomes s u / (1 + (s - 1) u)."""
    spread: float | None = None
    """Standard deviation of what the answer to pure noise leaves open, in [-1, 1] units: squared
    errors are weighted by `1 + (spread / sigma)^2`, so that all times count alike; none for
    `1 / max(u, 0.2)^2`."""
    own_share: float = 0.0
    """Share of the clips in diffusion training whose noisy frame is made from the model's own
    answer to pure noise instead of the truth, as a sampler's second step meets it: so mistakes that
    a sampler makes are pulled back to the renders, not kept (exposure bias: Ning et al., "Input
    Perturbation Reduces Exposure Bias in Diffusion Models", 2023)."""
    perceptual_weight: float = 0.0
    """Weight of the perceptual distance. In diffusion training it makes answers sharper than the
    mean that score matching asks for (Lin and Yang, "Diffusion Model with Perceptual Loss", 2023).
    """
    perceptual_start: float = 0.5
    """When, as a share of the budget, the perceptual distance comes in."""
    perceptual_frames: int = 32
    """Random frames of a batch on which it is measured."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainBatch:
    """A batch ready for the network."""

    x0: Float[Tensor, "B C T h w"]
    condition: Condition
    target: Float[Tensor, "B T 3 H W"]
    hole: Float[Tensor, "B T 1 H W"]
    """1 where no trusted point was rendered."""
    unseen: Bool[Tensor, "B T 1 H W"]
    """True where no render was hit at all."""


def _jitter(images: list[Tensor], rng: torch.Generator) -> list[Tensor]:
    """One exposure, colour and gamma change for all images of a clip."""
    batch, device = images[0].shape[0], images[0].device

    def draw(*shape: int) -> Tensor:
        return torch.rand(batch, *shape, generator=rng, device=device)

    gain = (0.85 + 0.3 * draw(1)) * (0.94 + 0.12 * draw(3))
    gamma = 2.0 ** (draw(1) - 0.5)
    return [
        (x.clamp_min(0) ** gamma.view(batch, *[1] * (x.dim() - 1)))
        .mul(gain.view(batch, *[1] * (x.dim() - 4), 3, 1, 1))
        .clamp(0, 1)
        for x in images
    ]


def _lose_patches(mask: Tensor, rng: torch.Generator) -> Tensor:
    """Open smooth holes in half of the clips, so that few trusted points are no surprise."""
    batch, num_frames, _, height, width = mask.shape
    grid = torch.randn(batch, num_frames // 2 + 1, 5, 8, generator=rng, device=mask.device)
    size = (num_frames, height, width)
    noise = nn.functional.interpolate(grid[:, None], size, mode="trilinear", align_corners=False)
    level = 0.6 + 2.4 * torch.rand(batch, 1, 1, 1, 1, generator=rng, device=mask.device)
    keep = noise.transpose(1, 2) < level
    keep[:, [0, -1]] = True
    return mask & keep


def _lose_guesses(masks: Tensor, rng: torch.Generator) -> Tensor:
    """Take the alternatives away from some clips: the other views, or the ends' further depths."""
    keep = torch.rand(len(masks), 2, generator=rng, device=masks.device) > 0.2
    keep = torch.cat([keep[:, :1], keep[:, 1:].expand(-1, max(0, masks.shape[1] - 1))], dim=1)
    return masks & keep[:, : masks.shape[1], None, None, None, None]


def _reverse(guesses: Tensor) -> Tensor:
    """Turn time round in alternatives: the two ends of each further depth change places."""
    count = guesses.shape[1]
    order = [0, *(i + 1 if i % 2 else i - 1 for i in range(1, count))][:count]
    return guesses[:, order].flip(2)


def _reverse_hints(hints: Tensor) -> Tensor:
    """Turn time round in hints: those of trusted points, of two layers, of alternatives."""
    trusted, layers, guesses = hints[:, :1], hints[:, 1:3], hints[:, 3:]
    return torch.cat([trusted.flip(2), layers.flip(1, 2), _reverse(guesses)], dim=1)


def _augment(clips: ClipBatch, rng: torch.Generator) -> tuple[Sources, Tensor]:
    """Flip, turn time round, change colours, open holes and take alternatives away."""
    colors = (clips.frames, clips.layers, clips.target, clips.alternatives)
    frames, layers, target, guesses = (x.float() / 255 for x in colors)
    mask, layer_masks, guess_masks = clips.mask, clips.layer_masks, clips.alternative_masks
    flips = torch.rand(3, generator=rng, device=mask.device).lt(0.5).tolist()
    axes = [axis for axis, flip in zip((-1, -2), flips, strict=False) if flip]
    tensors = [torch.flip(x, axes) for x in (frames, mask, layers, layer_masks, target)]
    guesses, guess_masks, hints = (
        torch.flip(x, axes) for x in (guesses, guess_masks, clips.hints.float())
    )
    if flips[2]:
        turn = ([1], [1], [1, 2], [1, 2], [1])
        tensors = [torch.flip(x, axis) for x, axis in zip(tensors, turn, strict=True)]
        guesses, guess_masks = _reverse(guesses), _reverse(guess_masks)
        hints = _reverse_hints(hints)
    frames, mask, layers, layer_masks, target = tensors
    frames, layers, target, guesses = _jitter([frames, layers, target, guesses], rng)
    mask = _lose_patches(mask, rng)
    guess_masks = _lose_guesses(guess_masks, rng)
    told = torch.rand(len(hints), generator=rng, device=hints.device) > _HINTS_LOST
    anchor = torch.zeros(mask.shape[:2], dtype=torch.bool, device=mask.device)
    anchor[:, [0, -1]] = True
    sources = Sources(
        frames=frames * mask,
        mask=mask,
        layers=layers,
        layer_masks=layer_masks,
        is_anchor=anchor,
        alternatives=guesses,
        alternative_masks=guess_masks,
        hints=hints * told[:, None, None, None, None, None],
    )
    return sources, target


def plain_sources(clips: ClipBatch) -> tuple[Sources, Float[Tensor, "B T 3 H W"]]:
    """Return the renders and the targets of stored clips as they are."""
    anchor = torch.zeros(clips.mask.shape[:2], dtype=torch.bool, device=clips.mask.device)
    anchor[:, [0, -1]] = True
    sources = Sources(
        frames=clips.frames.float() / 255,
        mask=clips.mask,
        layers=clips.layers.float() / 255,
        layer_masks=clips.layer_masks,
        is_anchor=anchor,
        alternatives=clips.alternatives.float() / 255,
        alternative_masks=clips.alternative_masks,
        hints=clips.hints.float(),
    )
    return sources, clips.target.float() / 255


def prepare_batch(clips: ClipBatch, codec: CompactCodec, rng: torch.Generator | None) -> TrainBatch:
    """Turn stored clips into latents and conditions; `rng` augments them, none leaves them."""
    sources, target = plain_sources(clips) if rng is None else _augment(clips, rng)
    return TrainBatch(
        x0=codec.encode(target),
        condition=codec.condition_sources(sources),
        target=target,
        hole=1 - sources.mask.float(),
        unseen=sources.unseen,
    )


def autocast(device: torch.device) -> torch.autocast | nullcontext:
    """Bfloat16 on a GPU, nothing elsewhere; without a cache, which recorded calls could not use."""
    if device.type != "cuda":
        return nullcontext()
    return torch.autocast("cuda", torch.bfloat16, cache_enabled=False)


@dataclass(frozen=True, kw_only=True, slots=True)
class Pretraining:
    """What stays the same through a stage."""

    codec: CompactCodec
    schedule: NoiseSchedule
    config: PretrainConfig
    perceptual: Perceptual

    def rate(self, step: int, share: float) -> float:
        """Learning rate: a short rise, then half a cosine over the budget."""
        decay = 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * share))
        return self.config.learning_rate * decay * min(1.0, (step + 1) / self.config.warmup_steps)

    def perceptual_weight(self, share: float) -> float:
        """Weight of the perceptual distance at a share of the budget."""
        late = share >= self.config.perceptual_start
        return self.config.perceptual_weight if late else 0.0


def noise_levels(
    config: PretrainConfig, count: int, rng: torch.Generator, device: torch.device
) -> Float[Tensor, "B"]:
    """Draw noise levels in [0, 1] for some clips."""
    if not config.diffusion:
        return torch.ones(count, device=device)
    level = torch.rand(count, generator=rng, device=device)
    level = config.time_shift * level / (1 + (config.time_shift - 1) * level)
    full = torch.rand(count, generator=rng, device=device) < config.full_noise_share
    return torch.where(full, torch.ones_like(level), level)


def level_weight(config: PretrainConfig, level: Float[Tensor, "B"]) -> Float[Tensor, "B"]:
    """Weights of squared errors at noise levels in [0, 1].

    With `spread` s this is `1 / s^2 + 1 / sigma^2` times s^2, where `sigma = u / (1 - u)` is the
    noise on what a frame shows: over the variance that is left to those who know both (the weight
    of Karras et al., "Elucidating the Design Space", 2022). Levels below 0.05 count as 0.05.
    """
    if config.spread is None:
        return level.clamp_min(0.2) ** -2
    level = level.clamp_min(0.05)
    return 1 + (config.spread * (1 - level) / level) ** 2


@torch.no_grad()
def update_ema(ema: nn.Module, model: nn.Module, decay: float) -> None:
    """Move the averaged weights towards the current ones."""
    torch._foreach_lerp_(list(ema.parameters()), list(model.parameters()), 1 - decay)


@dataclass(frozen=True, kw_only=True, slots=True)
class Progress:
    """One line of a training curve."""

    stage: str
    step: int
    seconds: float
    loss: float
    gradient: float
    clips: int


def pretrain(
    model: nn.Module,
    ema: nn.Module,
    bank: ClipBank,
    stage: Pretraining,
    *,
    seed: int = 0,
    log_every: int = 200,
) -> Iterator[Progress]:
    """Train until the budget is spent; yields the curve as it goes.

    Raises:
        TrainingError: The loss stopped being finite.
    """
    device, config = next(model.parameters()).device, stage.config
    rng = torch.Generator(device).manual_seed(seed)
    optimizer = torch.optim.AdamW(
        model.parameters(),
        lr=config.learning_rate,
        betas=(0.9, 0.99),
        weight_decay=config.weight_decay,
        fused=device.type == "cuda",
    )
    start, step, share = time.monotonic(), 0, 0.0
    sums = torch.zeros(2, device=device)
    while share < 1:
        if step % 50 == 0:
            bank.refresh()
        optimizer.param_groups[0]["lr"] = stage.rate(step, share)
        batch = prepare_batch(bank.draw(config.batch_size), stage.codec, rng)
        loss = pretrain_loss(model, batch, stage, rng, stage.perceptual_weight(share))
        loss.backward()
        norm = nn.utils.clip_grad_norm_(model.parameters(), config.clip_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        step += 1
        update_ema(ema, model, min(config.ema, (1 + step) / (10 + step)))
        sums += torch.stack([loss.detach(), norm.detach()])
        share = max((time.monotonic() - start) / config.seconds, step / config.max_steps)
        if step % log_every == 0 or share >= 1:
            mean = (sums / ((step - 1) % log_every + 1)).tolist()
            sums.zero_()
            if not math.isfinite(mean[0]):
                raise TrainingError(
                    f"The loss of stage {config.name} is not finite at step {step}."
                )
            yield Progress(
                stage=config.name,
                step=step,
                seconds=time.monotonic() - start,
                loss=mean[0],
                gradient=mean[1],
                clips=len(bank),
            )


@torch.no_grad()
def with_own_answers(
    model: nn.Module,
    batch: TrainBatch,
    stage: Pretraining,
    eps: Float[Tensor, "B C T h w"],
    rng: torch.Generator,
) -> Float[Tensor, "B C T h w"]:
    """Return the clips that noise is added to: in the first ones the model's own answer.

    Half of these answers are to the very noise that is added, as between the steps of a
    deterministic sampler, the others to noise of their own.
    """
    config = stage.config
    count = round(config.own_share * len(eps)) if config.diffusion else 0
    if count == 0:
        return batch.x0
    noise = eps[:count].clone()
    fresh = noise[count // 2 :]
    fresh.copy_(torch.randn(fresh.shape, generator=rng, device=fresh.device))
    t = torch.full((count,), float(stage.schedule.num_timesteps - 1), device=noise.device)
    with autocast(noise.device):
        output, _ = model(noise, t, batch.condition[:count])
    answer = stage.schedule.x0_from_output(output.float(), noise, t)
    return torch.cat([answer, batch.x0[count:]])


def pretrain_loss(
    model: nn.Module,
    batch: TrainBatch,
    stage: Pretraining,
    rng: torch.Generator,
    perceptual_weight: float,
) -> Float[Tensor, ""]:
    """Loss of one batch.

    Diffusion: squared error of x0, weighted by `level_weight`. Regression: L1. Both plus the
    weighted perceptual distance of some frames, where something was rendered.
    """
    device, count = batch.x0.device, batch.x0.shape[0]
    level = noise_levels(stage.config, count, rng, device)
    t = level * (stage.schedule.num_timesteps - 1)
    eps = torch.randn(batch.x0.shape, generator=rng, device=device)
    clean = with_own_answers(model, batch, stage, eps, rng)
    x_t = stage.schedule.add_noise(clean, eps, t)
    with autocast(device):
        output, _ = model(x_t, t, batch.condition)
    pred = stage.schedule.x0_from_output(output.float(), x_t, t)
    if stage.config.diffusion:
        error = ((pred - batch.x0) ** 2).mean(dim=(1, 2, 3, 4))
        loss = (error * level_weight(stage.config, level)).mean()
    else:
        loss = (pred - batch.x0).abs().mean()
    if perceptual_weight == 0:
        return loss
    num_images = count * batch.target.shape[1]
    size = (min(stage.config.perceptual_frames, num_images),)
    frames = torch.randint(num_images, size, generator=rng, device=device)
    # Detail where nothing was seen cannot be right; asked for it, the network paints a pattern.
    shown = torch.where(batch.unseen, batch.target, stage.codec.decode(pred))
    shown = shown.flatten(0, 1)[frames]
    with autocast(device):
        distance = stage.perceptual(shown, batch.target.flatten(0, 1)[frames])
    return loss + perceptual_weight * distance.mean()
