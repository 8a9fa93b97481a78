"""One stage of one run of the ablation, in a process of its own: train, keep, measure.

Without a stage the weights are only measured. `student_ablation.py` runs these.
"""

import json
import sys
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
import tyro

from fvgen_recon.diffusion.backbone import VideoModel
from fvgen_recon.diffusion.compact.codec import CompactCodec, Sources
from fvgen_recon.diffusion.sampler import FewStepKind
from fvgen_recon.diffusion.schedule import FlowSchedule
from fvgen_recon.distill.budget import DistilConfig, DistilProgress, distil
from fvgen_recon.distill.cast import Cast, make_cast
from fvgen_recon.distill.clip import ClipBank
from fvgen_recon.distill.config import OdeSettings
from fvgen_recon.distill.pretrain import plain_sources
from fvgen_recon.distill.recording import Recordings
from fvgen_recon.errors import FvgenError, InputError
from fvgen_recon.evaluation.efficientnet import load_efficientnet
from fvgen_recon.evaluation.feature import load_stlpips
from fvgen_recon.evaluation.moment import Moments, frechet_between, measure_moments
from fvgen_recon.evaluation.student import measure_frames, sample_sources
from fvgen_recon.io.file import write_json
from fvgen_recon.recipes.compact import CompactRecipe, make_recipe

RESULT = "result.json"
"""Written last: a leg that has it is finished."""
WEIGHTS = "weights"
"""Folder of what was trained."""

WATCHED = (
    "disc/accuracy",
    "disc/temperature",
    "judge/loss",
    "judge/norm",
    "student/loss",
    "student/norm",
    "weight/mean",
    "weight/max",
    "dmd/teacher_to_critic",
)
"""What is kept of the curves."""

_LINES = 8


@dataclass(frozen=True, kw_only=True)
class Leg:
    """Train and measure one stage."""

    bank: Path
    """Folder with clips in `train` and `val` (scripts/build_bank.py --val)."""
    features: Path
    """Packed feature networks."""
    teacher: Path
    """Weights of the teacher."""
    init: Path
    """Weights to go on from, with their discriminator if they have one."""
    out: Path
    """Folder for weights and `result.json`."""
    recipe: str = "full"
    """Name in fvgen_recon.recipes.compact."""
    stage: str | None = None
    """Stage of the recipe; none to measure only."""
    updates: int = 0
    """Updates of the student."""
    seconds: float = 60.0
    """Longest training; a leg that this ends has fewer updates, and its result says so."""
    seed: int = 0
    """Of the clips and the noise."""
    warmup_turns: int | None = None
    """Updates of the judges alone before the first of the student, instead of the recipe's."""
    judge_turns: int | None = None
    """Updates of the judges before each further one of the student, instead of the recipe's."""
    batch_size: int | None = None
    """Clips an update, instead of the recipe's."""
    gradient: Literal["one_step", "all_steps"] | None = None
    """What of the student is trained at a time, instead of the recipe's."""
    max_clips: int | None = None
    """Clips of the bank that are read; none for all."""
    num_steps: tuple[int, ...] = (4, 2, 1)
    """Steps of the sampler that are measured."""
    kinds: tuple[FewStepKind, ...] = ("sde",)
    """Samplers that are measured; one step is the same for all."""
    record: bool = True
    """Replay the networks' calls as CUDA graphs where there is a GPU."""


def stage_config(leg: Leg, recipe: CompactRecipe) -> DistilConfig:
    """Return the recipe's stage with the leg's budget.

    Raises:
        InputError: There is no such stage.
    """
    stages = {s.name: s for s in recipe.stages if isinstance(s, DistilConfig)}
    if leg.stage not in stages:
        raise InputError(f"A stage out of {', '.join(stages)} was expected: {leg.stage} came.")
    changes: dict[str, Any] = {
        name: getattr(leg, name)
        for name in ("warmup_turns", "judge_turns", "batch_size")
        if getattr(leg, name) is not None
    }
    stage = stages[leg.stage]
    if leg.gradient is not None and not isinstance(stage.settings, OdeSettings):
        rollout = replace(stage.settings.rollout, gradient=leg.gradient)
        changes["settings"] = replace(stage.settings, rollout=rollout)
    return replace(stage, max_steps=leg.updates, seconds=leg.seconds, **changes)


def read_clips(folder: Path, device: torch.device, seed: int, max_clips: int | None) -> ClipBank:
    """Read a folder of clips."""
    bank = ClipBank(folder, device, seed, max_clips=max_clips)
    bank.refresh()
    return bank


