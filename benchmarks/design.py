"""Shapes of the compact model side by side: latent, attention, width, copying, prediction type.

Each variant is trained from nothing for the same number of updates, on the same clips in the same
order, in a process of its own, and measured on the validation clips. Run again, finished ones are
kept.

Usage:
    python scripts/build_bank.py --train train.bin --val val.bin --out bank/train --estimator mvs
    python benchmarks/design.py --bank bank --features features.bin --out design.json --gpus 2
"""

import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
import tyro
from student_leg import read_clips

from fvgen_recon.diffusion.backbone import VideoModel
from fvgen_recon.diffusion.compact.backbone import CompactBackbone
from fvgen_recon.diffusion.compact.codec import CompactCodec
from fvgen_recon.diffusion.compact.config import CompactConfig
from fvgen_recon.diffusion.schedule import FlowSchedule, Prediction
from fvgen_recon.distill.pretrain import PretrainConfig, Pretraining, plain_sources, pretrain
from fvgen_recon.errors import FvgenError, InputError
from fvgen_recon.evaluation.feature import load_stlpips
from fvgen_recon.evaluation.machine import describe_machine, visible_gpu
from fvgen_recon.evaluation.student import measure_model
from fvgen_recon.evaluation.table import markdown
from fvgen_recon.io.file import read_json, write_json
from fvgen_recon.recipes.compact import make_recipe


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One thing that differs from what ships."""

    changes: tuple[tuple[str, Any], ...] = ()
    """Fields of `CompactConfig` and their values."""
    is_teacher: bool = False
    """Train all noise levels, else only the answer to pure noise."""
    prediction: Prediction = "x0"
    """What the network's output means."""


VARIANTS: dict[str, Variant] = {
    "shipped": Variant(),
    "latent: unshuffled by 2": Variant(changes=(("patch", 2), ("widths", (56, 112, 192)))),
    "latent: unshuffled by 8": Variant(changes=(("patch", 8), ("widths", (176, 240, 288)))),
    "no attention": Variant(changes=(("num_attention", 0),)),
    "six layers of attention": Variant(changes=(("num_attention", 6),)),
    "narrow": Variant(changes=(("widths", (64, 112, 144)),)),
    "wide": Variant(changes=(("widths", (160, 256, 336)),)),
    "no alternatives": Variant(changes=(("num_alternatives", 0),)),
    "no hints": Variant(changes=(("hints", False),)),
    "other views as the only alternative": Variant(changes=(("num_alternatives", 1),)),
    "copies without offsets": Variant(changes=(("max_offset_px", 0.0),)),
    "copies within 24 pixels": Variant(changes=(("max_offset_px", 24.0),)),
    "teacher, x0": Variant(is_teacher=True),
    "teacher, x0 with a gate": Variant(is_teacher=True, changes=(("gate", True),)),
    "teacher, velocity": Variant(is_teacher=True, prediction="velocity"),
}
"""Widths of the other latents keep about the weights of what ships."""

_LOG_EVERY = 100
_TEACHER_STEPS = (1, 4, 8)


@dataclass(frozen=True, kw_only=True)
class Options:
    """What to compare, and on what."""

    bank: Path
    """Folder with clips in `train` and `val` (scripts/build_bank.py --val)."""
    features: Path
    """Packed feature networks."""
    out: Path
    """JSON file with the results; those of each variant are kept in a folder beside it."""
    variants: tuple[str, ...] = tuple(VARIANTS)
    """Which to train, out of VARIANTS."""
    updates: int = 500
    """Updates of each."""
    batch_size: int = 16
    """Clips an update."""
    max_clips: int | None = None
    """Clips that each process keeps on its device; none for all."""
    recipe: str = "full"
    """Name in fvgen_recon.recipes.compact: the shape that variants change, and the stages."""
    gpus: int = 0
    """GPUs to spread the variants over; 0 for the CPU."""
    per_gpu: int = 1
    """Variants that train at the same time on each."""
    limit_s: float = 1e9
    """Seconds after which a training is given up, and none is started."""
    seed: int = 0
    """Of the first weights, the clips and the noise."""
    commit: str = ""
    """Commit to note where git cannot tell."""
    only: str | None = None
    """Train this variant in this process (used by the program itself)."""

    def __post_init__(self) -> None:
        """Check the names."""
        make_recipe(self.recipe)
        names = (*self.variants, *filter(None, [self.only]))
        unknown = sorted(set(names) - set(VARIANTS))
        if unknown:
            raise InputError(
                f"Variants out of {', '.join(VARIANTS)} were expected: {', '.join(unknown)} came."
            )

    def path(self, name: str) -> Path:
        """Return the file with the result of a variant."""
        slug = "".join(c if c.isalnum() else "_" for c in name)
        return self.out.with_suffix("") / f"{slug}.json"


