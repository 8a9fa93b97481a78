r"""Train the compact model from packed scenes: regression, teacher, GAN start, distillation.

Weights are kept at the end of each stage and every minute within it; run it again with `--init` to
go on from them, on the same bank of clips if `--bank` names one.

Usage:
    python scripts/train_compact.py --train train.bin --val val.bin --features features.bin \
        --out run
"""

import json
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from multiprocessing.process import BaseProcess
from pathlib import Path

import torch
import torch._dynamo
import torch.multiprocessing as mp
import tyro

from fvgen_recon.diffusion.backbone import Condition, VideoModel
from fvgen_recon.diffusion.compact.backbone import CompactBackbone
from fvgen_recon.diffusion.compact.codec import CompactCodec
from fvgen_recon.diffusion.sampler import FewStepKind
from fvgen_recon.diffusion.schedule import FlowSchedule
from fvgen_recon.distill.budget import DistilConfig, distil
from fvgen_recon.distill.cast import Cast, make_cast
from fvgen_recon.distill.clip import ClipBank
from fvgen_recon.distill.pack import read_pack, warn_of_shared
from fvgen_recon.distill.pretrain import (
    Perceptual,
    PretrainConfig,
    Pretraining,
    autocast,
    plain_sources,
    pretrain,
)
from fvgen_recon.distill.source import BankConfig, Worker, write_mixed_bank
from fvgen_recon.errors import FvgenError, InputError, TrainingError
from fvgen_recon.evaluation.feature import load_stlpips
from fvgen_recon.evaluation.machine import describe_machine, plain_settings
from fvgen_recon.evaluation.student import (
    measure_frames,
    measure_model,
    plain_blend,
    write_panel,
)
from fvgen_recon.recipes.compact import CompactRecipe, make_recipe, write_validation_clips

_SAVE_EVERY = 60.0  # seconds
_SHIFTS = (0.5, 2.0)


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Train the compact model from packed scenes."""

    train: Path
    """Packed training scenes (scripts/pack_scenes.py)."""
    val: Path
    """Packed validation scenes; only ever looked at."""
    features: Path
    """Packed feature networks (scripts/pack_scenes.py): VGG is trained on, AlexNet judges."""
    out: Path
    """Folder for weights, curves and panels."""
    recipe: str = "full"
    """Name in fvgen_recon.recipes.compact."""
    stages: tuple[str, ...] = ("regression", "teacher")
    """Stages of the recipe to run, in order."""
    seconds: tuple[float, ...] = ()
    """Budget of each of these stages, instead of the recipe's."""
    steps: tuple[int, ...] = ()
    """Updates of each of these stages, where they shall not depend on the machine's speed."""
    init: Path | None = None
    """Weights to start from."""
    teacher: Path | None = None
    """Weights of the teacher, where `init` is another model."""
    bank: Path | None = None
    """Folder of clips, kept for other runs on the same machine; inside `out` by default."""
    num_workers: int = 4
    """Processes that build clips while training goes on; 0 builds them first, unless the bank holds
    clips already."""
    num_plans: int | None = None
    """How many paths to render, instead of the recipe's."""
    compile: bool = True
    """Compile the network's parts where there is a GPU."""
    record: bool = True
    """Replay the networks' calls as CUDA graphs where there is a GPU."""
    seed: int = 0
    """Of the first weights, the clips and the noise."""


@dataclass
class Run:
    """What a run has at hand."""

    args: Arguments
    recipe: CompactRecipe
    device: torch.device
    codec: CompactCodec
    schedule: FlowSchedule
    bank: ClipBank
    val: ClipBank
    judge: Perceptual
    log: dict[str, list] = field(default_factory=lambda: {"curve": [], "validation": []})
    start: float = field(default_factory=time.monotonic)
    machine: dict[str, object] = field(default_factory=describe_machine)

    def say(self, text: str) -> None:
        """Print with the time since the start."""
        print(f"[{time.monotonic() - self.start:6.1f} s] {text}", flush=True)

    def save_log(self) -> None:
        """Write curves and validation so far, and where they come from."""
        path = self.args.out / "log.json"
        partial = path.with_suffix(".partial")
        settings = plain_settings({"recipe": asdict(self.recipe), "args": asdict(self.args)})
        content = {"machine": self.machine, **settings, **self.log}
        partial.write_text(json.dumps(content, default=str, indent=1))
        partial.replace(path)


