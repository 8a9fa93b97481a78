"""Train the network that puts a splat's render and a generator's frame together.

Samples of whole scenes are held out to measure on; the weights that gained most on them are kept.
Run it again with the same --out to go on where it stopped.

Usage:
    python benchmarks/fusion_samples.py --data TRAIN --out samples
    python scripts/pack_scenes.py --features features.safetensors
    python scripts/train_fusion.py --samples samples --features features.safetensors --out fusion
"""

import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
import tyro

from fvgen_recon.distill.fusion.bank import FusionBank
from fvgen_recon.distill.fusion.training import FusionProgress, FusionSettings, FusionTrainer
from fvgen_recon.errors import FvgenError, InputError
from fvgen_recon.evaluation.feature import load_stlpips
from fvgen_recon.evaluation.fusion import (
    FusionFigures,
    gain_table,
    mean_gain,
    measure_examples,
)
from fvgen_recon.evaluation.machine import describe_machine
from fvgen_recon.fusion.checkpoint import load_fusion, save_fusion
from fvgen_recon.fusion.config import FusionConfig
from fvgen_recon.fusion.example import Example, choose_held_out, read_examples
from fvgen_recon.fusion.network import FusionNetwork
from fvgen_recon.io.file import atomic_path, read_json, write_json
from fvgen_recon.io.weights import Storage

_VGG_SLICES = 4


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Train the network that puts a splat's render and a generator's frame together."""

    samples: Path
    """Folder of samples (benchmarks/fusion_samples.py)."""
    out: Path
    """Folder for weights, state, curves and table."""
    features: Path | None = None
    """File of packed feature networks (scripts/pack_scenes.py): VGG is trained on, AlexNet judges.
    Without it the installed package's are taken, where there is one."""
    settings: FusionSettings = field(default_factory=FusionSettings)
    """How long and how it is trained."""
    network: FusionConfig = field(default_factory=FusionConfig)
    """Its shape."""
    init: Path | None = None
    """Folder of weights to start from."""
    num_held_out: int = 4
    """Scenes to measure on, chosen by a hash of their names."""
    held_out: tuple[str, ...] = ()
    """Scenes to measure on, by name instead."""
    measure_every: float = 20.0
    """Seconds of training between two looks at the scenes held out."""
    measure_views: int = 48
    """Views of a look; in the end all are measured."""
    storage: Storage = "bfloat16"
    """How weights are kept."""
    device: str = "cuda" if torch.cuda.is_available() else "cpu"
    """Where to train."""
    seed: int = 0
    """Of the first weights and of the cut-outs."""


_CHOSEN = (
    "Scenes that were not trained on. The weights are those that gained most on {count} of these "
    "views, so that what is learned looks a little better here than on scenes of which nothing was "
    "chosen.\n\n"
)
START = time.monotonic()


def say(text: str) -> None:
    """Print with the time since the start."""
    print(f"[{time.monotonic() - START:6.1f} s] {text}", flush=True)


@dataclass(frozen=True, kw_only=True, slots=True)
class Look:
    """What the averaged weights gained on the scenes held out."""

    step: int
    views: int
    gain: float
    """In dB over the plain rule."""


