"""Show how true the claims of stereo are, and what a new fit of the sweep's confidence would claim.

Three photos are chosen evenly spread, spread as far as can be, and by arcs. A depth is right where
it is within 3 % of a structure-from-motion point. The sweep's confidence is fitted again, with and
without knowing how much of the whole photo the others show; each scene is judged by weights that
were fitted without it. The last line printed holds the weights of all scenes.

Usage:
    python scripts/calibrate_sweep.py --scenes TRAIN --out outputs/sweep
"""

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro
from jaxtyping import Float
from torch import Tensor

from fvgen_recon.errors import FvgenError, InputError
from fvgen_recon.evaluation.depth import find_cases, pair_angles, sparse_points
from fvgen_recon.evaluation.suite import small_folder_split
from fvgen_recon.geometry.projection import project_points
from fvgen_recon.io.file import atomic_path
from fvgen_recon.io.scenes import (
    Capture,
    ViewSelection,
    load_capture,
    load_scene,
    posed_scenes,
    select_views,
)
from fvgen_recon.pointcloud.confidence import Evidence, estimate_confidence
from fvgen_recon.pointcloud.mvs.estimator import LearnedStereo
from fvgen_recon.pointcloud.plane_sweep import PlaneSweep
from fvgen_recon.types import Scene

_RIGHT, _FAR_OFF = 0.03, 0.1
_SHARES = ((0.0, 0.1), (0.0, 0.2), (0.2, 0.4), (0.4, 1.01))
_FEWEST = 20
_NEWTON_STEPS = 20
_PENALTY = 1e-4


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Judge the confidence of stereo, and fit the plane sweep's again."""

    scenes: Path
    """Folder of scene folders with tracks."""
    out: Path
    """Folder for table.md."""
    long_sides: tuple[int, ...] = (160, 256)
    """Longer sides of the photos in pixels; at most the estimators' working size."""
    views: int = 3
    """Input photos."""
    angles: tuple[float, ...] = (20.0,)
    """Wanted angles between neighbours on arcs, in degrees; one choice of photos for each."""
    points: int = 400
    """Most structure-from-motion points of a photo."""
    folds: int = 7
    """Parts of the scenes; each is judged by weights fitted to the others."""
    seed: int = 0
    """Of the points that are drawn and of the parts of the scenes."""


@dataclass(frozen=True, kw_only=True)
class Photo:
    """What is found at the structure-from-motion points of one photo."""

    scene: str
    share: float
    """Share of its pixels that the sweep trusts."""
    evidence: Float[Tensor, "Q F"]
    """Last of it comes how much of the whole photo the others show."""
    sweep: Float[Tensor, "Q"]
    """Confidence of the sweep."""
    error: Float[Tensor, "Q"]
    """Relative error of the sweep's depth."""
    network: Float[Tensor, "Q"]
    """Confidence of the network."""
    network_error: Float[Tensor, "Q"]


def choose_inputs(folder: Path, capture: Capture, args: Arguments) -> list[tuple[int, ...]]:
    """Return the choices of input photos of a scene, each once."""
    points = sparse_points(capture, folder)
    usable = [capture.has_photo(i) for i in range(len(capture))]
    angles = pair_angles(capture.cameras, points, usable)
    arcs = find_cases(angles, args.angles, num_views=args.views, max_held_out=1)
    chosen = [
        small_folder_split(folder.name, capture, args.views).inputs,
        select_views(capture, ViewSelection(count=args.views)).inputs,
        *(case.inputs for _, case in arcs),
    ]
    return list(dict.fromkeys(chosen))


def stack_with_photo(evidence: Evidence) -> Float[Tensor, "V H W F"]:
    """Add to each pixel's evidence how well the whole photo agrees with the others.

    Where they show little of it, what seems to match is more often there by chance.
    """
    shared = evidence.agreement.mean(dim=(1, 2), keepdim=True)
    return torch.cat([evidence.stack(), shared.expand_as(evidence.agreement)[..., None]], dim=-1)


