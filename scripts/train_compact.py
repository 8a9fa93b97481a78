"""Train the compact model from packed scenes: data, regression, teacher, with curves and panels.

Run it again with `--init` to go on from weights that an earlier run left.
"""

import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import torch
import torch._dynamo
import torch.multiprocessing as mp
import tyro

from fvgen_recon.diffusion.backbone import VideoModel
from fvgen_recon.diffusion.compact.backbone import CompactBackbone
from fvgen_recon.diffusion.compact.checkpoint import load_compact, save_compact
from fvgen_recon.diffusion.compact.codec import CompactCodec
from fvgen_recon.diffusion.schedule import FlowSchedule
from fvgen_recon.distill.clip import ClipBank, write_bank
from fvgen_recon.distill.pack import PackedScene, read_pack
from fvgen_recon.distill.pair import ClipPlan, evaluation_plans, training_plans
from fvgen_recon.distill.pretrain import Perceptual, PretrainConfig, plain_sources, pretrain
from fvgen_recon.errors import FvgenError
from fvgen_recon.evaluation.feature import load_stlpips
from fvgen_recon.evaluation.student import measure_model, write_panel
from fvgen_recon.recipes.compact import RECIPES, CompactRecipe

_PART_BYTES = 15 * 2**20


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
    """Stages to run, in order."""
    seconds: tuple[float, ...] = ()
    """Budget of each of these stages, instead of the recipe's."""
    init: Path | None = None
    """Weights to start from."""
    bank: Path | None = None
    """Folder of clips, kept for other runs on the same machine; inside `out` by default."""
    num_workers: int = 4
    """Processes that build clips while training goes on; 0 builds them first."""
    num_plans: int | None = None
    """How many paths to render, instead of the recipe's."""
    compile: bool = True
    """Compile the network's parts where there is a GPU."""
    seed: int = 0


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
    perceptual: Perceptual
    judge: Perceptual
    log: dict[str, list] = field(default_factory=lambda: {"curve": [], "validation": [], "note": []})
    start: float = field(default_factory=time.monotonic)

    def say(self, text: str) -> None:
        """Print with the time since the start."""
        print(f"[{time.monotonic() - self.start:6.1f} s] {text}", flush=True)

    def save_log(self) -> None:
        """Write curves and validation so far."""
        path = self.args.out / "log.json"
        partial = path.with_suffix(".partial")
        settings = {"recipe": asdict(self.recipe), "args": asdict(self.args)}
        partial.write_text(json.dumps({**settings, **self.log}, default=str, indent=1))
        partial.replace(path)


def _val_plans(recipe: CompactRecipe, scenes: tuple[PackedScene, ...]) -> list[ClipPlan]:
    plans: list[ClipPlan] = []
    for index, scene in enumerate(scenes):
        plans += evaluation_plans(
            scene, index, num_views=recipe.num_views, num_frames=recipe.num_frames,
            clips=recipe.clips_per_scene, every=True,
        )
    return plans


