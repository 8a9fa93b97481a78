"""One trial: train one method on one split of one scene, then score its held-out views.

Usage:
    python benchmarks/trial.py --scene DIR --inputs 0 9 19 --test 4 12 --method splatfacto \
        --out outputs/trial
"""

import copy
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import tyro
from methods import METHODS, replace_missing_lpips

from fvgen_nerfstudio.datamanager import FvgenDatamanagerConfig
from fvgen_nerfstudio.dataparser import FvgenDataParserConfig
from fvgen_recon.errors import FvgenError, InputError
from fvgen_recon.evaluation.metric import psnr, ssim
from fvgen_recon.io.file import write_json
from fvgen_recon.io.image import write_image


@dataclass(frozen=True)
class Options:
    """What to train on what."""

    scene: Path
    """Scene folder."""
    inputs: tuple[int, ...]
    """Indices of the input views, in file-name order."""
    test: tuple[int, ...]
    """Indices of the test views."""
    out: Path
    """Folder for the run, the rendered test views and `trial.json`."""
    method: str = "fvgen-splat"
    """One of the benchmark's methods."""
    iterations: int = 2000
    """Training steps."""
    device: str = "cuda" if torch.cuda.is_available() else "cpu"
    """Where to train."""
    estimator: str = "plane-sweep"
    """Where the points to start from come from; `dataset` uses more than the inputs."""
    long_side: int = 0
    """Longer image side in training and scoring, in pixels; 0 keeps the photos' size."""
    seed: int = 0
    """Seed of the training."""
    overrides: tuple[str, ...] = ()
    """Settings of the configuration as `path.to.field=value`, for ablations."""


def build_config(options: Options) -> Any:
    """Return nerfstudio's configuration of the trial."""
    from nerfstudio.configs.method_configs import all_methods

    if options.method not in METHODS:
        raise InputError(f"There is no method `{options.method}`: choose one of {list(METHODS)}.")
    method = METHODS[options.method]
    name = method.registered
    if name == "fvgen-splat" and options.device == "cpu":
        name = "fvgen-splat-cpu"
    config = copy.deepcopy(all_methods[name])
    split = options.out / "split.json"
    write_json(split, {"train_ids": list(options.inputs), "test_ids": list(options.test)})
    config.pipeline.datamanager.dataparser = FvgenDataParserConfig(
        data=options.scene.resolve(),
        split_file=split.resolve(),
        estimator=options.estimator,
        long_side=options.long_side,
    )
    if isinstance(config.pipeline.datamanager, FvgenDatamanagerConfig):
        config.pipeline.densify.generator = method.generator
    config.machine.device_type = options.device
    config.machine.seed = options.seed
    config.max_num_iterations = options.iterations
    config.steps_per_save = options.iterations
    config.output_dir, config.vis = options.out, "tensorboard"
    config.experiment_name, config.timestamp = "run", "trial"
    for step in ("steps_per_eval_batch", "steps_per_eval_image", "steps_per_eval_all_images"):
        setattr(config, step, 10**9)  # A method that looks at test views while training is unfair.
    for override in options.overrides:
        _apply(config, override)
    return config


def _apply(config: Any, override: str) -> None:
    """Set one field, keeping its type."""
    path, _, text = override.partition("=")
    *parents, last = path.split(".")
    for parent in parents:
        config = getattr(config, parent)
    old = getattr(config, last)
    kind = type(old) if old is not None else str
    value = (
        text == "True"
        if kind is bool
        else kind(text)
        if kind is not tuple
        else tuple(float(part) for part in text.split(","))
    )
    setattr(config, last, value)


def train(config: Any) -> tuple[Any, float]:
    """Train and return the pipeline and the wall-clock seconds."""
    replace_missing_lpips()
    config.save_config()
    trainer = config.setup(local_rank=0, world_size=1)
    start = time.perf_counter()
    trainer.setup()
    trainer.train()
    if config.machine.device_type == "cuda":
        torch.cuda.synchronize()
    return trainer.pipeline, time.perf_counter() - start


@torch.no_grad()
def score(pipeline: Any, options: Options) -> list[dict[str, Any]]:
    """Render and score every test view; the pictures are kept for perceptual metrics."""
    pipeline.eval()
    rows = []
    loader = pipeline.datamanager.fixed_indices_eval_dataloader
    for index, (camera, batch) in zip(options.test, loader, strict=True):
        outputs = pipeline.model.get_outputs_for_camera(camera=camera)
        image = outputs["rgb"].permute(2, 0, 1)[None].float().clamp(0, 1).cpu()
        truth = batch["image"][..., :3].permute(2, 0, 1)[None].float().cpu()
        truth = truth / 255 if truth.max() > 1.5 else truth
        height, width = image.shape[-2:]
        truth = truth[..., :height, :width]
        write_image(options.out / "test" / f"{index:04d}.png", image[0])
        write_image(options.out / "test" / f"{index:04d}_truth.png", truth[0])
        rows.append(
            {"view": index, "psnr": float(psnr(image, truth)), "ssim": float(ssim(image, truth))}
        )
    return rows


def main(options: Options) -> int:
    """Run the trial and write `trial.json`."""
    try:
        config = build_config(options)
        torch.manual_seed(options.seed)
        if options.device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        pipeline, seconds = train(config)
        views = score(pipeline, options)
    except FvgenError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    peak = torch.cuda.max_memory_allocated() / 2**30 if options.device == "cuda" else None
    result = {
        "scene": options.scene.name,
        "method": options.method,
        "num_views": len(options.inputs),
        "inputs": list(options.inputs),
        "initialisation": options.estimator,
        "iterations": options.iterations,
        "seed": options.seed,
        "overrides": list(options.overrides),
        "seconds": seconds,
        "peak_gib": peak,
        "num_gaussians": int(pipeline.model.num_points),
        "views": views,
        **{key: sum(view[key] for view in views) / len(views) for key in ("psnr", "ssim")},
    }
    write_json(options.out / "trial.json", result)
    print(f"{options.scene.name} {options.method}: PSNR {result['psnr']:.2f} in {seconds:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Options, description=__doc__)))
