import math

import pytest
import torch

from fvgen_recon.pointcloud.aggregation import aggregate_cost, pick_label
from fvgen_recon.pointcloud.fill import spread_guided


def slow_aggregate(cost, image, small, large):
    """Hirschmueller's recursion, one pixel, label and direction at a time."""
    num_labels, height, width = cost.shape
    total = torch.zeros_like(cost)
    for dy, dx in ((1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (1, -1), (-1, 1), (-1, -1)):
        path = torch.zeros_like(cost)
        rows = range(height) if dy >= 0 else range(height - 1, -1, -1)
        columns = range(width) if dx >= 0 else range(width - 1, -1, -1)
        for y in rows:
            for x in columns:
                py, px = y - dy, x - dx
                if not (0 <= py < height and 0 <= px < width):
                    path[:, y, x] = cost[:, y, x]
                    continue
                change = float((image[:, y, x] - image[:, py, px]).abs().mean())
                jump = max(large * math.exp(-change / 0.06), 1.5 * small)
                before = path[:, py, px].tolist()
                for d in range(num_labels):
                    beside = [before[e] for e in (d - 1, d + 1) if 0 <= e < num_labels]
                    least = min(before[d], min(beside) + small, min(before) + jump)
                    path[d, y, x] = cost[d, y, x] + least - min(before)
        total += path
    return total / 8


def test_aggregation_equals_the_slow_twin(rng):
    cost = torch.rand(2, 5, 6, 7, generator=rng)
    image = torch.rand(2, 3, 6, 7, generator=rng) * 0.2
    fast = aggregate_cost(cost, image, small=0.1, large=0.7)
    for view in range(2):
        assert torch.allclose(
            fast[view], slow_aggregate(cost[view], image[view], 0.1, 0.7), atol=1e-5
        )


def test_aggregation_mends_a_noisy_plane(rng):
    cost = torch.ones(1, 8, 20, 20) + 0.8 * torch.rand(1, 8, 20, 20, generator=rng)
    cost[:, 3] -= 0.5
    image = torch.full((1, 3, 20, 20), 0.5)
    before = (pick_label(cost)[0].round() == 3).float().mean()
    after = (pick_label(aggregate_cost(cost, image, small=0.1, large=0.8))[0].round() == 3).float()
    assert before < 0.8
    assert after.mean() > 0.9


def test_labels_are_exact_on_a_parabola():
    labels = torch.arange(9.0)[None, :, None, None]
    for least in (3.3, 4.0, 5.45):
        label, clarity = pick_label((labels - least).square())
        assert float(label) == pytest.approx(least, abs=1e-5)
        near = round(least)
        others = [d for d in range(9) if abs(d - near) > 2]
        gap = min((d - least) ** 2 for d in others) - (near - least) ** 2
        assert float(clarity) == pytest.approx(min(gap, 10), rel=1e-4)


def slow_spread(values, weight, guide, reach, colour):
    """The recursive domain transform along each row and column, one pixel at a time."""
    height, width = values.shape
    top, bottom = values * weight, weight.clone()
    for i in range(3):
        sigma = reach * math.sqrt(3) * 2 ** (2 - i) / math.sqrt(4**3 - 1)
        for dy, dx in ((1, 0), (0, 1)):
            new_top, new_bottom = torch.zeros_like(top), torch.zeros_like(bottom)
            for y in range(height):
                for x in range(width):
                    line = [(y + k * dy, x + k * dx) for k in range(-40, 41)]
                    inside = [(a, b) for a, b in line if 0 <= a < height and 0 <= b < width]
                    for a, b in inside:
                        low, high = min((a, b), (y, x)), max((a, b), (y, x))
                        steps = (high[0] - low[0]) + (high[1] - low[1])
                        path = sum(
                            1
                            + reach
                            / colour
                            * float(
                                (
                                    guide[:, low[0] + (k + 1) * dy, low[1] + (k + 1) * dx]
                                    - guide[:, low[0] + k * dy, low[1] + k * dx]
                                )
                                .abs()
                                .mean()
                            )
                            for k in range(steps)
                        )
                        decay = math.exp(-math.sqrt(2) / sigma * path)
                        new_top[y, x] += decay * top[a, b]
                        new_bottom[y, x] += decay * bottom[a, b]
            top, bottom = new_top, new_bottom
    return top / bottom


def test_spread_equals_the_slow_twin(rng):
    values = torch.rand(1, 5, 6, generator=rng)
    weight = torch.rand(1, 5, 6, generator=rng)
    guide = torch.rand(1, 3, 5, 6, generator=rng) * 0.1
    fast, _ = spread_guided(values, weight, guide, reach=4.0, colour=0.1)
    slow = slow_spread(values[0], weight[0], guide[0], 4.0, 0.1)
    assert torch.allclose(fast[0], slow, atol=1e-4)


def test_spread_stops_at_colour_edges():
    guide = torch.zeros(1, 3, 8, 20)
    guide[..., 10:] = 1.0
    values = torch.where(guide[:, 0] > 0, 5.0, 1.0)
    weight = torch.zeros(1, 8, 20)
    weight[..., 2], weight[..., 17] = 1.0, 1.0
    filled, _ = spread_guided(values, weight, guide, reach=6.0)
    assert torch.allclose(filled, values, atol=0.05)


def test_spread_says_where_nothing_arrives():
    guide = torch.zeros(1, 3, 4, 4)
    filled, weight = spread_guided(torch.ones(1, 4, 4), torch.zeros(1, 4, 4), guide, reach=2.0)
    assert bool((weight == 0).all())
    assert bool((filled == 0).all())