def build(worker: int, num_workers: int, args: Arguments, bank: Path) -> None:
    """Build a worker's share of the clips; the first worker makes those of validation first."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if num_workers > 1:
        torch.set_num_threads(1)
    recipe = make_recipe(args.recipe)
    scenes = read_pack(args.train)
    if worker == 0:
        validation = read_pack(args.val)
        warn_of_shared(scenes, validation)
        write_validation_clips(validation, bank / "val", recipe, device)
    config = BankConfig(
        shares=recipe.shares,
        num_plans=args.num_plans or recipe.num_plans,
        num_frames=recipe.num_frames,
        crop=recipe.crop,
        num_crops=recipe.num_crops,
        limits=recipe.limits,
    )
    share = Worker(index=worker, count=num_workers, device=device, seed=args.seed + 1)
    write_mixed_bank(scenes, bank / "train", recipe.estimator, config, share)


def _start_workers(args: Arguments, bank: Path) -> Sequence[BaseProcess]:
    if args.num_workers == 0:
        if not any((bank / "train").glob("*.safetensors")):
            build(0, 1, args, bank)
        return []
    context = mp.get_context("spawn")
    workers = [
        context.Process(target=build, args=(i, args.num_workers, args, bank), daemon=True)
        for i in range(args.num_workers)
    ]
    for worker in workers:
        worker.start()
    return workers


def _wait_for_clips(run: Run, workers: Sequence[BaseProcess]) -> None:
    while True:
        run.bank.refresh()
        run.val.refresh()
        building = any(w.is_alive() for w in workers)
        if len(run.bank) >= run.recipe.min_clips and len(run.val) > 0:
            break
        if not building:
            run.bank.refresh()
            if len(run.bank) and len(run.val):
                break
            raise TrainingError("No training clips could be made: see the messages of the workers.")
        time.sleep(1)
    run.say(f"{len(run.bank)} training clips, {len(run.val)} validation clips")


def _warm_up(run: Run, model: CompactBackbone) -> None:
    """Compile forward and backward on noise while clips are being made."""
    count = run.recipe.stages[0].batch_size
    height, width = (s // run.recipe.network.patch for s in run.recipe.crop)
    frames = run.recipe.num_frames
    config = run.recipe.network

    def noise(channels: int) -> torch.Tensor:
        return torch.randn(count, channels, frames, height, width, device=run.device)

    context = torch.zeros(count, 0, 1, device=run.device)
    condition = Condition(
        concat=noise(config.condition_channels), context=context, null_context=context
    )
    for _ in range(3):
        with autocast(run.device):
            z, _ = model(
                noise(config.latent_channels), torch.ones(count, device=run.device), condition
            )
        z.square().mean().backward()
        model.zero_grad(set_to_none=True)
    torch.cuda.synchronize()
    run.say("network compiled")


def _variants(steps: tuple[int, ...]) -> list[tuple[int, FewStepKind, float]]:
    """Numbers of steps with both samplers; at four steps other spacings of the times too."""
    kinds: tuple[FewStepKind, ...] = ("sde", "ode")
    plain: list[tuple[int, FewStepKind, float]] = [
        (n, kind, 1.0) for n in steps for kind in kinds if n > 1 or kind == "sde"
    ]
    return plain + [(4, kind, shift) for kind in kinds for shift in _SHIFTS if 4 in steps]


def _measure(run: Run, stage: str, backbone: CompactBackbone, steps: tuple[int, ...]) -> None:
    clips = run.val.all()
    sources, target = plain_sources(clips)
    for num_steps, kind, shift in _variants(steps):
        model = _as_model(run, backbone, stage, shift)
        start = time.monotonic()
        result = measure_model(
            model, sources, target, clips.gap_deg, num_steps=num_steps, kind=kind, judge=run.judge
        )
        seconds = time.monotonic() - start
        row = {"stage": stage, "shift": shift, "seconds": seconds, **asdict(result)}
        run.log["validation"].append(row)
        run.say(f"{stage} {num_steps} {kind} shift {shift:g}: {result.line()}")
    run.save_log()


def _measure_blend(run: Run) -> None:
    """What the network starts from: the blend of the renders with push-pull filled holes."""
    clips = run.val.all()
    sources, target = plain_sources(clips)
    hole = 1 - sources.mask.float()
    result = measure_frames(
        plain_blend(sources), target, hole, clips.gap_deg, judge=run.judge, num_steps=0, kind="-"
    )
    run.log["validation"].append({"stage": "blend", **asdict(result)})
    run.say(f"blend: {result.line()}")


def _left(config: PretrainConfig | DistilConfig, step: int, seconds: float) -> float:
    """Seconds until the budget of time or of updates is spent, at the pace so far."""
    by_steps = (config.max_steps - step) * seconds / max(step, 1)
    return max(0.0, min(config.seconds - seconds, by_steps))


def _pretrain_lines(
    run: Run, config: PretrainConfig, cast: Cast, perceptual: Perceptual
) -> Iterator[str]:
    stage = Pretraining(
        codec=run.codec, schedule=run.schedule, config=config, perceptual=perceptual
    )
    for line in pretrain(cast.model, cast.ema, run.bank, stage, seed=run.args.seed):
        run.log["curve"].append(asdict(line))
        left = _left(config, line.step, line.seconds)
        yield (
            f"{line.stage} step {line.step} ({line.step / line.seconds:.1f}/s) loss "
            f"{line.loss:.4f} gradient {line.gradient:.2f} clips {line.clips} left {left:.0f} s"
        )


def _distil_lines(
    run: Run, config: DistilConfig, cast: Cast, perceptual: Perceptual
) -> Iterator[str]:
    roles = cast.roles(config, run.codec, perceptual, seed=run.args.seed)
    for point in distil(roles, cast.ema, run.bank, run.codec, config, seed=run.args.seed):
        run.log["curve"].append(asdict(point))
        scalars = " ".join(f"{k} {v:.3f}" for k, v in point.scalars.items())
        left = f" left {_left(config, point.step, point.seconds):.0f} s" if point.step else ""
        yield f"{point.stage} step {point.step}, {point.turns} of the judges: {scalars}{left}"


def _run_stage(
    run: Run, config: PretrainConfig | DistilConfig, cast: Cast, perceptual: Perceptual
) -> None:
    """Train, keep, measure."""
    budget = f"{config.max_steps} updates" if run.args.steps else f"{config.seconds:.0f} s"
    run.say(f"stage {config.name}: {budget}, batch {config.batch_size}")
    if isinstance(config, PretrainConfig):
        steps, sampler = run.recipe.teacher_steps if config.diffusion else (1,), "ode"
        lines = _pretrain_lines(run, config, cast, perceptual)
    else:
        steps, sampler = run.recipe.student_steps, "sde"
        lines = _distil_lines(run, config, cast, perceptual)
    folder = run.args.out / config.name

    def keep() -> str:
        card = cast.save(folder, role=config.name, num_steps=steps[-1], sampler=sampler)
        run.save_log()
        return card.sha256

    saved = time.monotonic()
    for line in lines:
        run.say(line)
        if time.monotonic() - saved > _SAVE_EVERY:
            keep()
            saved = time.monotonic()
    cast.follow_average(teach=isinstance(config, PretrainConfig))
    run.say(f"saved {config.name} {keep()[:12]}")
    _measure(run, config.name, cast.ema, steps)


def _as_model(run: Run, backbone: CompactBackbone, name: str, shift: float = 1.0) -> VideoModel:
    schedule = replace(run.schedule, shift=shift)
    return VideoModel(
        codec=run.codec, backbone=backbone, schedule=schedule, name=name, weights_hash=""
    )


def _stages(args: Arguments, recipe: CompactRecipe) -> list[PretrainConfig | DistilConfig]:
    known = {stage.name: stage for stage in recipe.stages}
    unknown = set(args.stages) - set(known)
    counts = {len(x) for x in (args.seconds, args.steps) if x}
    if unknown or counts - {len(args.stages)}:
        raise InputError(
            f"Stages out of {', '.join(known)} were expected, with as many budgets: "
            f"{args.stages}, {args.seconds} and {args.steps} came."
        )
    stages = [known[name] for name in args.stages]
    if args.seconds:
        stages = [replace(s, seconds=b) for s, b in zip(stages, args.seconds, strict=True)]
    if args.steps:
        # The clock must not end what is counted in steps.
        stages = [
            replace(s, max_steps=n, seconds=1e9) for s, n in zip(stages, args.steps, strict=True)
        ]
    return stages


def _judges(args: Arguments, device: torch.device) -> tuple[Perceptual, Perceptual]:
    vgg = load_stlpips("vgg", num_slices=4, path=args.features).to(device)
    alex = load_stlpips("alex", path=args.features).to(device)
    return vgg, alex


def main(args: Arguments) -> None:
    """Run the stages."""
    recipe = make_recipe(args.recipe)
    stages = _stages(args, recipe)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    args.out.mkdir(parents=True, exist_ok=True)
    bank = args.bank or args.out / "bank"
    workers = _start_workers(args, bank)
    # Not before: clips are built in full precision, since projections need it.
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.benchmark = True
    torch._dynamo.config.cache_size_limit = 64
    perceptual, judge = _judges(args, device)
    run = Run(
        args=args,
        recipe=recipe,
        device=device,
        codec=CompactCodec(config=recipe.network),
        schedule=FlowSchedule(num_timesteps=recipe.network.num_timesteps),
        bank=ClipBank(bank / "train", device, args.seed),
        val=ClipBank(bank / "val", device, 0),
        judge=judge,
    )
    cast = make_cast(
        recipe.network,
        init=args.init,
        teacher=args.teacher,
        device=device,
        seed=args.seed,
        # Nothing can be learned from a gate that no stage has trained.
        is_grown=any(isinstance(s, PretrainConfig) for s in stages),
        is_compiled=args.compile and device.type == "cuda",
        is_recorded=args.record and device.type == "cuda",
    )
    millions = sum(p.numel() for p in cast.model.parameters()) / 1e6
    run.say(f"{millions:.1f} M parameters on {device}")
    if cast.is_compiled:
        _warm_up(run, cast.model)
    _wait_for_clips(run, workers)
    _measure_blend(run)
    for config in stages:
        _run_stage(run, config, cast, perceptual)
    for worker in workers:
        worker.terminate()
    write_panel(
        args.out / "panel.jpg",
        _as_model(run, cast.ema, stages[-1].name),
        *plain_sources(run.val.all()),
        steps=(1, 4),
    )
    run.save_log()
    run.say("done")


if __name__ == "__main__":
    try:
        main(tyro.cli(Arguments, description=__doc__))
    except FvgenError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
