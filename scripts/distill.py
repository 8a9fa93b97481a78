r"""Distil a teacher into a few-step student, and write the student as a folder of weights.

    python scripts/distill.py --recipe debug --output runs/debug
    torchrun --nproc-per-node 8 scripts/distill.py --recipe paper --teacher models/viewcrafter \
        --data data/dl3dv --output runs/paper

`accelerate launch` and several nodes work alike. A run that finds checkpoints in its output folder
goes on from the newest one.
"""

import logging
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
import tyro

from fvgen_recon.diffusion.backbone import VideoModel
from fvgen_recon.distill.config import TrainSettings, stage_rollout
from fvgen_recon.distill.data import (
    ClipSource,
    MemoryClips,
    PackedClips,
    Prefetched,
    open_packed,
)
from fvgen_recon.distill.model import BACKBONES, finished_student, random_compact, start_networks
from fvgen_recon.distill.parallel import Processes, end_program, leave_processes, start_processes
from fvgen_recon.distill.shard_plan import is_prepared, read_plan
from fvgen_recon.distill.shard_source import ShardSource, open_shards, shard_validation
from fvgen_recon.distill.synthetic import synthetic_clips
from fvgen_recon.distill.tracker import (
    FileTracker,
    LineTracker,
    TensorBoardTracker,
    Tracker,
    WandbTracker,
)
from fvgen_recon.distill.trainer import Trainer
from fvgen_recon.distill.validation import ValidationClips, read_validation
from fvgen_recon.errors import FvgenError, InputError
from fvgen_recon.recipes.distill import RECIPES, DistillRecipe

log = logging.getLogger("distill")

MAX_VALIDATION = 8
"""Prepared validation clips that are looked at."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """What to train, from what, and where to."""

    recipe: Literal[
        "paper",
        "lora",
        "gan-only",
        "no-start",
        "plain-matching",
        "dmd2",
        "causvid",
        "compact",
        "debug",
    ]
    """A function of fvgen_recon/recipes/distill.py."""
    output: Path
    """Checkpoints, curves, panels and the finished student (`student/`)."""
    teacher: Path | None = None
    """Folder of the teacher; the debug recipe starts from random weights where none is given."""
    data: Path | None = None
    """Folder with clips in `train/` and, if wanted, `validation/`, each prepared by
    scripts/prepare_dl3dv.py or packed; made-up clips for the debug recipe where none is given."""
    in_memory: bool = False
    """Hold all clips on the device instead of reading them clip by clip."""
    batch_size: int | None = None
    """Clips a process and forward, where it should differ from the recipe's."""
    accumulation: int | None = None
    """Forwards before an update, where it should differ."""
    parallel: Literal["ddp", "fsdp"] | None = None
    """Copies or shards, where it should differ."""
    fast: Literal["no", "half", "recorded", "fused"] | None = None
    """Without shards, where it should differ from the recipe: bfloat16 weights cast once an update;
    the networks' calls recorded as CUDA graphs, too; those without gradients in our own kernels."""
    recompute: bool | None = None
    """Recompute activations in the backward pass, for less memory, where it should differ."""
    compile_blocks: bool = False
    """Compile the networks' blocks."""
    stop_after: int | None = None
    """Stop after so many updates, with a checkpoint."""
    wandb: str | None = None
    """Project name on Weights & Biases."""
    cpu: bool = False
    """Train on the CPU even where there is a GPU."""


def chosen_recipe(options: Options) -> DistillRecipe:
    """Return the recipe with the changes of the command line."""
    recipe = RECIPES[options.recipe]()
    changes = {
        name: value
        for name, value in (
            ("batch_size", options.batch_size),
            ("accumulation", options.accumulation),
            ("parallel", options.parallel),
            ("activation_checkpointing", options.recompute),
        )
        if value is not None
    }
    changes |= fast_changes(options)
    train = replace(recipe.train, compile_blocks=options.compile_blocks, **changes)
    return replace(recipe, train=train)


def fast_changes(options: Options) -> dict[str, bool]:
    """Return what the chosen way of running changes.

    Raises:
        InputError: It does not go together with shards.
    """
    fast = options.fast
    if options.parallel == "fsdp":
        if fast not in (None, "no"):
            raise InputError(f"--fast {fast} is for copies: leave out --parallel fsdp.")
        fast = "no"
    if fast is None:
        return {}
    recorded = fast in ("recorded", "fused")
    changes = {
        "half_weights": fast != "no",
        "record_calls": recorded,
        "fused_calls": fast == "fused",
    }
    if recorded and options.recompute is None:
        # What is recorded keeps its memory anyway.
        changes["activation_checkpointing"] = False
    return changes


def load_model(options: Options, recipe: DistillRecipe, device: torch.device) -> VideoModel:
    """Open the teacher."""
    if options.teacher is not None:
        return BACKBONES[recipe.backbone].load(options.teacher, device)
    if recipe.untrained is None:
        raise InputError(f"The recipe {options.recipe} needs a teacher: name its folder.")
    return random_compact(recipe.untrained)


