"""Which photos lie between which: clips of posed scenes whose frames have real targets."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import torch
from jaxtyping import Float
from torch import Tensor

from fvgen_recon.distill.pack import PackedScene
from fvgen_recon.errors import InputError
from fvgen_recon.geometry.rigid import normalise, rotation_angle
from fvgen_recon.types import Cameras

GAP_BINS_DEG = (15.0, 30.0)
"""Borders between narrow, middle and wide gaps."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PairLimits:
    """When two photos make a pair, and when a third lies between them."""

    min_gap_deg: float = 3.0
    """Smallest angle under which the pair sees its common pivot."""
    max_gap_deg: float = 42.0
    """Largest such angle."""
    max_turn_deg: float = 50.0
    """Largest rotation between the two cameras."""
    max_off_axis: float = 0.4
    """How far, in baselines, a camera between may be from the line between the two centres."""
    max_off_turn_deg: float = 20.0
    """How far its direction may be from the interpolated one."""
    min_targets: int = 2
    """Photos between that a pair must have."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Pair:
    """Two photos of a scene with those between them."""

    first: int
    last: int
    targets: tuple[int, ...]
    """Photos between, in order along the way."""
    places: tuple[float, ...]
    """Where the targets lie on the way, 0 at the first photo and 1 at the last."""
    gap_deg: float
    """Angle under which the two photos see their common pivot."""
    extras: tuple[int, ...]
    """Other photos of the same part, nearest first, usable as further inputs."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PathPlan:
    """A path between two inputs and the real photos that it should show."""

    pair: Pair
    ends: tuple[int, int]
    """Which inputs stand at its ends."""
    frames: tuple[int, ...]
    """Photo of each frame, ends included; -1 where there is none."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ClipPlan:
    """Input photos, and the paths between them on which they are tried."""

    scene: int
    """Index of the scene in its pack."""
    inputs: tuple[int, ...]
    """Photos that geometry may use; none of them is a target."""
    paths: tuple[PathPlan, ...]


def _angle_deg(a: Tensor, b: Tensor) -> Tensor:
    return torch.rad2deg((normalise(a) * normalise(b)).sum(-1).clamp(-1, 1).arccos())


def _pivot(cameras: Cameras, depth: Tensor) -> Tensor:
    return cameras.position + cameras.direction * depth[:, None]


def find_pair(
    scene: PackedScene, first: int, last: int, limits: PairLimits, inputs: tuple[int, ...] = ()
) -> Pair | None:
    """Return the pair with the photos between, or none where the limits do not hold.

    Photos among `inputs` are never targets.
    """
    cameras, depth = scene.cameras, scene.depth
    if float(depth[[first, last]].amin()) <= 0:
        return None
    ends = cameras[[first, last]]
    pivot = _pivot(ends, depth[[first, last]]).mean(0)
    to_pivot = pivot - cameras.position
    gap = float(_angle_deg(to_pivot[first], to_pivot[last]))
    turn = math.degrees(float(rotation_angle(ends.c2w[0, :3, :3], ends.c2w[1, :3, :3])))
    looks = _angle_deg(to_pivot, cameras.direction)
    fair = limits.min_gap_deg <= gap <= limits.max_gap_deg and turn <= limits.max_turn_deg
    if not fair or float(looks[[first, last]].amax()) > 30:
        return None
    axis = ends.position[1] - ends.position[0]
    offset = cameras.position - ends.position[0]
    place = (offset @ axis) / (axis @ axis).clamp_min(1e-12)
    off_axis = (offset - place[:, None] * axis).norm(dim=1) / axis.norm().clamp_min(1e-6)
    direction = torch.lerp(ends.direction[0], ends.direction[1], place.clamp(0, 1)[:, None])
    off_turn = _angle_deg(direction, cameras.direction)
    between = (place > 0.03) & (place < 0.97) & (off_axis < limits.max_off_axis)
    between &= off_turn < limits.max_off_turn_deg
    between[[first, last, *inputs]] = False
    targets = [i for i in place.argsort().tolist() if between[i]]
    if len(targets) < limits.min_targets:
        return None
    near = torch.minimum(
        _angle_deg(to_pivot, to_pivot[first]), _angle_deg(to_pivot, to_pivot[last])
    )
    useful = ~between & (near < 40) & (looks < 30) & (near > 1)
    useful[[first, last]] = False
    extras = [i for i in near.argsort().tolist() if useful[i]]
    return Pair(
        first=first,
        last=last,
        targets=tuple(targets),
        places=tuple(float(place[i]) for i in targets),
        gap_deg=gap,
        extras=tuple(extras[:8]),
    )


def find_pairs(scene: PackedScene, limits: PairLimits) -> list[Pair]:
    """Return all pairs of a scene."""
    found = (find_pair(scene, a, b, limits) for a, b in _likely_pairs(scene, limits))
    return [pair for pair in found if pair is not None]


def _likely_pairs(scene: PackedScene, limits: PairLimits) -> list[tuple[int, int]]:
    """Return the pairs within the limits of the two ends and of the line between them.

    One photo against all others at once: `find_pair` on every two photos takes seconds. What is
    decided here is decided there again, so the margins only have to be generous.
    """
    cameras, depth, slack = scene.cameras, scene.depth, 1e-2
    position, direction = cameras.position, cameras.direction
    own = _pivot(cameras, depth)
    likely = []
    for first in range(len(scene) - 1):
        others = torch.arange(first + 1, len(scene))
        others = others[(depth[others] > 0) & (depth[first] > 0)]
        pivot = (own[first] + own[others]) / 2
        to_first, to_last = pivot - position[first], pivot - position[others]
        gap = _angle_deg(to_first, to_last)
        looks = torch.maximum(
            _angle_deg(to_first, direction[first]), _angle_deg(to_last, direction[others])
        )
        rotation = cameras.c2w[:, :3, :3]
        turn = torch.rad2deg(
            rotation_angle(rotation[first].expand(len(others), 3, 3), rotation[others])
        )
        fair = (gap >= limits.min_gap_deg - slack) & (gap <= limits.max_gap_deg + slack)
        fair &= (turn <= limits.max_turn_deg + slack) & (looks <= 30 + slack)
        others = others[fair]
        axis = position[others] - position[first]
        offset = position - position[first]
        place = (axis @ offset.T) / (axis * axis).sum(-1, keepdim=True).clamp_min(1e-12)
        away = (offset - place[..., None] * axis[:, None]).norm(dim=-1)
        near = away < (limits.max_off_axis + slack) * axis.norm(dim=-1, keepdim=True)
        between = (near & (place > 0.02) & (place < 0.98)).sum(1) >= limits.min_targets
        likely += [(first, int(last)) for last in others[between]]
    return likely


def gap_bin(gap_deg: float) -> int:
    """Return 0, 1 or 2 for narrow, middle and wide gaps."""
    return sum(gap_deg > border for border in GAP_BINS_DEG)


def repeat_targets(pair: Pair, num_frames: int) -> tuple[int, ...]:
    """Photo of each frame when every frame must have one: targets evenly, repeated if few."""
    inner = num_frames - 2
    count = len(pair.targets)
    chosen = [pair.targets[round(i * (count - 1) / max(1, inner - 1))] for i in range(inner)]
    return (pair.first, *chosen, pair.last)


def place_targets(pair: Pair, num_frames: int) -> tuple[int, ...]:
    """Photo of each frame when each target is shown once, where it lies; -1 elsewhere."""
    frames = [pair.first] + [-1] * (num_frames - 2) + [pair.last]
    chosen = list(zip(pair.targets, pair.places, strict=True))
    if len(chosen) > num_frames - 2:
        step = (len(chosen) - 1) / (num_frames - 3)
        chosen = [chosen[round(i * step)] for i in range(num_frames - 2)]
    slot = 0
    for index, (target, place) in enumerate(chosen):
        last_free = num_frames - 2 - (len(chosen) - 1 - index)
        slot = min(max(slot + 1, round(place * (num_frames - 1))), last_free)
        frames[slot] = target
    return tuple(frames)


VIEW_SHARES = (0.25, 0.4, 0.25, 0.1)
"""Shares of training clips with 2, 3, 4 and 5 input photos."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PairPool:
    """All pairs of some scenes, ready to draw clips from."""

    scenes: tuple[PackedScene, ...]
    limits: PairLimits
    bins: tuple[tuple[list[Pair], list[Pair], list[Pair]], ...]
    """The pairs of each scene with narrow, middle and wide gaps."""

    def share(self, index: int, count: int) -> "PairPool":
        """Return every `count`-th scene, those with the most photos dealt out first."""
        order = sorted(range(len(self.scenes)), key=lambda i: -len(self.scenes[i]))[index::count]
        return PairPool(
            scenes=tuple(self.scenes[i] for i in order),
            limits=self.limits,
            bins=tuple(self.bins[i] for i in order),
        )

    def draw(self, count: int, num_frames: int, rng: torch.Generator) -> list[ClipPlan]:
        """Draw clips: gaps evenly over the bins, scenes by the square root of their pairs."""
        sizes = torch.tensor([[len(pool) for pool in bins] for bins in self.bins]).float()
        filled = torch.nonzero(sizes.sum(0))[:, 0].tolist()
        if not filled:
            raise InputError(
                "Training clips need photos that lie between two others of their scene; none of "
                f"these {len(self.scenes)} scenes has any: pack captures with more photos."
            )
        plans = []
        for _ in range(count):
            gap = filled[_draw(len(filled), rng)]
            owner = int(torch.multinomial(sizes[:, gap].sqrt(), 1, generator=rng))
            pool = self.bins[owner][gap]
            plans.append(self._plan(owner, pool[_draw(len(pool), rng)], num_frames, rng))
        return plans

    def draw_pairs(self, scene: int, count: int, rng: torch.Generator) -> list[Pair]:
        """Draw pairs of one scene, gaps evenly over its bins."""
        bins = [pool for pool in self.bins[scene] if pool]
        pools = [bins[_draw(len(bins), rng)] for _ in range(count)]
        return [pool[_draw(len(pool), rng)] for pool in pools]

    def _plan(self, owner: int, pair: Pair, num_frames: int, rng: torch.Generator) -> ClipPlan:
        inputs = draw_inputs(pair, rng)
        paths = _paths_between(self.scenes[owner], inputs, num_frames, self.limits)
        return ClipPlan(scene=owner, inputs=inputs, paths=paths)


