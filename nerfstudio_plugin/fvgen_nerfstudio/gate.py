"""The gate: a round of generated views is kept only where it helps with photos left out.

Some inputs are left out in turn. From the others alone the points are estimated, the round is
generated and two short splats are trained, one on photos alone, one with the generated views. What
counts is how well each shows the photo that was left out.
"""

import copy
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from fvgen_nerfstudio.camera import to_nerfstudio
from fvgen_nerfstudio.datamanager import FvgenDatamanagerConfig
from fvgen_nerfstudio.generation import make_config, run_round
from fvgen_nerfstudio.pipeline import FvgenPipeline, FvgenPipelineConfig
from fvgen_nerfstudio.refinement import RefineSettings
from fvgen_nerfstudio.stretch import stretch_model
from fvgen_recon.densify.bank import Bank
from fvgen_recon.evaluation.metric import psnr

_MIN_INPUTS = 3
"""Leaving one view out must leave two."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FoldScore:
    """What one photo that was left out says."""

    view: str
    """Name of the photo."""
    real: float
    """PSNR in dB of the splat of photos alone."""
    mixed: float
    """PSNR in dB of the splat that saw generated views too."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """What all photos that were left out say."""

    folds: tuple[FoldScore, ...]
    """One score for each."""

    @property
    def gain(self) -> float:
        """Mean gain of the generated views in dB; 0 where no photo could be left out."""
        return fmean(fold.mixed - fold.real for fold in self.folds) if self.folds else 0.0

    @property
    def keeps(self) -> bool:
        """Whether the round may be trained on: it must not make the left-out photos worse."""
        return self.gain >= 0


@dataclass(frozen=True, kw_only=True)
class Judge:
    """Trains with photos left out."""

    config: FvgenPipelineConfig
    """Configuration of the run that is judged."""
    optimizers: dict[str, Any]
    """The trainer's optimizers: their learning rates are used."""
    num_steps: int
    """Length of the run that the model's step numbers are meant for."""
    names: Sequence[str]
    """Names of the input photos, in order."""
    device: str
    """Where to train."""

    def judge(self, index: int, folder: Path) -> Verdict:
        """Return what the left-out photos say of a round.

        Args:
            index: Number of the round.
            folder: Where the generated frames of the folds are kept, so that a repeated call does
                not generate them again.
        """
        with _kept_randomness():
            return Verdict(
                folds=tuple(
                    self._judge_fold(place, index, folder / f"without_{place:03d}")
                    for place in left_out(len(self.names), self.config.densify.gate_folds)
                )
            )

    def _judge_fold(self, place: int, index: int, folder: Path) -> FoldScore:
        settings = self.config.densify
        fold = self._open(place)
        real = self._train_and_score(fold, place)
        bank, data = Bank(folder), fold.datamanager
        estimator = data.config.dataparser.estimator
        front = make_config(settings, estimator, self.device)
        run_round(front, data.scene, data.dataparser.points, bank, index, fold.model)
        fold = self._open(place)
        fold.datamanager.use_bank(bank, settings.use_rounds)
        mixed = self._train_and_score(fold, place)
        return FoldScore(view=self.names[place], real=real, mixed=mixed)

    def _open(self, place: int) -> FvgenPipeline:
        """Return an untrained pipeline that knows all inputs but one."""
        settings = self.config.densify
        config = copy.deepcopy(self.config)
        data = config.datamanager
        assert isinstance(data, FvgenDatamanagerConfig), "The pipeline draws from a bank."
        kept = tuple(name for i, name in enumerate(self.names) if i != place)
        sources = data.dataparser.sources(len(self.names))  # As many members as in the run itself.
        data.dataparser = replace(
            data.dataparser,
            views=None,
            split_file=None,
            view_names=kept,
            ensemble=sources,
            ensemble_views=len(kept),
            long_side=_smaller(data.dataparser.long_side, settings.gate_long_side),
            num_points=min(data.dataparser.num_points, settings.gate_points),
        )
        config.densify = replace(settings, generator="none", bank=None)
        config.refine = RefineSettings()  # A frame in every render would hide what training did.
        stretch_model(config.model, settings.gate_steps / self.num_steps)
        torch.manual_seed(place)
        return config.setup(device=self.device)

    def _train_and_score(self, fold: FvgenPipeline, place: int) -> float:
        """Train a fold and return the PSNR of the photo that it does not know."""
        train_briefly(fold, self.optimizers, self.config.densify.gate_steps)
        source = fold.datamanager.dataparser.source
        view = source.capture.names.index(self.names[place])
        camera = to_nerfstudio(source.cameras((view,))).to(self.device)
        fold.eval()
        image = fold.model.get_outputs_for_camera(camera)["rgb"].permute(2, 0, 1)
        return float(psnr(image[None].cpu(), source.image(view)[None]))


def _smaller(long_side: int, limit: int) -> int:
    """Return the smaller image side; 0 means the photos' own."""
    return min(long_side, limit) if long_side > 0 else limit


def left_out(num_views: int, num_folds: int) -> tuple[int, ...]:
    """Choose which inputs are left out in turn, spread over their order; the ends come last."""
    if num_views < _MIN_INPUTS:
        return ()
    inner, count = num_views - 2, min(num_folds, num_views)
    if count > inner:
        ends = (0, num_views - 1)[: count - inner]
        return tuple(sorted({*range(1, num_views - 1), *ends}))
    return tuple(1 + int((k + 0.5) * inner / count) for k in range(count))


def train_briefly(pipeline: FvgenPipeline, optimizers: dict[str, Any], num_steps: int) -> None:
    """Train a splat without a trainer: constant learning rates, nothing is written."""
    model, data = pipeline.model, pipeline.datamanager
    model.num_steps = data.num_steps = num_steps
    groups = model.get_gaussian_param_groups()
    model.optimizers = {
        name: optimizers[name]["optimizer"].setup(params=params) for name, params in groups.items()
    }
    model.train()
    for step in range(num_steps):
        model.step = step
        camera, batch = data.next_train(step)
        losses = model.get_loss_dict(model.get_outputs(camera), batch)
        torch.stack(list(losses.values())).sum().backward()
        for optimizer in model.optimizers.values():
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        model.step_post_backward(step)


@contextmanager
def _kept_randomness() -> Iterator[None]:
    """Leave the random numbers of the run as if nothing had been drawn."""
    state = random.getstate()
    devices = range(torch.cuda.device_count()) if torch.cuda.is_available() else ()
    try:
        with torch.random.fork_rng(devices):
            yield
    finally:
        random.setstate(state)
