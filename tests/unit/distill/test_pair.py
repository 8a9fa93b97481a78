import math

import pytest
import torch

from fvgen_recon.distill.pack import PackedScene
from fvgen_recon.distill.pair import PairLimits, find_pair, gap_bin, pool_pairs
from fvgen_recon.types import Cameras

WIDE = PairLimits(max_gap_deg=140.0, max_turn_deg=150.0, max_off_axis=0.6)
STEP_DEG = 10.0


@pytest.fixture(scope="module")
def ring() -> PackedScene:
    """Photos all round a thing, ten degrees apart."""
    poses = []
    for index in range(36):
        angle = math.radians(STEP_DEG * index)
        cos, sin = math.cos(angle), math.sin(angle)
        pose = torch.eye(4)
        pose[:3, :3] = torch.tensor([[cos, 0, -sin], [0, 1, 0], [sin, 0, cos]])
        pose[:3, 3] = -4 * pose[:3, 2]
        poses.append(pose)
    K = torch.tensor([[50.0, 0, 32], [0, 50, 20], [0, 0, 1]])
    cameras = Cameras(c2w=torch.stack(poses), K=K.expand(36, 3, 3), height=40, width=64)
    names = tuple(f"{i:02d}.jpg" for i in range(36))
    return PackedScene(
        name="ring",
        photo_names=names,
        jpegs=(b"",) * 36,
        cameras=cameras,
        depth=torch.full((36,), 4.0),
    )


def distance(photo: int, ends: tuple[int, int]) -> float:
    """Degrees to the nearer end."""
    return min(STEP_DEG * min(abs(photo - end), 36 - abs(photo - end)) for end in ends)


def test_further_inputs_of_a_near_pair_lie_near(ring: PackedScene) -> None:
    pair = find_pair(ring, 0, 3, PairLimits())
    assert pair is not None
    assert pair.gap_deg == pytest.approx(30.0, abs=0.1)
    assert pair.targets == (1, 2)
    assert sorted(pair.extras) == [4, 5, 6, 33, 34, 35]


def test_further_inputs_of_a_very_wide_pair_lie_all_round(ring: PackedScene) -> None:
    pair = find_pair(ring, 0, 12, WIDE)
    assert pair is not None
    assert pair.targets == tuple(range(1, 12))
    far = [distance(extra, (0, 12)) for extra in pair.extras]
    assert len(far) == 8
    assert min(far) <= 20
    assert max(far) >= 90
    assert find_pair(ring, 0, 12, PairLimits()) is None


def test_all_widths_of_gaps_are_drawn_alike(ring: PackedScene) -> None:
    pool = pool_pairs((ring,), WIDE)
    plans = pool.draw(400, 8, torch.Generator().manual_seed(0))
    first = [find_pair(ring, *plan.inputs[:2], WIDE) for plan in plans]
    counts = torch.bincount(torch.tensor([gap_bin(p.gap_deg) for p in first if p]), minlength=4)
    filled = [any(pool.bins[0][b]) for b in range(4)]
    assert filled == [False, True, True, True]  # 3 photos in a row span 20 degrees.
    assert bool((counts[1:] > 90).all())
