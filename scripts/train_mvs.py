"""Train the stereo network from packed scenes and compare it with the plane sweep.

Depth to train on is measured first, by plane sweeps over many views, and procedural worlds are
photographed if wanted (kept in --cache); then the network trains for --settings.seconds; then both
are measured on the validation scenes. Run it again with the same --out to go on where it stopped,
and with --measure-only to measure alone. --average takes the mean of the weights of several
trainings.

Usage:
    python scripts/pack_scenes.py --scenes TRAIN --out train.pack --long-side 320 --tracks
    python scripts/pack_scenes.py --scenes VAL --out val.pack --long-side 320 --tracks
    python scripts/train_mvs.py --train train.pack --val val.pack --out outputs/mvs
"""

import json
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import torch
import tyro

from fvgen_recon.distill.pack import PackedScene
from fvgen_recon.distill.stereo.bank import StereoBank
from fvgen_recon.distill.stereo.preparation import Preparation, prepare_training, read_tracked
from fvgen_recon.distill.stereo.training import StereoProgress, StereoSettings, StereoTrainer
from fvgen_recon.distill.stereo.truth import TruthSettings
from fvgen_recon.errors import FvgenError, InputError
from fvgen_recon.evaluation.depth import (
    DepthCase,
    DepthFigures,
    SparsePoints,
    calibration_table,
    depth_table,
    find_cases,
    measure_depth,
    pair_angles,
)
from fvgen_recon.evaluation.efficientnet import load_efficientnet
from fvgen_recon.evaluation.machine import describe_machine
from fvgen_recon.io.file import atomic_path, write_json
from fvgen_recon.io.image import write_image
from fvgen_recon.pointcloud.depth_map import DepthMaps
from fvgen_recon.pointcloud.mvs.checkpoint import (
    average_mvs,
    grow_mvs,
    load_mvs,
    read_mvs_card,
    save_mvs,
)
from fvgen_recon.pointcloud.mvs.config import MvsConfig
from fvgen_recon.pointcloud.mvs.estimator import LearnedStereo
from fvgen_recon.pointcloud.mvs.network import MvsNetwork
from fvgen_recon.pointcloud.plane_sweep import PlaneSweep
from fvgen_recon.types import Scene


def _shipped_sizes() -> MvsConfig:
    return MvsConfig(num_completion=6, is_semantic=True)


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Train the stereo network and compare it with the plane sweep."""

    train: Path
    """Packed training scenes with tracks."""
    val: Path
    """Packed validation scenes with tracks; only ever measured on."""
    out: Path
    """Folder for weights, state, curve, tables and pictures."""
    cache: Path | None = None
    """Folder for the depth to train on; inside `out` by default."""
    init: Path | None = None
    """Folder of weights to start from; a completion (`network.num_completion`) may be added, and
    what it sees of ImageNet (`network.is_semantic`)."""
    features: Path | None = None
    """File of packed feature networks, for machines without the package of ImageNet's."""
    settings: StereoSettings = field(default_factory=StereoSettings)
    network: MvsConfig = field(default_factory=_shipped_sizes)
    """Sizes; those of the weights in the package by default."""
    truth: TruthSettings = field(default_factory=TruthSettings)
    num_workers: int = 4
    """Processes that measure the depth to train on and photograph worlds, spread over all GPUs (8
    to 11 GB each); 0 does it in this one."""
    worlds: int = 0
    """Procedural worlds to photograph beside the scenes, with textures cut out of their photos."""
    world_views: int = 24
    """Photos of each."""
    world_share: float = 0.3
    """Chance that a group comes from these where it is no collage."""
    save_every: float = 60.0
    """Seconds between two saves."""
    num_views: int = 3
    """Input views of the validation cases."""
    angles: tuple[float, ...] = (8.0, 14.0, 20.0, 27.0, 35.0, 42.0)
    """Wanted angles between neighbouring views there, in degrees."""
    max_held_out: int = 3
    """Held-out photos of each case."""
    only_scenes: tuple[str, ...] = ()
    """Restrict both packs to these scenes, for a quick look."""
    baseline: bool = True
    """Measure the plane sweep too."""
    shipped: bool = False
    """Measure the weights in the package too."""
    average: tuple[Path, ...] = ()
    """Folders of weights from trainings that began at the same weights: nothing is trained, the
    mean of their weights is written to `out` and measured."""
    measure_only: bool = False
    """Only measure the weights in `out`; `train` is not read."""
    seed: int = 0
    """Of the first weights and of the batches."""


