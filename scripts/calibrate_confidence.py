r"""Fit the confidence of generated pixels on training scenes and show how true it is on others.

Usage:
    python scripts/calibrate_confidence.py --train train.bin --val val.bin --out outputs/trust \
        --generators student=runs/dmd fill render --num-samples 2
"""

import json
import sys
import time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import matplotlib
import torch
import tyro
from torch import Tensor

from fvgen_recon.densify.confidence import ConfidenceConfig, frame_confidence
from fvgen_recon.densify.evidence import EVIDENCE, gather_evidence
from fvgen_recon.densify.generators import GeneratorConfig, load_generator
from fvgen_recon.densify.size import working_size
from fvgen_recon.densify.trust import (
    SHIPPED,
    Reliability,
    TrustModel,
    fit_trust,
    measure_reliability,
    read_trust,
    save_trust,
    trust_key,
)
from fvgen_recon.diffusion.generator import VideoGenerator
from fvgen_recon.distill.clip import plan_trajectory
from fvgen_recon.distill.pack import PackedScene, read_pack
from fvgen_recon.distill.pair import ClipPlan, evaluation_plans
from fvgen_recon.errors import FvgenError, InputError
from fvgen_recon.evaluation.machine import describe_machine, plain_settings
from fvgen_recon.evaluation.metric import psnr
from fvgen_recon.io.file import write_json
from fvgen_recon.pointcloud import make_estimator
from fvgen_recon.render.guidance import guidance_config, render_guidance

matplotlib.use("Agg")
import matplotlib.pyplot as plt


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Fit and judge the confidence of generated pixels."""

    train: Path
    """Packed training scenes (scripts/pack_scenes.py): the model is fitted to them."""
    val: Path
    """Packed validation scenes: only judged on."""
    out: Path
    """Folder for the models, the numbers and the plot."""
    generators: tuple[str, ...] = ("fill",)
    """Generators as name or name=folder of weights."""
    install: bool = False
    """Put the models beside those that the package brings, in the place of those of the same
    generators; the others stay."""
    num_samples: int = 2
    """Samples of each clip; models for one sample and for several are fitted."""
    views: int = 3
    """Input photos."""
    clips: int = 3
    """Clips of each scene."""
    scenes: int | None = None
    """Only the first so many scenes of each pack."""
    num_frames: int = 16
    """Length of a clip."""
    long_side: int = 256
    """Longer image side in pixels."""
    estimator: str = "plane-sweep"
    """Source of the point cloud: plane-sweep, mvs, stereo, dataset, dust3r or random."""
    pixels: int = 1500
    """Random pixels of each frame that are fitted and judged."""
    tolerance: float = 0.12
    """Colour difference at which agreement falls to exp(-1/2)."""
    few_steps: int | None = None
    """Also compare these few steps with the generator's own, by how much of a clip is missing."""
    device: str = "cuda" if torch.cuda.is_available() else "cpu"
    """Where to run."""
    seed: int = 0
    """Seed of the samples and of the pixels."""
    commit: str = ""
    """Commit to note where git cannot tell."""


@dataclass(frozen=True, kw_only=True)
class Pixels:
    """Evidence, levels and truth of random pixels."""

    one: Tensor
    """Evidence `E N` from one sample."""
    several: Tensor
    """Evidence `E N` from all samples."""
    levels: Tensor
    """Confidence by levels, from one sample."""
    error: Tensor
    """Root mean square colour difference to the photo."""


@dataclass
class Trade:
    """What fewer steps cost, clip by clip."""

    missing: list[float] = field(default_factory=list)
    psnr_few: list[float] = field(default_factory=list)
    psnr_many: list[float] = field(default_factory=list)
    seconds_few: list[float] = field(default_factory=list)
    seconds_many: list[float] = field(default_factory=list)


def _load(text: str, args: Arguments) -> VideoGenerator:
    name, _, folder = text.partition("=")
    weights = Path(folder) if folder else None
    config = GeneratorConfig(
        name=name, weights=weights, num_frames=args.num_frames, device=args.device
    )
    return load_generator(config)


def _timed(generator: VideoGenerator, guidance, seed: int) -> tuple[Tensor, float]:
    start = time.perf_counter()
    frames = generator.generate(guidance, seed=seed)
    if frames.is_cuda:
        torch.cuda.synchronize()
    return frames, time.perf_counter() - start