def draw_inputs(pair: Pair, rng: torch.Generator) -> tuple[int, ...]:
    """Draw input photos: the pair, and up to three of the others around it."""
    num_extras = int(torch.multinomial(torch.tensor(VIEW_SHARES), 1, generator=rng))
    order = torch.randperm(len(pair.extras), generator=rng)[:num_extras].tolist()
    return (pair.first, pair.last, *(pair.extras[i] for i in order))


def pool_pairs(scenes: tuple[PackedScene, ...], limits: PairLimits) -> PairPool:
    """Find all pairs of some scenes."""
    bins = tuple(_by_gap(find_pairs(scene, limits)) for scene in scenes)
    return PairPool(scenes=scenes, limits=limits, bins=bins)


def _paths_between(
    scene: PackedScene, inputs: tuple[int, ...], num_frames: int, limits: PairLimits
) -> tuple[PathPlan, ...]:
    """All paths between two inputs with enough photos on the way that are not inputs."""
    paths = []
    for i, j in combinations(range(len(inputs)), 2):
        pair = find_pair(scene, inputs[i], inputs[j], limits, inputs)
        if pair is not None:
            frames = repeat_targets(pair, num_frames)
            paths.append(PathPlan(pair=pair, ends=(i, j), frames=frames))
    return tuple(paths)


