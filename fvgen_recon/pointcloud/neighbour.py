"""Which views help to find the depth of which."""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor

from fvgen_recon.errors import InputError
from fvgen_recon.geometry.rigid import normalise
from fvgen_recon.pointcloud.sweep import inside_image, project_inverse_depth, relate_views
from fvgen_recon.types import Cameras

_PROBE = 12  # overlap is counted on a grid of this many pixels a side
_BEST_ANGLE, _NARROW, _WIDE = 8.0, 5.0, 15.0  # degrees


def other_views(num_views: int, like: Tensor) -> Int[Tensor, "V V-1"]:
    """Return, for each view, the indices of all the other views."""
    index = torch.arange(num_views, device=like.device)
    return torch.stack([index[index != v] for v in range(num_views)])


def require_baseline(cameras: Cameras) -> Float[Tensor, "V V"]:
    """Return the distances between camera centres.

    Raises:
        InputError: There are fewer than two views, or all were taken from one place.
    """
    if len(cameras) < 2:
        raise InputError(
            "Depth from stereo needs at least two views: one came; choose more input views."
        )
    distance = torch.cdist(cameras.position.double(), cameras.position.double())
    scale = cameras.position.abs().amax().double()
    if float(distance.amax()) <= 1e-6 * float(scale) + 1e-12:
        raise InputError(
            "Depth from stereo needs views from different places: all cameras stand at one point."
        )
    return distance.to(cameras.c2w.dtype)


def view_overlap(cameras: Cameras, inverse_depth: Float[Tensor, "V Q"]) -> Float[Tensor, "V V-1 Q"]:
    """Fraction of each view's pixels that the other views see, at each of Q inverse depths."""
    coarse = cameras.resize(_PROBE, _PROBE)
    size = (_PROBE, _PROBE)
    pairs = relate_views(coarse, other_views(len(cameras), cameras.K))
    uv, z = project_inverse_depth(pairs, inverse_depth[..., None, None], size)
    return inside_image(uv, z, size).to(uv.dtype).mean(dim=(-2, -1))


def viewing_angle(cameras: Cameras, inverse_depth: Float[Tensor, "V"]) -> Float[Tensor, "V V-1"]:
    """Angle in degrees at the centre point of each view's image between it and other views."""
    point = cameras.position + cameras.direction / inverse_depth[:, None]
    others = cameras.position[other_views(len(cameras), cameras.K)]
    first, second = normalise(cameras.position - point), normalise(others - point[:, None])
    return torch.rad2deg(torch.arccos((first[:, None] * second).sum(-1).clamp(-1, 1)))


def first_sources(
    cameras: Cameras, distance: Float[Tensor, "V V"], count: int
) -> tuple[Int[Tensor, "V S"], Float[Tensor, "V"]]:
    """Choose source views from the cameras alone, before any depth is known.

    Returns:
        The source views (nearest first) and, for each view, the baseline to the nearest of them.

    Raises:
        InputError: No two views can see a common point.
    """
    others = other_views(len(cameras), cameras.K)
    baseline = distance.gather(1, others)
    usable = baseline > 1e-3 * distance.amax()
    shortest = baseline.masked_fill(~usable, math.inf).amin(dim=1)
    ladder = torch.logspace(math.log10(0.03), math.log10(1.5), 7).to(baseline)
    overlap = view_overlap(cameras, ladder / shortest[:, None]).amax(dim=-1)
    if not bool(((overlap > 0.1) & usable).any()):
        raise InputError(
            "The input views do not overlap: no point in front of one camera is in the picture of "
            "another; choose views that look at the same things."
        )
    facing = cameras.direction @ cameras.direction.mT
    penalty = 1 + 2 * (1 - facing.gather(1, others))
    cost = baseline / shortest[:, None] * penalty / overlap.clamp_min(1e-3)
    order = cost.masked_fill(~usable, math.inf).argsort(dim=1, stable=True)[:, :count]
    return others.gather(1, order), shortest


def best_sources(
    cameras: Cameras, inverse_depth: Float[Tensor, "V Q"], count: int
) -> Int[Tensor, "V S"]:
    """Choose source views by overlap and viewing angle at depths that the scene really has.

    Angles of some eight degrees serve best: smaller ones measure depth badly, larger ones change
    how surfaces look (the score of Yao et al., "MVSNet", ECCV 2018, section 4.1, at one point).
    """
    overlap = view_overlap(cameras, inverse_depth).mean(dim=-1)
    angle = viewing_angle(cameras, inverse_depth.median(dim=1).values)
    width = torch.where(angle < _BEST_ANGLE, _NARROW, _WIDE)
    score = (overlap + 1e-3) * torch.exp(-((angle - _BEST_ANGLE) / width).square() / 2)
    order = score.argsort(dim=1, descending=True, stable=True)[:, :count]
    return other_views(len(cameras), cameras.K).gather(1, order)