START = time.monotonic()
_STATE = "state.safetensors"


def say(text: str) -> None:
    """Print with the time since the start."""
    print(f"[{time.monotonic() - START:6.1f} s] {text}", flush=True)


def first_network(args: Arguments) -> MvsNetwork:
    """Make the network that training starts from."""
    torch.manual_seed(args.seed)
    started = None if args.init is None else load_mvs(args.init)
    if started is not None and started.config == args.network:
        return started
    network = MvsNetwork(args.network) if started is None else grow_mvs(started, args.network)
    semantic = network.completion.semantic if network.completion is not None else None
    is_known = started is not None and started.config.is_semantic
    if semantic is not None and not is_known and not (args.out / _STATE).exists():
        semantic.load_state_dict(load_efficientnet(features=args.features).state_dict())
    return network


def make_trainer(args: Arguments, bank: StereoBank, device: torch.device) -> StereoTrainer:
    """Build the networks; start from weights or an earlier state where there are any."""
    network = first_network(args)
    for weight in network.trained_weights().values():
        weight.requires_grad_(True)
    average = MvsNetwork(network.config)
    average.load_state_dict(network.state_dict())
    trainer = StereoTrainer(
        network.train().to(device), average.to(device).requires_grad_(False), bank, args.settings
    )
    state = args.out / _STATE
    if state.exists():
        trainer.resume(state)
        say(f"goes on from step {trainer.step}, {trainer.seconds:.0f} s")
    return trainer


def save(args: Arguments, trainer: StereoTrainer, curve: Sequence[dict]) -> None:
    """Write weights, state and curve."""
    training = {
        "steps": trainer.step,
        "seconds": round(trainer.seconds, 1),
        "settings": asdict(args.settings),
        "seed": args.seed,
    }
    save_mvs(args.out / "weights", trainer.average, training)
    trainer.save(args.out / _STATE)
    content = {"machine": describe_machine(), "training": training, "curve": list(curve)}
    write_json(args.out / "curve.json", content)


def describe(line: StereoProgress, budget: float) -> str:
    """One line of progress with the time left."""
    figures = " ".join(f"{k} {v:.3f}" for k, v in line.figures.items())
    left = max(0.0, budget - line.seconds)
    return f"step {line.step} ({line.speed:.1f}/s) {figures} left {left:.0f} s"


def train(args: Arguments, trainer: StereoTrainer) -> None:
    """Train, save every minute and at the end."""
    path = args.out / "curve.json"
    curve = json.loads(path.read_text())["curve"] if path.exists() and trainer.step else []
    saved = time.monotonic()
    for line in trainer.run():
        curve.append(asdict(line))
        say(describe(line, args.settings.seconds))
        if time.monotonic() - saved > args.save_every:
            save(args, trainer, curve)
            saved = time.monotonic()
    save(args, trainer, curve)


def validation_cases(scene: PackedScene, args: Arguments) -> tuple[SparsePoints, list[DepthCase]]:
    """Inputs and held-out photos of a validation scene by gap."""
    assert scene.tracks is not None
    points = SparsePoints(xyz=scene.tracks.xyz, point=scene.tracks.point, frame=scene.tracks.frame)
    found = find_cases(
        pair_angles(scene.cameras, points),
        args.angles,
        num_views=args.num_views,
        max_held_out=args.max_held_out,
    )
    cases = {case.inputs: case for _, case in found}
    return points, list(cases.values())


def draw_panel(scene: Scene, maps: Sequence[DepthMaps]) -> torch.Tensor:
    """First photo, then inverse depth and confidence of each estimator."""
    inverse = [1 / m.depth[0] for m in maps]
    low, high = torch.quantile(inverse[-1], torch.tensor([0.02, 0.98], device=inverse[-1].device))
    shown = [((w - low) / (high - low)).clamp(0, 1) for w in inverse]
    pictures = [p for s, m in zip(shown, maps, strict=True) for p in (s, m.confidence[0])]
    return torch.cat([scene.images[0], *(p.expand(3, -1, -1) for p in pictures)], dim=2).cpu()