def measure_clip(
    packed: PackedScene,
    plan: ClipPlan,
    generators: dict[str, VideoGenerator],
    args: Arguments,
    trades: dict[str, Trade],
) -> dict[str, Pixels]:
    """Generate one clip with every generator and compare it with its photos."""
    size = working_size(packed.cameras.height, packed.cameras.width, args.long_side, 16)
    scene = packed.scene(plan.inputs, *size).to(args.device)
    cloud = make_estimator(args.estimator).estimate(scene)
    path = plan.paths[0]
    trajectory = plan_trajectory(path, packed.cameras.resize(*size))
    trajectory = replace(trajectory, cameras=trajectory.cameras.to(args.device))
    kinds = {generator.is_raw for generator in generators.values()}
    configs = {is_raw: guidance_config(is_raw=is_raw, height=size[0]) for is_raw in kinds}
    guides = {
        is_raw: render_guidance(scene, cloud, trajectory, config=config)
        for is_raw, config in configs.items()
    }
    shown = [i for i in range(1, len(path.frames) - 1) if path.frames[i] >= 0]
    photos = packed.scene([path.frames[i] for i in shown], *size).images.to(args.device)
    rng = torch.Generator().manual_seed(args.seed + plan.scene)
    result = {}
    for name, generator in generators.items():
        guidance = guides[generator.is_raw]
        runs = [_timed(generator, guidance, args.seed + k) for k in range(args.num_samples)]
        samples = torch.stack([frames for frames, _ in runs])
        if args.few_steps is not None and generator.num_steps > args.few_steps:
            few, seconds = _timed(
                replace(generator, num_steps=args.few_steps),  # type: ignore[type-var]
                guidance,
                args.seed,
            )
            trade = trades.setdefault(name, Trade())
            trade.missing.append(1 - float(guidance.mask[1:-1].float().mean()))
            trade.psnr_few.append(float(psnr(few[shown], photos).mean()))
            trade.psnr_many.append(float(psnr(samples[0][shown], photos).mean()))
            trade.seconds_few.append(seconds)
            trade.seconds_many.append(min(s for _, s in runs))
        rest = (guidance, trajectory.cameras, scene, cloud)
        evidence = [gather_evidence(s, *rest, tolerance=args.tolerance) for s in
                    (samples[:1], samples)]  # fmt: skip
        levels = ConfidenceConfig(tolerance=args.tolerance)
        if generator.num_steps == 0:
            levels = replace(levels, seen=0.0, invented=0.0)
        claimed = frame_confidence(samples[:1], guidance, levels)[shown, 0]
        error = (samples[0][shown] - photos).square().mean(1).sqrt()
        known = torch.ones_like(error, dtype=torch.bool)
        if generator.num_steps == 0:
            known = guidance.mask[shown, 0]  # Holes of what invents nothing always weigh nothing.
        index = torch.nonzero(known.flatten())[:, 0]
        pick = torch.randperm(len(index), generator=rng)[: args.pixels * len(shown)]
        index = index[pick.to(index.device)]
        result[name] = Pixels(
            one=evidence[0][:, shown].flatten(1)[:, index].cpu(),
            several=evidence[1][:, shown].flatten(1)[:, index].cpu(),
            levels=claimed.flatten()[index].cpu(),
            error=error.flatten()[index].cpu(),
        )
    return result


def measure_pack(
    path: Path, generators: dict[str, VideoGenerator], args: Arguments, trades: dict[str, Trade]
) -> dict[str, Pixels]:
    """Measure clips of every scene of a pack."""
    parts: dict[str, list[Pixels]] = {name: [] for name in generators}
    for index, packed in enumerate(read_pack(path)[: args.scenes]):
        plans = evaluation_plans(
            packed,
            index,
            num_views=args.views,
            num_frames=args.num_frames,
            clips=args.clips,
            every=False,
        )
        for plan in plans:
            try:
                made = measure_clip(packed, plan, generators, args, trades)
            except InputError as error:
                print(f"skipped a clip of {packed.name}: {error}")
                continue
            for name, pixels in made.items():
                parts[name].append(pixels)
        print(f"{path.stem}: {packed.name}, {len(plans)} clips", flush=True)
    if not any(parts.values()):
        raise InputError(f"No clip with photos between its ends was found in {path}.")
    names = ("one", "several", "levels", "error")
    return {
        name: Pixels(**{n: torch.cat([getattr(p, n) for p in rows], -1) for n in names})
        for name, rows in parts.items()
    }


def fit_models(pixels: Pixels, args: Arguments) -> dict[str, TrustModel]:
    """Fit the models for one sample and for several."""
    target = torch.exp(-pixels.error.square() / (2 * args.tolerance**2))
    single = tuple(n for n in EVIDENCE if n != "spread")
    models = {"one": fit_trust(pixels.one, target, names=single, tolerance=args.tolerance)}
    if args.num_samples > 1:
        models["several"] = fit_trust(
            pixels.several, target, names=EVIDENCE, tolerance=args.tolerance
        )
    return models


def judge(pixels: Pixels, models: dict[str, TrustModel], args: Arguments) -> dict[str, Reliability]:
    """Compare claims with what came true: levels, and the models."""
    claims = {"levels": pixels.levels}
    claims |= {kind: m.confidence(getattr(pixels, kind)) for kind, m in models.items()}
    return {
        kind: measure_reliability(claim, pixels.error, args.tolerance)
        for kind, claim in claims.items()
    }