def load_data(
    options: Options, recipe: DistillRecipe, model: VideoModel, processes: Processes
) -> tuple[ClipSource, ValidationClips | None]:
    """Open the training clips, and the validation clips if there are any."""
    device, seed = processes.device, recipe.train.seed
    if options.data is None:
        if recipe.untrained is None:
            raise InputError(f"The recipe {options.recipe} needs data: name the packed folder.")
        train, validation = (
            synthetic_clips(model.codec, num_clips=n, num_frames=4, height=32, width=48, seed=s)
            for n, s in ((8, 0), (2, 1))
        )
        clips = train.clips.to(device)
        return MemoryClips(clips=clips, seed=seed, device=device), validation.to(device)
    doubt = describe_renders(options.data / "train", recipe)
    if doubt and processes.is_main:
        log.warning(doubt)
    folder = options.data / "validation"
    validation = open_validation(folder, model, device) if folder.is_dir() else None
    source = open_clips(options.data / "train", model, seed=seed, device=device)
    if options.in_memory:
        return MemoryClips(clips=source.load().to(device), seed=seed, device=device), validation
    stride = recipe.train.batch_size * processes.count
    if isinstance(source, ShardSource) and source.codec is not None:
        return Prefetched(source, stride, device, encodes=True), validation
    # A thread that reads ahead leaves the GPU to the training.
    source = replace(source, device=torch.device("cpu"))
    return Prefetched(source, stride, device), validation


def describe_renders(folder: Path, recipe: DistillRecipe) -> str:
    """Return what does not fit in the renders of prepared clips; empty where all does."""
    if not is_prepared(folder):
        return ""
    is_raw, wanted = read_plan(folder).settings.is_raw, BACKBONES[recipe.backbone].is_raw
    if is_raw == wanted:
        return ""
    kinds = {True: "bare renders of points", False: "opaque surfaces"}
    return (
        f"The clips in {folder} show {kinds[is_raw]}, and a {recipe.backbone} teacher knows "
        f"{kinds[wanted]}: prepare them {'with' if wanted else 'without'} --is-raw."
    )


def open_clips(
    folder: Path, model: VideoModel, *, seed: int, device: torch.device
) -> PackedClips | ShardSource:
    """Open prepared shards or packed clips; clips without latents are encoded while reading."""
    if not is_prepared(folder):
        return open_packed(folder, seed=seed, device=device)
    return open_shards(folder, seed=seed, device=device, codec=model.codec)


def open_validation(folder: Path, model: VideoModel, device: torch.device) -> ValidationClips:
    """Open the clips to look at."""
    if not is_prepared(folder):
        return read_validation(folder, model.codec, device)
    source = open_shards(folder, seed=0, device=device, codec=model.codec)
    return shard_validation(source, model.codec, max_clips=MAX_VALIDATION)


def trainable(train: TrainSettings, source: ClipSource) -> TrainSettings:
    """Return the settings, without recorded calls where a thread encodes clips on the same GPU."""
    encodes = isinstance(source, Prefetched) and source.encodes
    if not (train.record_calls and encodes):
        return train
    log.info("clips have no latents and are encoded on the way, so no calls are recorded")
    return replace(train, record_calls=False, fused_calls=False)


def open_trackers(options: Options, processes: Processes) -> list[Tracker]:
    """Open what keeps curves and panels; in the main process only."""
    if not processes.is_main:
        return []
    trackers: list[Tracker] = [
        LineTracker(log.info),
        FileTracker(options.output),
        TensorBoardTracker(options.output / "tensorboard"),
    ]
    if options.wandb is not None:
        trackers.append(WandbTracker(options.wandb, options.output))
    return trackers


def run(options: Options) -> None:
    """Train, and write the student when the run is at its end."""
    processes = start_processes(cpu=options.cpu)
    recipe = chosen_recipe(options)
    model = load_model(options, recipe, processes.device)
    source, validation = load_data(options, recipe, model, processes)
    model.backbone.to(processes.device)
    half = processes.device.type == "cuda" and recipe.backbone == "viewcrafter"
    networks = start_networks(
        model,
        source.batch(range(1)),
        disc_layers=recipe.disc_layers,
        disc_width=recipe.disc_width,
        lora=recipe.lora,
        frozen_dtype=torch.bfloat16 if half else torch.float32,
    )
    trackers = open_trackers(options, processes)
    trainer = Trainer(
        trainable(recipe.train, source),
        networks,
        source,
        options.output,
        processes=processes,
        trackers=trackers,
        validation=validation,
    )
    if trainer.resume() and processes.is_main:
        log.info(f"going on from update {trainer.tick}")
    trainer.run(stop_after=options.stop_after)
    for tracker in trackers:
        tracker.close()
    if trainer.is_done:
        export(options, recipe, trainer, processes)
    leave_processes(processes)


def export(options: Options, recipe: DistillRecipe, trainer: Trainer, processes: Processes) -> None:
    """Write the averaged student as a folder that generators load."""
    folder = options.output / "student"
    weights = trainer.ensemble.average_weights()
    if processes.is_main:
        student = load_model(options, recipe, torch.device("cpu")).backbone
        student = finished_student(student, weights, recipe.lora)
        rollout = stage_rollout(recipe.train.phases[-1].stage)
        BACKBONES[recipe.backbone].export(folder, options.teacher, student, rollout)
        log.info(f"student written to {folder}")


def main(options: Options) -> int:
    """Run, and say in one sentence what went wrong where it did."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        run(options)
    except FvgenError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    end_program(main(tyro.cli(Options, description=__doc__)))
