import math

import pytest
import torch
from factories import make_cameras

from fvgen_recon.errors import InputError
from fvgen_recon.evaluation.path import gap_angle, plan_held_out


def test_paths_pass_exactly_through_the_held_out_views():
    cameras = make_cameras(9, arc_deg=40)
    paths = plan_held_out(cameras, (0, 4, 8), (1, 3, 6), 16)
    assert [(p.photos, tuple(a.view for a in p.trajectory.anchors)) for p in paths] == [
        ((1, 3), (0, 1)),
        ((6,), (1, 2)),
    ]
    for path, ends in zip(paths, ((0, 4), (4, 8)), strict=True):
        way = path.trajectory.cameras
        shown = [0, *path.frames, 15]
        wanted = cameras[[ends[0], *path.photos, ends[1]]]
        assert len(way) == 16
        torch.testing.assert_close(way.c2w[shown], wanted.c2w)
        torch.testing.assert_close(way.K[shown], wanted.K)
    assert paths[0].frames == (4, 11)  # a quarter and three quarters of the way
    assert paths[1].frames == (8,)  # round(7.5)


def test_frames_between_move_evenly():
    cameras = make_cameras(3, arc_deg=40)
    way = plan_held_out(cameras, (0, 2), (1,), 9)[0].trajectory.cameras
    step = (way.position[1:] - way.position[:-1]).norm(dim=1)
    torch.testing.assert_close(step, step.mean().expand(8), atol=1e-4, rtol=1e-3)


def test_more_views_than_frames_are_thinned():
    cameras = make_cameras(20, arc_deg=60)
    path = plan_held_out(cameras, (0, 19), tuple(range(1, 19)), 8)[0]
    assert path.frames == (1, 2, 3, 4, 5, 6)
    assert path.photos[0] == 1
    assert path.photos[-1] == 18


def test_gap_is_the_angle_at_the_pivot():
    cameras = make_cameras(3, arc_deg=24)
    path = plan_held_out(cameras, (0, 2), (1,), 4)[0]
    assert gap_angle(path.trajectory, 4.0) == pytest.approx(24.0, abs=1e-3)
    # Nearer to the cameras the same baseline is seen under a wider angle.
    near = gap_angle(path.trajectory, 2.0)
    baseline = float((cameras.position[2] - cameras.position[0]).norm())
    assert near > 24.0
    assert near < math.degrees(2 * math.asin(min(1.0, baseline / 2)))


def test_mistakes_get_a_sentence():
    with pytest.raises(InputError, match="1, 1 and 16 came"):
        plan_held_out(make_cameras(3), (0,), (1,), 16)