def _draw(count: int, rng: torch.Generator) -> int:
    return int(torch.randint(count, (1,), generator=rng))


def _by_gap(pairs: list[Pair]) -> tuple[list[Pair], list[Pair], list[Pair]]:
    bins: tuple[list[Pair], list[Pair], list[Pair]] = ([], [], [])
    for pair in pairs:
        bins[gap_bin(pair.gap_deg)].append(pair)
    return bins


def evaluation_plans(
    scene: PackedScene, index: int, *, num_views: int, num_frames: int, clips: int, every: bool
) -> list[ClipPlan]:
    """Choose clips of one scene, the same every time: spread over gaps, few photos in common.

    Args:
        scene: The scene.
        index: Its index, for the plans.
        num_views: Input photos: the pair and the nearest others that are not targets.
        num_frames: Frames of a clip.
        clips: How many clips at most.
        every: Every frame has a photo (repeated where there are few); else each appears once.
    """
    limits = PairLimits(min_targets=1)
    pairs = sorted(find_pairs(scene, limits), key=lambda p: p.gap_deg)
    bins = [b for b in _by_gap(pairs) if b]
    chosen: list[Pair] = []
    used = [0] * len(scene)
    while len(chosen) < clips and any(bins):
        for pool in bins:
            if pool and len(chosen) < clips:
                best = min(pool, key=lambda p: _wear(p, used))
                pool.remove(best)
                chosen.append(best)
                for photo in (best.first, best.last, *best.targets):
                    used[photo] += 1
    layout = repeat_targets if every else place_targets
    return [
        ClipPlan(
            scene=index,
            inputs=(pair.first, pair.last, *pair.extras[: num_views - 2]),
            paths=(PathPlan(pair=pair, ends=(0, 1), frames=layout(pair, num_frames)),),
        )
        for pair in sorted(chosen, key=lambda p: p.gap_deg)
    ]