def measure_case(
    packed: PackedScene,
    case: DepthCase,
    points: SparsePoints,
    estimators: Mapping[str, PlaneSweep | LearnedStereo],
    device: torch.device,
) -> tuple[dict[str, DepthFigures], torch.Tensor | None]:
    """Figures of each estimator that found depth, and a strip of pictures."""
    size = (packed.cameras.height, packed.cameras.width)
    scene = packed.scene(case.inputs, *size).to(device)
    held = packed.scene(case.held_out, *size).to(device)
    figures, maps = {}, []
    for name, estimator in estimators.items():
        try:
            found, shown = measure_depth(estimator.estimate_depth, scene, held, case, points)
        except InputError as error:
            say(f"{packed.name} {case.gap_deg:.0f} degrees, {name}: {error}")
            continue
        figures[name] = found
        maps.append(shown)
        say(
            f"{packed.name} {case.gap_deg:.0f} degrees, {name}: right to 2 % "
            f"{100 * found.right_2:.1f} %, trusted {100 * found.trusted:.0f} %, of these "
            f"{100 * found.trusted_right_2:.1f} %, covered {100 * found.covered:.0f} % at "
            f"{found.psnr_covered:.2f} dB, filled {found.psnr_filled:.2f} dB"
        )
    return figures, draw_panel(scene, maps) if len(maps) == len(estimators) else None


def evaluate(args: Arguments, device: torch.device) -> None:
    """Measure the network, as it was saved, and others on the validation scenes."""
    learned = LearnedStereo(weights=args.out / "weights")
    estimators = {"plane-sweep": PlaneSweep()} if args.baseline else {}
    estimators |= {"mvs, shipped": LearnedStereo()} if args.shipped else {}
    estimators |= {"mvs": learned, "mvs, filled": replace(learned, fill=True)}
    figures: list[tuple[str, DepthFigures]] = []
    rows = []
    for packed in read_tracked(args.val, args.only_scenes):
        points, cases = validation_cases(packed, args)
        panels = []
        for case in cases:
            found, panel = measure_case(packed, case, points, estimators, device)
            figures += found.items()
            rows += [
                {"scene": packed.name, "inputs": case.inputs, "estimator": name, **asdict(f)}
                for name, f in found.items()
            ]
            if panel is not None:
                panels.append(panel)
        if panels:
            write_image(args.out / f"{packed.name}.jpg", torch.cat(panels, dim=1))
    write_json(args.out / "cases.json", rows)
    text = depth_table(figures) + "\n" + calibration_table(figures)
    with atomic_path(args.out / "table.md") as path:
        path.write_text(text, encoding="utf-8")
    print(text, flush=True)


def main(args: Arguments) -> None:
    """Measure depth, train, compare."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if args.average:
        mean = average_mvs([load_mvs(folder) for folder in args.average])
        parts = [read_mvs_card(folder).training for folder in args.average]
        save_mvs(args.out / "weights", mean, {"mean_of": parts})
    if args.measure_only or args.average:
        evaluate(args, device)
        return
    wanted = Preparation(
        pack=args.train,
        cache=args.cache or args.out / "truth",
        only_scenes=args.only_scenes,
        truth=args.truth,
        num_workers=args.num_workers,
        num_worlds=args.worlds,
        world_views=args.world_views,
        say=say,
    )
    scenes, worlds = prepare_training(wanted, device)
    bank = StereoBank(scenes, device, args.seed, worlds=worlds, world_share=args.world_share)
    trainer = make_trainer(args, bank, device)
    millions = sum(p.numel() for p in trainer.network.parameters()) / 1e6
    known = f"{len(bank.scenes)} scenes, {len(bank.worlds)} worlds"
    say(f"{known}, {millions:.2f} M parameters on {device}")
    train(args, trainer)
    say("trained; validation follows")
    evaluate(args, device)


if __name__ == "__main__":
    try:
        main(tyro.cli(Arguments, description=__doc__))
    except FvgenError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