class Run:
    """A training with its samples, curves and best weights so far."""

    def __init__(self, args: Arguments) -> None:
        self.args, self.device = args, torch.device(args.device)
        examples = read_examples(args.samples)
        names = [example.scene for example in examples]
        self.held_out = check_names(names, args.held_out) or choose_held_out(
            names, args.num_held_out
        )
        train = [e for e in examples if e.scene not in self.held_out]
        self.scenes = sorted({e.scene for e in train})
        self.measured = [e for e in examples if e.scene in self.held_out]
        self.judge = None
        self.trainer = self._make_trainer(train)
        self.curve: list[FusionProgress] = []
        self.looks: list[Look] = []
        self._resume()
        say(
            f"{len(train)} views of {len(self.scenes)} scenes to train on, "
            f"{len(self.measured)} of {', '.join(self.held_out)} to measure on"
        )

    def _make_trainer(self, train: Sequence[Example]) -> FusionTrainer:
        args = self.args
        torch.manual_seed(args.seed)
        network = FusionNetwork(args.network)
        if args.init is not None:
            network = load_fusion(args.init).train().requires_grad_(True)
        perceptual = None
        if args.settings.perceptual_weight:
            perceptual = load_stlpips("vgg", num_slices=_VGG_SLICES, path=args.features)
            perceptual = perceptual.to(self.device)
            self.judge = load_stlpips("alex", path=args.features).to(self.device)
        bank = FusionBank(train, self.device, args.seed)
        return FusionTrainer(network.to(self.device), bank, args.settings, perceptual)

    def _resume(self) -> None:
        state = self.args.out / "state.safetensors"
        if not state.exists():
            return
        log = read_json(self.args.out / "curve.json")
        if sorted(log["held_out"]) != sorted(self.held_out):
            # Else scenes that it was trained on would be measured as if they were new.
            raise InputError(
                f"{self.args.out} was trained with {', '.join(log['held_out'])} held out, not "
                f"{', '.join(self.held_out)}: name the same scenes or give another --out."
            )
        self.trainer.resume(state)
        self.curve = [FusionProgress(**line) for line in log["curve"]]
        self.looks = [Look(**look) for look in log["looks"]]
        say(f"goes on from step {self.trainer.step}, {self.trainer.seconds:.0f} s")

    def train(self) -> None:
        """Train until the budget is spent; look at the scenes held out on the way."""
        seen = self.trainer.seconds
        for line in self.trainer.run():
            self.curve.append(line)
            say(describe(line, self.args.settings.seconds))
            if line.seconds - seen >= self.args.measure_every and self.trainer.share < 1:
                self.look(spread_out(self.measured, self.args.measure_views))
                seen = line.seconds
        self.finish()

    def look(self, views: Sequence[Example]) -> list[FusionFigures]:
        """Measure the averaged weights; keep them where none before gained more."""
        figures = measure_examples(self.trainer.average, views, self.device, self.judge)
        gain = mean_gain(figures)
        best = max((one.gain for one in self.looks), default=float("-inf"))
        self.looks.append(Look(step=self.trainer.step, views=len(views), gain=gain))
        say(f"gains {gain:+.3f} dB over the plain rule on {len(views)} views held out")
        if gain > best:
            self._keep(gain)
        self._save()
        return figures

    def _keep(self, gain: float) -> None:
        training = {
            "step": self.trainer.step,
            "seconds": round(self.trainer.seconds, 1),
            "views": len(self.trainer.bank),
            "scenes": self.scenes,
            "held_out": self.held_out,
            "gain": round(gain, 4),
            "settings": asdict(self.trainer.settings),
            "seed": self.args.seed,
        }
        folder = self.args.out / "weights"
        save_fusion(folder, self.trainer.average, training, self.args.storage)

    def _save(self) -> None:
        self.trainer.save(self.args.out / "state.safetensors")
        log = {
            "machine": describe_machine(),
            "held_out": self.held_out,
            "curve": [asdict(line) for line in self.curve],
            "looks": [asdict(look) for look in self.looks],
        }
        write_json(self.args.out / "curve.json", log)

    def finish(self) -> None:
        """Measure the weights that were kept on all views held out, as they are read back."""
        self.look(spread_out(self.measured, self.args.measure_views))
        network = load_fusion(self.args.out / "weights").to(self.device)
        figures = measure_examples(network, self.measured, self.device, self.judge)
        write_json(self.args.out / "views.json", [asdict(one) for one in figures])
        chosen_on = min(len(self.measured), self.args.measure_views)
        table = _CHOSEN.format(count=chosen_on) + gain_table(figures)
        with atomic_path(self.args.out / "table.md") as path:
            path.write_text(table, encoding="utf-8")
        print(table, flush=True)


def check_names(scenes: Sequence[str], named: Sequence[str]) -> tuple[str, ...]:
    """Return the scenes that were named to be held out.

    Raises:
        InputError: One has no samples, or none is left.
    """
    missing = sorted(set(named) - set(scenes))
    if missing:
        raise InputError(f"There are no samples of the scenes {', '.join(missing)}.")
    if named and set(named) == set(scenes):
        raise InputError("All scenes were named to be held out: none is left to train on.")
    return tuple(named)


def spread_out(views: Sequence[Example], count: int) -> list[Example]:
    """Return at most so many views, evenly over all."""
    if len(views) <= count:
        return list(views)
    places = torch.linspace(0, len(views) - 1, count).round().long()
    return [views[place] for place in places.tolist()]


def describe(line: FusionProgress, budget: float) -> str:
    """One line of progress with the time left."""
    return (
        f"step {line.step} ({line.speed:.1f}/s) squared error {line.error:.4f} of the plain rule's"
        f", distance {line.distance:.4f}, gradient {line.gradient:.2f}, "
        f"left {max(0.0, budget - line.seconds):.0f} s"
    )


def main(args: Arguments) -> None:
    """Read, train, measure."""
    run = Run(args)
    millions = sum(p.numel() for p in run.trainer.network.parameters()) / 1e6
    say(f"{millions:.2f} M parameters on {args.device}")
    run.train()


if __name__ == "__main__":
    try:
        main(tyro.cli(Arguments, description=__doc__))
    except FvgenError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