def validation_plans(
    scenes: Sequence[PackedScene], *, num_views: int, num_frames: int, clips: int
) -> list[ClipPlan]:
    """Choose the clips of all scenes, each frame with a real photo; see `evaluation_plans`."""
    options = {"num_views": num_views, "num_frames": num_frames, "clips": clips}
    return [
        plan
        for index, scene in enumerate(scenes)
        for plan in evaluation_plans(scene, index, **options, every=True)
    ]


def _wear(pair: Pair, used: list[int]) -> float:
    photos = (pair.first, pair.last, *pair.targets)
    return sum(used[p] for p in photos) / len(photos) - 0.05 * min(len(pair.targets), 6)


def path_cameras(cameras: Cameras, frames: tuple[int, ...]) -> Cameras:
    """Cameras of a clip: those of the photos, interpolated in between where there is none."""
    known = [i for i, photo in enumerate(frames) if photo >= 0]
    poses = []
    for i in range(len(frames)):
        before = max(k for k in known if k <= i)
        after = min(k for k in known if k >= i)
        share = 0.0 if after == before else (i - before) / (after - before)
        poses.append(
            interpolate_pose(cameras.c2w[frames[before]], cameras.c2w[frames[after]], share)
        )
    intrinsics = cameras.K[[frames[max(k for k in known if k <= i)] for i in range(len(frames))]]
    return Cameras(c2w=torch.stack(poses), K=intrinsics, height=cameras.height, width=cameras.width)


def interpolate_pose(
    first: Float[Tensor, "4 4"], last: Float[Tensor, "4 4"], share: float
) -> Float[Tensor, "4 4"]:
    """Pose on the way: centres on the line, rotations on the great circle."""
    turn = first[:3, :3].T @ last[:3, :3]
    angle = rotation_angle(torch.eye(3, dtype=turn.dtype), turn)
    skew = (turn - turn.T) / (2 * torch.sin(angle).clamp_min(1e-6))
    pose = first.clone()
    pose[:3, :3] = first[:3, :3] @ torch.linalg.matrix_exp(skew * angle * share)
    pose[:3, 3] = torch.lerp(first[:3, 3], last[:3, 3], share)
    return pose
