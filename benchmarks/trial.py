"""One trial: train one method on one fold and render its test views. Scoring is another program's.

The fold holds the photos of the inputs and only the poses of the test views, so that a method
which tries to open a held-out photo fails.

Usage:
    python benchmarks/trial.py --fold outputs/fold --method splatfacto --out outputs/trial
"""

import copy
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args, get_type_hints

import torch
import tyro
from methods import find_method, replace_missing_lpips

from fvgen_recon.errors import FvgenError, InputError
from fvgen_recon.evaluation.fold import Fold, read_fold
from fvgen_recon.io.file import read_json, write_json
from fvgen_recon.io.image import write_image

MIN_POINTS = 10
"""Fewer points are no start: the plugin refuses them."""
Clock = dict[str, float]
"""Seconds by part."""


@dataclass(frozen=True)
class Options:
    """What to train on what."""

    fold: Path
    """Folder of the fold."""
    out: Path
    """Folder for the run, the rendered test views and `trial.json`."""
    method: str = "fvgen-splat"
    """One of the benchmark's methods."""
    iterations: int = 2000
    """Training steps."""
    device: str = "cuda" if torch.cuda.is_available() else "cpu"
    """Where to train."""
    estimator: str = "stereo"
    """Where the points to start from come from; `dataset` uses more than the inputs."""
    seed: int = 0
    """Seed of the training."""
    overrides: tuple[str, ...] = ()
    """Settings of the configuration as `path.to.field=value`, for ablations."""


def build_config(options: Options, fold: Fold) -> Any:
    """Return nerfstudio's configuration of the trial.

    Raises:
        InputError: nerfstudio knows no such method, or it cannot run on this device.
    """
    from nerfstudio.configs.method_configs import all_methods
    from nerfstudio.data.datamanagers.full_images_datamanager import FullImageDatamanagerConfig

    from fvgen_nerfstudio.datamanager import FvgenDatamanagerConfig
    from fvgen_nerfstudio.dataparser import FvgenDataParserConfig
    from fvgen_nerfstudio.method import METHODS as OUR_METHODS

    method = find_method(options.method)
    is_ours = method.registered == "fvgen-splat"
    if options.device == "cpu" and method.registered.startswith("splatfacto"):
        raise InputError("Stock splatfacto needs a CUDA device: choose methods of fvgen-splat.")
    if is_ours:  # Taken from the package, so that it need not be installed with its entry points.
        name = "fvgen-splat-cpu" if options.device == "cpu" else "fvgen-splat"
        config = OUR_METHODS[name]().config
    elif method.registered in all_methods:
        config = copy.deepcopy(all_methods[method.registered])
    else:
        raise InputError(f"nerfstudio has no method `{method.registered}`: see `ns-train --help`.")
    data = config.pipeline.datamanager
    if isinstance(data, FvgenDatamanagerConfig):
        config.pipeline.densify.generator = method.generator
    else:
        data.dataparser = FvgenDataParserConfig()
    parser = data.dataparser
    parser.data, parser.split_file = fold.folder.resolve(), fold.split.resolve()
    parser.estimator = method.estimator or options.estimator
    parser.long_side = 0  # The fold has the size that is asked for already.
    config.machine.device_type, config.machine.seed = options.device, options.seed
    # Which points are drawn and the order of the photos: all that chance decides in our methods.
    parser.seed = options.seed
    if isinstance(data, FullImageDatamanagerConfig):
        data.train_cameras_sampling_seed += options.seed
    config.max_num_iterations = config.steps_per_save = options.iterations
    # Neither viewer nor event files nor a live table: they cost a step as much as its losses.
    config.output_dir, config.vis = options.out, "none"
    config.logging.local_writer.enable = False
    config.experiment_name, config.timestamp = "run", "trial"
    for step in ("steps_per_eval_batch", "steps_per_eval_image", "steps_per_eval_all_images"):
        setattr(config, step, 10**9)  # A method that looks at test views while training is unfair.
    for override in options.overrides:
        apply_override(config, override)
    return config


def start_anywhere(config: Any) -> str:
    """Let a trial start from random Gaussians, as nerfstudio does, where a scene brings no points.

    Returns:
        The initialisation to note.
    """
    parser = config.pipeline.datamanager.dataparser
    if parser.estimator != "dataset":
        return parser.estimator
    try:
        num_points = len(parser.setup().points)
    except InputError:
        num_points = 0
    if num_points >= MIN_POINTS:
        return parser.estimator
    parser.estimator, config.pipeline.model.random_init = "random", True
    return f"random, as the scene brings {num_points} points"


def apply_override(config: Any, override: str) -> None:
    """Set one field of a configuration, keeping its type.

    Raises:
        InputError: There is no such field.
    """
    path, _, text = override.partition("=")
    *parents, last = path.split(".")
    try:
        for parent in parents:
            config = config[parent] if isinstance(config, dict) else getattr(config, parent)
        old = getattr(config, last)
    except (AttributeError, KeyError) as error:
        raise InputError(f"The override {override} names no field of the configuration.") from error
    setattr(config, last, _parse(text, old, type(config), last))