def measure(
    name: str, scene: Scene, frames: Sequence[int], capture: Capture, args: Arguments
) -> Iterator[Photo]:
    """Run both estimators and look at each photo's structure-from-motion points."""
    assert capture.points is not None
    assert capture.tracks is not None
    inverse_depth, evidence = PlaneSweep().find_evidence(scene)
    stacked, confidence = stack_with_photo(evidence), estimate_confidence(evidence)
    network = LearnedStereo(fill=False).estimate_depth(scene)
    rng = torch.Generator().manual_seed(args.seed)
    limit = torch.tensor([scene.cameras.width, scene.cameras.height])
    for view, frame in enumerate(frames):
        xyz = capture.points.xyz[capture.tracks.point[capture.tracks.frame == frame]]
        uv, z = project_points(xyz, scene.cameras[view])
        inside = torch.nonzero((z > 0) & ((uv >= 0) & (uv < limit)).all(-1))[:, 0]
        if len(inside) < _FEWEST:
            continue
        inside = inside[torch.randperm(len(inside), generator=rng)[: args.points]]
        column, row = uv[inside].long().unbind(-1)
        at = (view, row, column)
        yield Photo(
            scene=name,
            share=float((confidence[view] >= 0.5).float().mean()),
            evidence=stacked[at],
            sweep=confidence[at],
            error=(1 / inverse_depth[at] / z[inside] - 1).abs(),
            network=network.confidence[at],
            network_error=(network.depth[at] / z[inside] - 1).abs(),
        )


def measure_scenes(args: Arguments) -> list[Photo]:
    """Measure all choices of photos of all scenes."""
    photos: list[Photo] = []
    for folder in posed_scenes(args.scenes):
        capture = load_capture(folder)
        for frames in choose_inputs(folder, capture, args):
            first = capture.cameras[frames[0]]
            for side in args.long_sides:
                scale = side / max(first.height, first.width)
                size = {"height": round(first.height * scale), "width": round(first.width * scale)}
                try:
                    scene = load_scene(capture, frames, **size)
                    photos += measure(folder.name, scene, frames, capture, args)
                except InputError as error:
                    print(f"{folder.name} {frames}: {error}", flush=True)
        print(f"{folder.name}: {len(photos)} photos so far", flush=True)
    if not photos:
        raise InputError(f"No photo with structure-from-motion points was found in {args.scenes}.")
    return photos


def fit(photos: Sequence[Photo], features: int) -> Float[Tensor, "F+1"]:
    """Fit weights of the first so many pieces of evidence, then the bias.

    Minimises the cross-entropy by Newton's method; every photo counts the same.
    """
    x = torch.cat([with_one(p.evidence[:, :features]) for p in photos]).double()
    y = torch.cat([p.error < _RIGHT for p in photos]).double()
    share = torch.cat([torch.full_like(p.error, 1 / len(p.error)) for p in photos]).double()
    share /= share.sum()
    ridge = torch.full((x.shape[1],), _PENALTY, dtype=x.dtype)
    ridge[-1] = 0
    found = torch.zeros_like(ridge)
    for _ in range(_NEWTON_STEPS):
        p = torch.sigmoid(x @ found)
        gradient = x.mT @ (share * (p - y)) + ridge * found
        hessian = (x.mT * (share * p * (1 - p))) @ x + torch.diag(ridge + 1e-9)
        found = found - torch.linalg.solve(hessian, gradient)
    return found.float()


def with_one(evidence: Float[Tensor, "Q F"]) -> Float[Tensor, "Q F+1"]:
    """Add a column of ones, which the bias weighs."""
    return torch.cat([evidence, torch.ones_like(evidence[:, :1])], dim=1)


def judge_across(photos: Sequence[Photo], features: int, args: Arguments) -> list[Tensor]:
    """Return each photo's confidence by weights that were fitted without its scene."""
    names = sorted({p.scene for p in photos})
    order = torch.randperm(len(names), generator=torch.Generator().manual_seed(args.seed)).tolist()
    fold = {names[place]: i % args.folds for i, place in enumerate(order)}
    fitted = [fit([p for p in photos if fold[p.scene] != k], features) for k in range(args.folds)]
    return [
        torch.sigmoid(with_one(photo.evidence[:, :features]) @ fitted[fold[photo.scene]])
        for photo in photos
    ]


