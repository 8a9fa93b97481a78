"""Rounds of densification: what to generate, when, and what Gaussians come of it."""

from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from fvgen_recon.errors import InputError
from fvgen_recon.geometry.projection import unproject_depth
from fvgen_recon.types import Clip, PointCloud


@dataclass
class DensifySettings:
    """How views are generated. Flat, so that the `config.yml` of an old run can always be read."""

    rounds: tuple[float, ...] = (0.0,)
    """Progress of training, in [0, 1), at which a round of views is generated. In rounds after the
    first, renders of the current Gaussians condition the generator."""
    generator: str = "default"
    """Which generator fills the views (student, teacher, render, replay), `default`, or `none` to
    train on photos alone."""
    weights: Path | None = None
    """Folder of the generator's weights, or of the bank for `replay`."""
    num_steps: int | None = None
    """Network evaluations a clip; none means the generator's own number."""
    num_frames: int | None = None
    """Length of a clip; none means 16, or what a full-size model makes where it is another."""
    num_samples: int = 1
    """Samples of each clip; more than one measures how far they agree."""
    few_steps_below: float | None = None
    """Share of missing pixels below which a clip is made in 2 steps, where the generator would take
    more; none leaves all clips their steps."""
    calibrated: bool = False
    """Weigh generated pixels by confidence that was fitted to photos, instead of by levels."""
    planner: str = "even"
    """Camera paths between the input views (even, interpolate, support, file)."""
    camera_path: Path | None = None
    """For the planner `file`: a camera path from the viewer of a run with the same input views."""
    long_side: int = 512
    """Longer image side that points, renders and generator work at, in pixels."""
    seed: int = 0
    """Seed of the generator."""
    bank: Path | None = None
    """Folder of a finished bank to train from; nothing is generated then."""
    use_rounds: Literal["latest", "all"] = "latest"
    """Which rounds' frames are trained on."""
    add_points: bool = True
    """Whether Gaussians are added after a round where clips see trusted points and the splat does
    not."""
    gate_folds: int = 0
    """Number of input photos that are left out in turn to judge a round, which is dropped where it
    makes them worse; 0 keeps every round. Needs three inputs."""
    gate_steps: int = 300
    """Training steps of each of the gate's splats."""
    gate_long_side: int = 256
    """Longer image side that the gate works at, in pixels."""
    gate_points: int = 20_000
    """Most Gaussians that the gate's splats start from."""

    def takes_part(self) -> bool:
        """Return whether generated views are trained on at all."""
        return self.generator != "none" or self.bank is not None

    def active_rounds(self) -> tuple[float, ...]:
        """Return the rounds that are to be generated: none from a finished bank or with `none`."""
        return self.rounds if self.takes_part() and self.bank is None else ()


def check_rounds(rounds: tuple[float, ...]) -> None:
    """Raise an `InputError` where rounds are not rising fractions of the run."""
    rising = all(a < b for a, b in pairwise(rounds))
    if not rising or any(not 0 <= at < 1 for at in rounds):
        raise InputError(
            f"Rounds must be rising fractions of the run in [0, 1): {list(rounds)} came."
        )


def check_gate(settings: DensifySettings) -> None:
    """Raise an `InputError` where a round cannot be judged.

    The world of a splat follows from its input cameras, so that with a photo left out a user's
    camera path would lie elsewhere.
    """
    if settings.gate_folds > 0 and settings.planner == "file":
        raise InputError(
            "The gate cannot judge a camera path, which fits the world of all inputs alone: give "
            "no --pipeline.densify.gate-folds with the planner `file`."
        )


def due_round(rounds: tuple[float, ...], progress: float, num_done: int) -> int | None:
    """Return the latest round that should have run by now and has not, or none."""
    due = sum(at <= progress for at in rounds)
    return due - 1 if due > num_done else None


def lift_unseen(
    clip: Clip, alpha: Tensor, *, max_alpha: float = 0.3, min_weight: float = 0.5
) -> PointCloud:
    """Return trusted points of a clip where the current Gaussians show nothing.

    Args:
        clip: A generated clip whose guidance holds z-depth.
        alpha: Opacity `T 1 H W` of the current Gaussians in the clip's cameras.
        max_alpha: Opacity below which a pixel counts as unseen.
        min_weight: Confidence from which a pixel counts as trusted.
    """
    known = clip.guidance.mask & (clip.confidence >= min_weight)
    wanted = known & (alpha.to(known.device) < max_alpha) & (clip.guidance.depth > 0)
    points, _ = unproject_depth(clip.guidance.depth[:, 0], clip.cameras)
    chosen = wanted[:, 0]
    xyz = points[chosen].cpu()
    return PointCloud(
        xyz=xyz,
        rgb=clip.frames.permute(0, 2, 3, 1)[chosen].clamp(0, 1).cpu(),
        confidence=clip.confidence[:, 0][chosen].cpu(),
        view=torch.full((len(xyz),), -1, dtype=torch.long),
    )
