"""In which order a path visits the input views."""

import itertools

import numpy as np

from fvgen_recon.trajectory.pose import pose_distances, scene_unit
from fvgen_recon.types import Cameras

MAX_EXACT = 12
"""Number of views up to which the order is the best one, by dynamic programming."""


def visit_order(cameras: Cameras) -> tuple[int, ...]:
    """Return the order of views along the shortest open path over pose distance.

    The distance of two poses is their distance in units of the scene's median distance plus their
    angle in radians. Up to `MAX_EXACT` views the path is the shortest; above, it is the best of
    nearest-neighbour paths from every view, improved until no reversal or move of a stretch
    shortens it. The end with the smaller index comes first.
    """
    distance = pose_distances(cameras, cameras, unit=scene_unit(cameras)).cpu().numpy()
    order = _shortest_exact(distance) if len(cameras) <= MAX_EXACT else _shortest_near(distance)
    return tuple(order) if order[0] <= order[-1] else tuple(reversed(order))


def path_length(distance: np.ndarray, order: list[int]) -> float:
    """Return the length of an open path."""
    return float(distance[order[:-1], order[1:]].sum())


def _shortest_exact(distance: np.ndarray) -> list[int]:
    """Held and Karp's dynamic programme over (set of visited views, last view)."""
    num_views = len(distance)
    cost = np.full((1 << num_views, num_views), np.inf)
    previous = np.full((1 << num_views, num_views), -1, dtype=np.int64)
    cost[1 << np.arange(num_views), np.arange(num_views)] = 0.0
    for visited in range(1, 1 << num_views):
        last = [i for i in range(num_views) if visited >> i & 1]
        for new in range(num_views):
            if visited >> new & 1:
                continue
            lengths = cost[visited, last] + distance[last, new]
            best = int(lengths.argmin())
            cost[visited | 1 << new, new] = lengths[best]
            previous[visited | 1 << new, new] = last[best]
    visited, view = (1 << num_views) - 1, int(cost[-1].argmin())
    order = []
    while view >= 0:
        order.append(view)
        visited, view = visited & ~(1 << view), int(previous[visited, view])
    return order


def _shortest_near(distance: np.ndarray) -> list[int]:
    """Return the best of improved nearest-neighbour paths."""
    starts = range(len(distance))
    paths = (_improve(distance, _nearest_neighbours(distance, start)) for start in starts)
    return min(paths, key=lambda order: path_length(distance, order))


def _nearest_neighbours(distance: np.ndarray, start: int) -> list[int]:
    """Walk to the nearest view that has not been visited."""
    order, left = [start], set(range(len(distance))) - {start}
    while left:
        order.append(min(left, key=lambda view: (distance[order[-1], view], view)))
        left.remove(order[-1])
    return order


def _improve(distance: np.ndarray, order: list[int]) -> list[int]:
    """Reverse stretches of an open path (2-opt) while that shortens it."""
    length = path_length(distance, order)
    improved = True
    while improved:
        improved = False
        for i, j in itertools.combinations(range(len(order) + 1), 2):
            # Only the two edges at the borders of the stretch change.
            before = distance[order[i - 1], order[i]] if i else 0.0
            after = distance[order[j - 1], order[j]] if j < len(order) else 0.0
            new_before = distance[order[i - 1], order[j - 1]] if i else 0.0
            new_after = distance[order[i], order[j]] if j < len(order) else 0.0
            if new_before + new_after < before + after - 1e-12 * (1 + length):
                order[i:j] = reversed(order[i:j])
                improved = True
    return order