def _parse(text: str, old: Any, owner: type, field: str) -> Any:
    """Read a value of the type that a field has; one that is none now has the type it declares."""
    if isinstance(old, bool):
        return text == "True"
    if isinstance(old, tuple):
        words = filter(None, text.split(","))
        is_text = "str" in str(get_type_hints(owner)[field])
        return tuple(words) if is_text else tuple(float(word) for word in words)
    if old is not None:
        return type(old)(text)
    declared = get_args(get_type_hints(owner)[field])
    kind = next((kind for kind in (Path, int, float) if kind in declared), str)
    return kind(text)


def watch_parts(clock: Clock) -> None:
    """Add up the seconds that point clouds and generation take, from outside of the methods."""
    from fvgen_nerfstudio import generation
    from fvgen_recon.pointcloud import ESTIMATORS

    assert isinstance(ESTIMATORS, dict)
    for name, make in list(ESTIMATORS.items()):
        ESTIMATORS[name] = lambda make=make: _TimedEstimator(make(), clock)
    run_round = generation.run_round

    def timed_round(*args: Any, **kwargs: Any) -> Any:
        outcome = run_round(*args, **kwargs)
        for part in ("plan", "render", "generate"):
            clock[part] = clock.get(part, 0.0) + outcome.seconds.get(part, 0.0)
        return outcome

    generation.run_round = timed_round


@dataclass(frozen=True)
class _TimedEstimator:
    """A point-cloud source under a stopwatch."""

    inner: Any
    clock: Clock

    def estimate(self, scene: Any) -> Any:
        """Return what the source returns."""
        start = time.perf_counter()
        cloud = self.inner.estimate(scene)
        _wait()
        self.clock["points"] = self.clock.get("points", 0.0) + time.perf_counter() - start
        return cloud


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def open_trainer(config: Any) -> Any:
    """Write the configuration into the run folder and return its trainer, not set up yet."""
    replace_missing_lpips()
    config.save_config()
    return config.setup(local_rank=0, world_size=1)


def train(config: Any, clock: Clock) -> Any:
    """Train and return the pipeline; the clock gets the parts and what is left for training."""
    watch_parts(clock)
    trainer = open_trainer(config)
    start = time.perf_counter()
    trainer.setup()
    trainer.train()
    _wait()
    total = time.perf_counter() - start
    clock["train"] = total - sum(clock.values())
    clock["total"] = total
    return trainer.pipeline


@torch.no_grad()
def test_outputs(pipeline: Any, fold: Fold) -> Iterator[tuple[int, dict[str, Any]]]:
    """Render every test view: its id and the model's outputs; their photos do not exist here."""
    from fvgen_nerfstudio.camera import to_nerfstudio

    source = pipeline.datamanager.dataparser.source
    ranks = tuple(read_json(fold.split)["test_ids"])
    pipeline.eval()
    cameras = to_nerfstudio(source.cameras(ranks)).to(pipeline.device)
    for place, view in enumerate(fold.test):
        yield view, pipeline.model.get_outputs_for_camera(camera=cameras[place : place + 1])


def render_test_views(pipeline: Any, fold: Fold, folder: Path) -> None:
    """Write the image of every test view."""
    for view, outputs in test_outputs(pipeline, fold):
        image = outputs["rgb"].permute(2, 0, 1).float().clamp(0, 1).cpu()
        write_image(folder / f"{view:05d}.png", image)


def run(options: Options, say: Callable[[str], None] = print) -> dict[str, Any]:
    """Run the trial and return what `trial.json` holds."""
    fold = read_fold(options.fold)
    config = build_config(options, fold)
    start = start_anywhere(config)
    torch.manual_seed(options.seed)
    if options.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    clock: Clock = {}
    pipeline = train(config, clock)
    peak = torch.cuda.max_memory_allocated() / 2**30 if options.device == "cuda" else None
    render_test_views(pipeline, fold, options.out / "renders")
    say(f"{options.method}: {clock['total']:.0f} s")
    return {
        "method": options.method,
        "initialisation": start,
        "iterations": options.iterations,
        "seed": options.seed,
        "overrides": list(options.overrides),
        "seconds": clock,
        "peak_gib": peak,
        "num_gaussians": getattr(pipeline.model, "num_points", None),
    }


def finish(make: Callable[[], dict[str, Any]], out: Path) -> int:
    """Write what a trial says into its `trial.json`; 2, and a sentence, where it cannot be made."""
    try:
        result = make()
    except FvgenError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    write_json(out / "trial.json", result)
    return 0


def main(options: Options) -> int:
    """Run the trial and write `trial.json`."""
    return finish(lambda: run(options), options.out)


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Options, description=__doc__)))