Claim = Callable[[int], tuple[Tensor, Tensor]]
"""Gives confidence and relative error at the points of a photo by its index."""


def chosen_of(network: Claim, sweep: Claim) -> Claim:
    """Return the network's claim, and the sweep's where that is trusted and surer."""

    def claim(index: int) -> tuple[Tensor, Tensor]:
        (one, error), (other, other_error) = network(index), sweep(index)
        is_swept = (other >= 0.5) & (other > one)
        return torch.where(is_swept, other, one), torch.where(is_swept, other_error, error)

    return claim


def collect_claims(photos: Sequence[Photo], args: Arguments) -> dict[str, Claim]:
    """Return what is compared, by name."""
    full = photos[0].evidence.shape[1]
    refit, with_photo = (judge_across(photos, count, args) for count in (full - 1, full))
    claims: dict[str, Claim] = {
        "mvs": lambda i: (photos[i].network, photos[i].network_error),
        "plane-sweep": lambda i: (photos[i].sweep, photos[i].error),
        "plane-sweep, fitted again": lambda i: (refit[i], photos[i].error),
        "plane-sweep, whole photo": lambda i: (with_photo[i], photos[i].error),
    }
    claims["stereo"] = chosen_of(claims["mvs"], claims["plane-sweep"])
    claims["stereo, whole photo"] = chosen_of(claims["mvs"], claims["plane-sweep, whole photo"])
    return claims


def describe(name: str, claim: Claim, chosen: Sequence[int]) -> str:
    """Return a row of the table; every photo counts the same."""
    found = [claim(index) for index in chosen]
    confidence, error = (torch.cat(parts) for parts in zip(*found, strict=True))
    weight = torch.cat([torch.full_like(c, 1 / len(c)) for c, _ in found])
    right, trusted = (error < _RIGHT).to(weight), (confidence >= 0.5).to(weight)
    sure = confidence.clamp(1e-4, 1 - 1e-4)
    loss = -(right * sure.log() + (1 - right) * (1 - sure).log())

    def mean(values: Tensor, mask: Tensor) -> float:
        return float((weight * mask * values).sum() / (weight * mask).sum().clamp_min(1e-9))

    every = torch.ones_like(weight)
    shares = [mean(values, every) for values in (confidence, right, trusted)]
    far_off = (error > _FAR_OFF).to(weight)
    shares += [mean(values, trusted) for values in (confidence, right, far_off)]
    cells = " | ".join(f"{100 * value:.0f} %" for value in shares)
    return f"| {name} | {len(chosen)} | {mean(loss, every):.3f} | {cells} |"


def draw_table(photos: Sequence[Photo], args: Arguments) -> str:
    """Return claimed and true shares by how much of a photo the sweep trusts."""
    head = (
        "| claim | photos | loss | claimed | right | trusted | claimed there | right there "
        "| off by a tenth there |"
    )
    lines = []
    claims = collect_claims(photos, args)
    for low, high in ((0.0, 1.01), *_SHARES):
        chosen = [i for i, photo in enumerate(photos) if low <= photo.share < high]
        if not chosen:
            continue
        lines += [f"\nShare of the photo trusted: {low:.1f} to {min(high, 1.0):.1f}\n", head]
        lines += ["|---|---|---|---|---|---|---|---|---|"]
        lines += [describe(name, claim, chosen) for name, claim in claims.items()]
    return "\n".join(lines) + "\n"


@torch.no_grad()
def main(args: Arguments) -> None:
    """Measure, fit, judge."""
    photos = measure_scenes(args)
    table = draw_table(photos, args)
    words = ", ".join(f"{value:.2f}" for value in fit(photos, photos[0].evidence.shape[1]).tolist())
    table += f"\nWeights, the bias last: {words}\n"
    args.out.mkdir(parents=True, exist_ok=True)
    with atomic_path(args.out / "table.md") as path:
        path.write_text(table, encoding="utf-8")
    print(table)


if __name__ == "__main__":
    try:
        main(tyro.cli(Arguments, description=__doc__))
    except FvgenError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
