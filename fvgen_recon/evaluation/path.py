"""Camera paths between input views that lead through real held-out views."""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from fvgen_recon.errors import InputError
from fvgen_recon.geometry.rigid import normalise
from fvgen_recon.trajectory.pose import move_cameras, pose_distances, scene_unit
from fvgen_recon.types import Anchor, Cameras, Trajectory


@dataclass(frozen=True, kw_only=True, slots=True)
class HeldOutPath:
    """A trajectory between two inputs with the photos that some of its frames should equal."""

    trajectory: Trajectory
    """Its anchors are the first and the last frame."""
    frames: tuple[int, ...]
    """Frames that coincide with held-out views, ascending."""
    photos: tuple[int, ...]
    """The held-out view of each of these frames, as an index into the capture."""


def _choose_pairs(distance: Float[Tensor, "I H"]) -> list[tuple[int, int]]:
    """Return for each held-out view the two inputs with the shortest way through it."""
    pairs = []
    for column in distance.T:
        first, last = sorted(column.argsort()[:2].tolist())
        pairs.append((first, last))
    return pairs


def _slots(places: list[float], num_frames: int) -> list[int]:
    """Give each place in (0, 1), ascending, a frame of its own between the ends."""
    slots, count = [], len(places)
    for index, place in enumerate(places):
        earliest = slots[-1] + 1 if slots else 1
        latest = num_frames - 2 - (count - 1 - index)
        slots.append(min(max(earliest, round(place * (num_frames - 1))), latest))
    return slots


def _thin(items: list[int], count: int) -> list[int]:
    if len(items) <= count:
        return items
    return [items[i] for i in torch.linspace(0, len(items) - 1, count).round().long().tolist()]


def _cameras_through(known: Cameras, slots: list[int]) -> Cameras:
    """Cameras at the slots are exactly the known ones, those between move evenly."""
    c2w, K = [known.c2w[:1]], [known.K[:1]]
    for index in range(len(slots) - 1):
        count = slots[index + 1] - slots[index]
        share = torch.arange(1, count + 1, dtype=torch.float64) / count
        between = move_cameras(known[index], known[index + 1], share[:-1])
        c2w += [between.c2w, known.c2w[index + 1 : index + 2]]
        K += [between.K, known.K[index + 1 : index + 2]]
    return replace(known, c2w=torch.cat(c2w), K=torch.cat(K))


def plan_held_out(
    cameras: Cameras, inputs: tuple[int, ...], held_out: tuple[int, ...], num_frames: int
) -> tuple[HeldOutPath, ...]:
    """Plan clips that pass through held-out views.

    Each held-out view goes to the two inputs nearest to it; the views of a pair are ordered by
    their distances to both. More of them than there are frames between the ends are thinned.

    Args:
        cameras: All cameras of the scene.
        inputs: Indices of the input views; the anchors' views are places in this list.
        held_out: Indices of the views to pass through.
        num_frames: Length of each clip.

    Returns:
        The clips, those with the most held-out views first.

    Raises:
        InputError: There are fewer than two inputs, no held-out views or fewer than three frames.
    """
    if len(inputs) < 2 or not held_out or num_frames < 3:
        raise InputError(
            "Two input views, one held-out view and clips of three frames are the least: "
            f"{len(inputs)}, {len(held_out)} and {num_frames} came."
        )
    row = cameras[list(inputs)]
    distance = pose_distances(row, cameras[list(held_out)], unit=scene_unit(cameras))
    by_pair: dict[tuple[int, int], list[int]] = {}
    for index, pair in enumerate(_choose_pairs(distance)):
        by_pair.setdefault(pair, []).append(index)
    paths = []
    for (first, last), members in sorted(by_pair.items(), key=lambda item: -len(item[1])):
        share = distance[first] / (distance[first] + distance[last]).clamp_min(1e-12)
        shown = _thin(sorted(members, key=lambda i: float(share[i])), num_frames - 2)
        slots = _slots([float(share[i]) for i in shown], num_frames)
        photos = [held_out[i] for i in shown]
        known = cameras[[inputs[first], *photos, inputs[last]]]
        way = _cameras_through(known, [0, *slots, num_frames - 1])
        anchors = (Anchor(frame=0, view=first), Anchor(frame=num_frames - 1, view=last))
        trajectory = Trajectory(cameras=way, anchors=anchors)
        paths.append(HeldOutPath(trajectory=trajectory, frames=tuple(slots), photos=tuple(photos)))
    return tuple(paths)


def gap_angle(trajectory: Trajectory, depth: float) -> float:
    """Return the angle in degrees under which both ends see the point between their views.

    Args:
        trajectory: A path whose ends are the two views.
        depth: Typical z-depth of what they see, in world units.
    """
    ends = trajectory.cameras[[0, -1]]
    pivot = (ends.position + ends.direction * depth).mean(dim=0)
    towards = normalise(pivot - ends.position)
    return float(torch.rad2deg((towards[0] @ towards[1]).clamp(-1, 1).arccos()))
