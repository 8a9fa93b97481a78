"""Depth to train on, from more views than the network will see.

A plane sweep over a whole stretch of a capture measures many pixels well, since each has close
neighbours. Only what it trusts and what two further views confirm within one percent is kept;
sparse points from structure from motion are written over it.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch
from jaxtyping import Float
from safetensors.torch import load_file, save_file
from torch import Tensor

from fvgen_recon.distill.pack import PackedScene
from fvgen_recon.errors import InputError
from fvgen_recon.geometry.projection import project_points
from fvgen_recon.io.file import atomic_path
from fvgen_recon.pointcloud.consistency import compare_depth
from fvgen_recon.pointcloud.plane_sweep import PlaneSweep
from fvgen_recon.types import Cameras


@dataclass(frozen=True, kw_only=True, slots=True)
class TruthSettings:
    """How the depth to train on is found."""

    estimator: PlaneSweep = field(default_factory=PlaneSweep)
    stretch: int = 20
    """Views swept together."""
    overlap: int = 5
    """Views that two stretches share on each side; theirs are kept once."""
    min_confidence: float = 0.85
    """Confidence of the sweep from which a depth is kept."""
    tolerance: float = 0.01
    """Relative depth within which another view confirms."""
    min_share: float = 0.75
    """Sparse points are used where at least this share is within 5 % of the dense depth."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SceneTruth:
    """Known depth of all photos of a scene."""

    inverse_depth: Float[Tensor, "V H W"]
    """0 where it is not known."""
    dense_share: float
    """Share of the pixels that the sweep knows."""
    right_2: float
    """Share of the sparse points within 2 % of the sweep where both are known."""
    right_5: float
    """The same within 5 %."""


def sparse_depth(scene: PackedScene, frame: int) -> tuple[Float[Tensor, "Q 2"], Float[Tensor, "Q"]]:
    """Image points and depths of the sparse points that a photo was seen to hold."""
    assert scene.tracks is not None
    xyz = scene.tracks.xyz[scene.tracks.point[scene.tracks.frame == frame]]
    uv, z = project_points(xyz, scene.cameras[frame])
    limit = torch.tensor([scene.cameras.width, scene.cameras.height])
    inside = (z > 0) & ((uv >= 0) & (uv < limit)).all(dim=-1)
    return uv[inside], z[inside]


def _stretches(count: int, settings: TruthSettings) -> Iterator[tuple[range, range]]:
    """Ranges of views to sweep, and which of these to keep."""
    inner = settings.stretch - 2 * settings.overlap
    if count <= settings.stretch + inner // 2:
        yield range(count), range(count)
        return
    for start in range(0, count, inner):
        stop = min(start + inner, count)
        low = max(0, min(start - settings.overlap, count - settings.stretch))
        yield (
            range(low, min(count, max(stop + settings.overlap, settings.stretch))),
            range(start, stop),
        )


def _confirmed(
    depth: Tensor, confidence: Tensor, cameras: Cameras, settings: TruthSettings
) -> Tensor:
    found = compare_depth(1 / depth, cameras)
    close = found.seen & (found.error < 1) & (found.relative.abs() < settings.tolerance)
    wanted = 2 if len(cameras) >= 4 else 1
    return (close.sum(dim=1) >= wanted) & (confidence > settings.min_confidence)


@torch.no_grad()
def find_truth(scene: PackedScene, settings: TruthSettings, device: torch.device) -> SceneTruth:
    """Measure the depth of all photos of a scene at the size in which they are packed."""
    size = (scene.cameras.height, scene.cameras.width)
    known = torch.zeros(len(scene), *size)
    for views, kept in _stretches(len(scene), settings):
        photos = scene.scene(list(views), *size).to(device)
        try:
            maps = settings.estimator.estimate_depth(photos)
        except InputError:
            continue  # nothing in common: this stretch teaches nothing
        good = _confirmed(maps.depth, maps.confidence, photos.cameras, settings)
        inverse_depth = torch.where(good, 1 / maps.depth, 0.0).cpu()
        for view in kept:
            known[view] = inverse_depth[view - views.start]
    dense_share = float((known > 0).float().mean())
    right_2, right_5 = _write_sparse(scene, known, settings.min_share)
    return SceneTruth(
        inverse_depth=known, dense_share=dense_share, right_2=right_2, right_5=right_5
    )


def _write_sparse(scene: PackedScene, known: Tensor, min_share: float) -> tuple[float, float]:
    """Compare sparse points with the dense depth; write them over it where the two fit."""
    if scene.tracks is None:
        return float("nan"), float("nan")
    writes, errors = [], []
    for frame in range(len(scene)):
        uv, z = sparse_depth(scene, frame)
        column, row = uv.long().unbind(-1)
        dense = known[frame, row, column]
        errors.append((dense * z - 1).abs()[dense > 0])
        writes.append((row, column, 1 / z))
    error = torch.cat(errors)
    right_2, right_5 = (float((error < e).float().mean()) for e in (0.02, 0.05))
    if len(error) < 50 or right_5 >= min_share:
        for frame, (row, column, inverse) in enumerate(writes):
            known[frame, row, column] = inverse
    return right_2, right_5


def save_truth(path: Path, truth: SceneTruth) -> None:
    """Write the depth of a scene; it appears under its name only when complete."""
    figures = torch.tensor([truth.dense_share, truth.right_2, truth.right_5])
    with atomic_path(path) as target:
        save_file({"inverse_depth": truth.inverse_depth, "figures": figures}, target)


def load_truth(path: Path) -> SceneTruth:
    """Read what `save_truth` wrote."""
    content = load_file(path)
    dense_share, right_2, right_5 = content["figures"].tolist()
    return SceneTruth(
        inverse_depth=content["inverse_depth"],
        dense_share=dense_share,
        right_2=right_2,
        right_5=right_5,
    )