def settings(options: Options) -> dict[str, Any]:
    """Return what decides a variant's result beside the variant and the clips."""
    names = ("recipe", "updates", "batch_size", "max_clips", "seed")
    return {name: getattr(options, name) for name in names}


def shape(options: Options, variant: Variant) -> CompactConfig:
    """Return the network's shape: the recipe's, without a gate unless the variant has one."""
    base = replace(make_recipe(options.recipe).network, gate=False)
    return replace(base, **dict(variant.changes))


def stage(options: Options, variant: Variant) -> PretrainConfig:
    """Return the recipe's stage with the budget in updates."""
    name = "teacher" if variant.is_teacher else "regression"
    stages = {
        s.name: s for s in make_recipe(options.recipe).stages if isinstance(s, PretrainConfig)
    }
    budget = {"max_steps": options.updates, "batch_size": options.batch_size, "seconds": 1e9}
    return replace(stages[name], **budget)


def train(name: str, options: Options) -> dict[str, Any]:
    """Train a variant from nothing and measure its average; returns its row."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    variant = VARIANTS[name]
    config = shape(options, variant)
    torch.manual_seed(options.seed)
    model, average = CompactBackbone(config).to(device), CompactBackbone(config).to(device)
    average.load_state_dict(model.state_dict())
    average.eval().requires_grad_(False)
    codec = CompactCodec(config=config)
    schedule = FlowSchedule(num_timesteps=config.num_timesteps, prediction=variant.prediction)
    pretraining = Pretraining(
        codec=codec,
        schedule=schedule,
        config=stage(options, variant),
        perceptual=load_stlpips("vgg", num_slices=4, path=options.features).to(device),
    )
    clips = read_clips(options.bank / "train", device, options.seed, options.max_clips)
    curve = []
    for line in pretrain(
        model, average, clips, pretraining, seed=options.seed, log_every=_LOG_EVERY
    ):
        curve.append([line.step, round(line.loss, 5)])
        print(f"{name}: {line.step} of {options.updates} updates, {line.seconds:.0f} s", flush=True)
    video = VideoModel(codec=codec, backbone=average, schedule=schedule, name=name, weights_hash="")
    return {
        "variant": name,
        "settings": settings(options),
        "config": asdict(config),
        "prediction": variant.prediction,
        "millions": round(sum(p.numel() for p in model.parameters()) / 1e6, 2),
        "updates": curve[-1][0],
        "training_seconds": round(line.seconds, 1),
        "clips": len(clips),
        "curve": curve,
        "rows": measure(video, options, _TEACHER_STEPS if variant.is_teacher else (1,)),
    }


def measure(model: VideoModel, options: Options, steps: tuple[int, ...]) -> list[dict[str, Any]]:
    """Sample on the validation clips, deterministically where there are several steps."""
    device = next(model.backbone.parameters()).device
    clips = read_clips(options.bank / "val", device, 0, None).all()
    sources, target = plain_sources(clips)
    judge = load_stlpips("alex", path=options.features).to(device)
    rows = []
    for num_steps in steps:
        start = time.monotonic()
        result = measure_model(
            model, sources, target, clips.gap_deg, num_steps=num_steps, kind="ode", judge=judge
        )
        rows.append({**asdict(result), "seconds": round(time.monotonic() - start, 2)})
    return rows


def run_variant(name: str, gpu: int | None, options: Options, start: float) -> str | None:
    """Train a variant in its own process; returns what went wrong, if anything did."""
    left = options.limit_s - (time.monotonic() - start)
    if left <= 0:
        return "not started: the time was over"
    words = [
        *("--bank", options.bank, "--features", options.features, "--out", options.out),
        *("--updates", options.updates, "--batch-size", options.batch_size),
        *("--recipe", options.recipe, "--seed", options.seed, "--only", name),
        *(() if options.max_clips is None else ("--max-clips", options.max_clips)),
    ]
    environment = {
        **os.environ,
        "CUDA_VISIBLE_DEVICES": "" if gpu is None else visible_gpu(gpu),
    }
    path = options.path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_suffix(".log").open("w") as log:
        try:
            subprocess.run(
                [sys.executable, __file__, *map(str, words)],
                env=environment,
                stdout=log,
                stderr=subprocess.STDOUT,
                check=True,
                timeout=left,
            )
        except subprocess.SubprocessError as error:
            return f"{type(error).__name__}: see {path.with_suffix('.log')}"
    return None


def is_finished(name: str, options: Options) -> bool:
    """Tell whether a variant was trained before with the same settings."""
    path = options.path(name)
    return path.is_file() and read_json(path)["settings"] == settings(options)


def run_all(options: Options) -> dict[str, str]:
    """Train all that are not finished; returns what went wrong, by variant."""
    names = [name for name in options.variants if not is_finished(name, options)]
    gpus: list[int | None] = list(range(options.gpus)) or [None]
    start = time.monotonic()
    with ThreadPoolExecutor(len(gpus) * options.per_gpu) as pool:
        tasks = {
            name: pool.submit(run_variant, name, gpus[i % len(gpus)], options, start)
            for i, name in enumerate(names)
        }
    failures = {name: task.result() for name, task in tasks.items()}
    return {name: reason for name, reason in failures.items() if reason is not None}


def table(results: list[dict[str, Any]]) -> str:
    """Return the rows as Markdown."""
    head = [
        "variant",
        "weights",
        "steps",
        "PSNR",
        "in holes",
        "SSIM",
        "ST-LPIPS",
        "sharp, holes / trusted",
    ]
    lines = []
    for result in results:
        for row in result["rows"]:
            weights = f"{result['millions']:.1f} M"
            numbers = [f"{row[key]:.2f}" for key in ("psnr", "psnr_hole")]
            numbers += [f"{row[key]:.3f}" for key in ("ssim", "perceptual")]
            sharp = f"{row['sharp_hole']:.2f} / {row['sharp_trusted']:.2f}"
            lines.append([result["variant"], weights, str(row["num_steps"]), *numbers, sharp])
    return markdown(head, lines)


def main(options: Options) -> int:
    """Train and compare, or train one."""
    if options.only is not None:
        torch.set_float32_matmul_precision("high")
        torch.backends.cudnn.benchmark = True
        write_json(options.path(options.only), train(options.only, options))
        return 0
    _check_clips(options)
    failures = run_all(options)
    found = [options.path(name) for name in options.variants if is_finished(name, options)]
    results = [read_json(path) for path in found]
    content = {
        "machine": describe_machine(options.commit),
        "settings": settings(options),
        "failures": failures,
        "variants": results,
    }
    write_json(options.out, content)
    print(table(results))
    for name, reason in failures.items():
        print(f"{name}: {reason}", file=sys.stderr)
    return 1 if failures else 0


def _check_clips(options: Options) -> None:
    for part in ("train", "val"):
        if not any((options.bank / part).glob("*.safetensors")):
            raise InputError(
                f"{options.bank / part} has no clips: build them with scripts/build_bank.py --val."
            )


if __name__ == "__main__":
    try:
        sys.exit(main(tyro.cli(Options, description=__doc__)))
    except FvgenError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