def build(worker: int, num_workers: int, args: Arguments, bank: Path) -> None:
    """Build a worker's share of the clips; the first worker makes those of validation first."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if num_workers > 1:
        torch.set_num_threads(1)
    recipe = RECIPES[args.recipe]()
    shape = {"crop": recipe.crop, "device": device}
    if worker == 0:
        val = read_pack(args.val)
        write_bank(
            val, _val_plans(recipe, val), bank / "val", recipe.estimator,
            num_crops=1, seed=None, **shape,
        )
    scenes = read_pack(args.train)
    seed = args.seed * 1000 + worker + 1
    count = -(-(args.num_plans or recipe.num_plans) // num_workers)
    plans = training_plans(scenes, count, recipe.num_frames, recipe.limits, seed)
    write_bank(
        scenes, plans, bank / "train", recipe.estimator,
        num_crops=recipe.num_crops, seed=seed, **shape,
    )


def _start_workers(args: Arguments, bank: Path) -> list[mp.Process]:
    if args.num_workers == 0:
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


def _wait_for_clips(run: Run, workers: list[mp.Process]) -> None:
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
            raise FvgenError("No training clips could be made: see the messages of the workers.")
        time.sleep(1)
    run.say(f"{len(run.bank)} training clips, {len(run.val)} validation clips")


def _warm_up(run: Run, model: CompactBackbone) -> None:
    """Compile forward and backward on noise while clips are being made."""
    count = run.recipe.stages[0].batch_size
    height, width = (s // run.recipe.network.patch for s in run.recipe.crop)
    frames = run.recipe.num_frames
    config = run.recipe.network
    from fvgen_recon.diffusion.backbone import Condition

    def noise(channels: int) -> torch.Tensor:
        return torch.randn(count, channels, frames, height, width, device=run.device)

    context = torch.zeros(count, 0, 1, device=run.device)
    condition = Condition(
        concat=noise(config.condition_channels), context=context, null_context=context
    )
    for _ in range(3):
        with torch.autocast("cuda", torch.bfloat16):
            z, _ = model(noise(config.latent_channels), torch.ones(count, device=run.device), condition)
        z.square().mean().backward()
        model.zero_grad(set_to_none=True)
    torch.cuda.synchronize()
    run.say("network compiled")


def _measure(run: Run, stage: str, model: VideoModel, steps: tuple[int, ...]) -> None:
    sources, target = plain_sources(run.val.all())
    gaps = run.val.all().gap_deg
    variants = [(n, kind) for n in steps for kind in ("sde", "ode") if n > 1 or kind == "sde"]
    for num_steps, kind in variants:
        result = measure_model(
            model, sources, target, gaps, num_steps=num_steps, kind=kind, judge=run.judge
        )
        run.log["validation"].append({"stage": stage, **asdict(result)})
        run.say(f"{stage} {num_steps} {kind}: {result.line()}")
    run.save_log()


def _train_stage(run: Run, config: PretrainConfig, model: CompactBackbone, ema: CompactBackbone) -> None:
    run.say(f"stage {config.name}: {config.seconds:.0f} s, batch {config.batch_size}")
    curve = pretrain(
        model, ema, run.bank, run.codec, run.schedule, config,
        perceptual=run.perceptual, seed=run.args.seed,
    )
    for progress in curve:
        run.log["curve"].append(asdict(progress))
        rate = progress.step / progress.seconds
        run.say(
            f"{config.name} step {progress.step} ({rate:.1f}/s) loss {progress.loss:.4f} "
            f"gradient {progress.gradient:.2f} clips {progress.clips} "
            f"left {max(0.0, config.seconds - progress.seconds):.0f} s"
        )
    card = save_compact(
        run.args.out / config.name, ema, role=config.name,
        num_steps=run.recipe.teacher_steps[-1] if config.diffusion else 1,
        sampler="ode", part_bytes=_PART_BYTES,
    )
    run.say(f"saved {config.name} {card.sha256[:12]}")
    steps = run.recipe.teacher_steps if config.diffusion else (1,)
    _measure(run, config.name, _as_model(run, ema, config.name), steps)


def _as_model(run: Run, backbone: CompactBackbone, name: str) -> VideoModel:
    return VideoModel(
        codec=run.codec, backbone=backbone, schedule=run.schedule, name=name, weights_hash=""
    )


def _stages(args: Arguments, recipe: CompactRecipe) -> list[PretrainConfig]:
    known = {stage.name: stage for stage in recipe.stages}
    unknown = set(args.stages) - set(known)
    if unknown or (args.seconds and len(args.seconds) != len(args.stages)):
        raise FvgenError(
            f"Stages out of {', '.join(known)} were expected, with as many budgets: "
            f"{args.stages} and {args.seconds} came."
        )
    budgets = args.seconds or tuple(known[s].seconds for s in args.stages)
    return [
        replace(known[s], seconds=b) for s, b in zip(args.stages, budgets, strict=True)
    ]


def _networks(args: Arguments, recipe: CompactRecipe, device: torch.device) -> tuple[CompactBackbone, CompactBackbone]:
    torch.manual_seed(args.seed)
    if args.init is None:
        model = CompactBackbone(recipe.network)
    else:
        loaded = load_compact(args.init)[0].backbone
        assert isinstance(loaded, CompactBackbone)
        model = loaded
    model = model.to(device).train().requires_grad_(True)
    ema = CompactBackbone(model.config).to(device).eval().requires_grad_(False)
    ema.load_state_dict(model.state_dict())
    return model, ema


def _judges(args: Arguments, device: torch.device) -> tuple[Perceptual, Perceptual]:
    vgg = load_stlpips("vgg", num_slices=4, path=args.features).to(device)
    alex = load_stlpips("alex", path=args.features).to(device)
    return vgg, alex


def main(args: Arguments) -> None:
    """Run the stages."""
    recipe = RECIPES[args.recipe]()
    stages = _stages(args, recipe)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.benchmark = True
    torch._dynamo.config.cache_size_limit = 64
    args.out.mkdir(parents=True, exist_ok=True)
    bank = args.bank or args.out / "bank"
    workers = _start_workers(args, bank)
    perceptual, judge = _judges(args, device)
    run = Run(
        args=args, recipe=recipe, device=device, codec=CompactCodec(config=recipe.network),
        schedule=FlowSchedule(num_timesteps=recipe.network.num_timesteps),
        bank=ClipBank(bank / "train", device, args.seed), val=ClipBank(bank / "val", device, 0),
        perceptual=perceptual, judge=judge,
    )
    model, ema = _networks(args, recipe, device)
    millions = sum(p.numel() for p in model.parameters()) / 1e6
    run.say(f"{millions:.1f} M parameters on {device}")
    if device.type == "cuda" and args.compile:
        model.compile_parts()
        _warm_up(run, model)
    _wait_for_clips(run, workers)
    for config in stages:
        _train_stage(run, config, model, ema)
        model.load_state_dict(ema.state_dict())
    for worker in workers:
        worker.terminate()
    write_panel(
        args.out / "panel.jpg", _as_model(run, ema, stages[-1].name),
        *plain_sources(run.val.all()), steps=(1, 4),
    )
    run.save_log()
    run.say("done")


if __name__ == "__main__":
    try:
        main(tyro.cli(Arguments))
    except FvgenError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