def train(leg: Leg, cast: Cast, recipe: CompactRecipe, codec: CompactCodec) -> dict[str, Any]:
    """Run the stage and keep its weights; returns what it took and its curves."""
    config = stage_config(leg, recipe)
    bank = read_clips(leg.bank / "train", cast.device, leg.seed, leg.max_clips)
    vgg = load_stlpips("vgg", num_slices=4, path=leg.features).to(cast.device)
    roles = cast.roles(config, codec, vgg, seed=leg.seed)
    every = max(1, leg.updates // _LINES)
    lines = []
    for line in distil(roles, cast.ema, bank, codec, config, seed=leg.seed, log_every=every):
        lines.append(line)
        scalars = " ".join(f"{k} {v:.4g}" for k, v in line.scalars.items())
        print(f"[{line.seconds:5.1f} s] {line.step} ({line.turns}): {scalars}", flush=True)
    cast.save(leg.out / WEIGHTS, role=config.name, num_steps=4, sampler="sde")
    return {
        "training_seconds": round(lines[-1].seconds, 2),
        "updates": lines[-1].step,
        "judge_turns": lines[-1].turns,
        "batch_size": config.batch_size,
        "clips": len(bank),
        "curve": curve(lines),
    }


def curve(lines: list[DistilProgress]) -> dict[str, list[float | None]]:
    """Return the watched scalars as columns; none where a line has no such scalar."""
    columns: dict[str, list[float | None]] = {
        "step": [line.step for line in lines],
        "turns": [line.turns for line in lines],
    }
    for name in WATCHED:
        values = [line.scalars.get(name) for line in lines]
        if any(v is not None for v in values):
            columns[name] = [None if v is None else float(f"{v:.4g}") for v in values]
    return columns


class Measurer:
    """Samples a model on the validation clips and compares with their photos."""

    def __init__(self, leg: Leg, model: VideoModel, device: torch.device) -> None:
        clips = read_clips(leg.bank / "val", device, 0, None).all()
        self.model, self.device = model, device
        self.gap_deg = clips.gap_deg
        self.sources, self.target = plain_sources(clips)
        self.judge = load_stlpips("alex", path=leg.features).to(device)
        self.eyes = load_efficientnet(features=leg.features).to(device)
        self.photos = self._moments(self.target)

    @torch.no_grad()
    def _moments(self, frames: torch.Tensor) -> Moments:
        return measure_moments(self.eyes.local_features(frames[:, 1:-1].flatten(0, 1)))

    def row(self, num_steps: int, kind: FewStepKind) -> dict[str, Any]:
        """Measure one sampler; `seconds` are those of the network's and the codec's work."""
        start = time.monotonic()
        frames = sample_sources(self.model, self.sources, num_steps=num_steps, kind=kind)
        _wait(self.device)
        seconds = time.monotonic() - start
        measured = measure_frames(
            frames,
            self.target,
            _holes(self.sources),
            self.gap_deg,
            judge=self.judge,
            num_steps=num_steps,
            kind=kind,
        )
        row = asdict(measured)
        row["frechet"] = frechet_between(self._moments(frames), self.photos)
        row["clips"], row["seconds"] = len(frames), round(seconds, 3)
        print(f"{num_steps} {kind}: {measured.line()} Frechet {row['frechet']:.3f}", flush=True)
        return row


def _holes(sources: Sources) -> torch.Tensor:
    return 1 - sources.mask.float()


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def measure(leg: Leg, cast: Cast, codec: CompactCodec) -> list[dict[str, Any]]:
    """Measure the average with each sampler."""
    if cast.is_recorded:
        Recordings().record(cast.ema)
    schedule = FlowSchedule(num_timesteps=cast.ema.config.num_timesteps)
    model = VideoModel(
        codec=codec, backbone=cast.ema, schedule=schedule, name="student", weights_hash=""
    )
    measurer = Measurer(leg, model, cast.device)
    return [
        measurer.row(num_steps, kind)
        for num_steps in leg.num_steps
        for kind in (leg.kinds if num_steps > 1 else leg.kinds[:1])
    ]


def settings(leg: Leg) -> dict[str, Any]:
    """Return a leg as JSON keeps it."""
    return json.loads(json.dumps(asdict(leg), default=str))


def main(leg: Leg) -> None:
    """Train if there is a stage, measure, write the result."""
    begin = time.monotonic()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.benchmark = True
    recipe = make_recipe(leg.recipe)
    cast = make_cast(
        recipe.network,
        init=leg.init,
        teacher=leg.teacher,
        device=device,
        seed=leg.seed,
        is_recorded=leg.record and device.type == "cuda",
    )
    codec = CompactCodec(config=cast.ema.config)
    trained = {} if leg.stage is None else train(leg, cast, recipe, codec)
    rows = measure(leg, cast, codec)
    peak = torch.cuda.max_memory_reserved() if device.type == "cuda" else 0
    result = {
        "settings": settings(leg),
        **trained,
        "seconds": round(time.monotonic() - begin, 2),
        "peak_gib": round(peak / 2**30, 2),
        "rows": rows,
    }
    write_json(leg.out / RESULT, result)


if __name__ == "__main__":
    try:
        main(tyro.cli(Leg, description=__doc__))
    except FvgenError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