def draw(path: Path, results: dict[str, dict[str, Reliability]]) -> None:
    """Plot claimed against measured agreement, and against error."""
    size = (4 * len(results), 7)
    figure, axes = plt.subplots(2, len(results), figsize=size, squeeze=False, layout="constrained")
    for column, (name, kinds) in enumerate(results.items()):
        top, bottom = axes[:, column]
        top.plot([0, 1], [0, 1], color="grey", linewidth=1)
        for kind, curve in kinds.items():
            label = f"{kind} (off {curve.calibration_error:.3f}, rank {curve.rank:.2f})"
            top.plot(curve.claimed, curve.measured, marker="o", label=label)
            bottom.plot(curve.claimed, curve.error, marker="o", label=kind)
        top.set_title(name)
        top.set_ylabel("measured agreement")
        bottom.set_xlabel("claimed confidence")
        bottom.set_ylabel("colour error (RMS)")
        top.legend(fontsize=7)
    figure.savefig(path, bbox_inches="tight", dpi=90)
    plt.close(figure)


def _trade_table(trade: Trade) -> list[dict[str, float]]:
    """What fewer steps cost in thirds of the clips by missing share."""
    order = sorted(range(len(trade.missing)), key=lambda i: trade.missing[i])
    rows = []
    for part in range(3):
        index = order[part * len(order) // 3 : (part + 1) * len(order) // 3]
        if index:
            rows.append({
                "missing_from": trade.missing[index[0]],
                "missing_to": trade.missing[index[-1]],
                "gain_of_more_steps_db": sum(
                    trade.psnr_many[i] - trade.psnr_few[i] for i in index
                ) / len(index),
                "seconds_few": sum(trade.seconds_few[i] for i in index) / len(index),
                "seconds_many": sum(trade.seconds_many[i] for i in index) / len(index),
            })  # fmt: skip
    return rows


def check_arguments(args: Arguments) -> None:
    """Refuse what cannot be measured.

    Raises:
        InputError: A generator comes twice or none comes, or a number or an estimator is none.
    """
    make_estimator(args.estimator)
    names = [text.partition("=")[0] for text in args.generators]
    if not names or len(set(names)) < len(names):
        raise InputError(
            f"At least one generator, and each generator once, was expected: "
            f"{' '.join(args.generators) or 'none'} came."
        )
    if min(args.num_samples, args.clips, args.pixels) < 1:
        raise InputError(
            f"At least one sample, clip and pixel were expected: {args.num_samples}, {args.clips} "
            f"and {args.pixels} came."
        )


def describe_origin(args: Arguments) -> str:
    """Return command, commit and date of this fit."""
    machine = describe_machine(args.commit)
    return f"{machine['command']}, commit {machine['commit']}, {machine['date']}"


def install(path: Path, models: dict[str, TrustModel]) -> None:
    """Put models beside those that a file holds already, in the place of those of the same name.

    The rest stays as it is, with its own origin, and it is told where the weights of a generator
    have changed since a model of it that stays was fitted.
    """
    known = read_trust(path) if path.is_file() else {}
    current = {key.partition("/")[0]: model.weights_hash for key, model in models.items()}
    for key, model in known.items():
        name = key.partition("/")[0]
        if key not in models and name in current and model.weights_hash != current[name]:
            print(f"{key} stays as it was fitted to other weights: fit it too (--num-samples 2).")
    save_trust(path, known | models)


def main(args: Arguments) -> None:
    """Fit on training scenes, judge on validation scenes, write everything."""
    check_arguments(args)
    generators = {text.partition("=")[0]: _load(text, args) for text in args.generators}
    args.out.mkdir(parents=True, exist_ok=True)
    trades: dict[str, Trade] = {}
    train = measure_pack(args.train, generators, args, trades)
    trades.clear()
    val = measure_pack(args.val, generators, args, trades)
    models, results, origin = {}, {}, describe_origin(args)
    for name, generator in generators.items():
        fitted = fit_models(train[name], args)
        results[name] = judge(val[name], fitted, args)
        for kind, model in fitted.items():
            models[trust_key(name, 1 if kind == "one" else 2)] = replace(
                model, weights_hash=generator.weights_hash or None, origin=origin
            )
        for kind, curve in results[name].items():
            print(
                f"{name} {kind}: off by {curve.calibration_error:.3f}, rank {curve.rank:.3f}, "
                f"{len(val[name].error)} pixels"
            )
    save_trust(args.out / "trust.json", models)
    if args.install:
        install(SHIPPED, models)
    table = {name: _trade_table(trade) for name, trade in trades.items()}
    numbers = {
        "machine": describe_machine(args.commit),
        "settings": plain_settings(asdict(args)),
        "reliability": {
            n: {k: asdict(c) for k, c in kinds.items()} for n, kinds in results.items()
        },
        "steps": table,
    }
    write_json(args.out / "calibration.json", numbers)
    if table:
        print(json.dumps(table, indent=1))
    draw(args.out / "calibration.png", results)


if __name__ == "__main__":
    try:
        main(tyro.cli(Arguments, description=__doc__))
    except FvgenError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
