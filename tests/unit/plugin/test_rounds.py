"""When rounds run, and which points they add."""

import pytest
import torch
from factories import make_cameras

from fvgen_nerfstudio.rounds import check_rounds, due_round, lift_unseen
from fvgen_recon.errors import InputError
from fvgen_recon.geometry.projection import project_points
from fvgen_recon.types import Clip, Guidance


def test_a_round_runs_once_when_its_time_has_come():
    rounds = (0.0, 0.5, 0.8)
    done, ran = 0, []
    for step in range(10):
        index = due_round(rounds, step / 10, done)
        if index is not None:
            ran.append((step, index))
            done = index + 1
    assert ran == [(0, 0), (5, 1), (8, 2)]


def test_a_resumed_run_makes_up_for_the_latest_round_only():
    assert due_round((0.0, 0.5, 0.8), 0.9, 1) == 2
    assert due_round((0.0, 0.5, 0.8), 0.9, 3) is None
    assert due_round((), 0.9, 0) is None


@pytest.mark.parametrize("rounds", [(0.5, 0.2), (0.0, 1.0), (-0.1,), (0.3, 0.3)])
def test_rounds_must_rise_within_the_run(rounds):
    with pytest.raises(InputError, match="rising fractions"):
        check_rounds(rounds)


def _clip() -> Clip:
    cameras = make_cameras(2, 8, 12)
    frames = torch.rand(2, 3, 8, 12)
    mask = torch.ones(2, 1, 8, 12, dtype=torch.bool)
    mask[1] = False
    guidance = Guidance(
        frames=frames,
        mask=mask,
        depth=torch.full((2, 1, 8, 12), 3.0),
        layers=torch.zeros(0, 2, 3, 8, 12),
        layer_masks=torch.zeros(0, 2, 1, 8, 12, dtype=torch.bool),
        anchors=(),
        reference=frames[0],
    )
    return Clip(
        frames=frames, cameras=cameras, guidance=guidance, confidence=torch.ones(2, 1, 8, 12)
    )


def test_only_trusted_pixels_that_the_splat_misses_become_points():
    clip = _clip()
    alpha = torch.ones(2, 1, 8, 12)
    alpha[0, 0, 2, 5] = 0.0
    alpha[1] = 0.0  # Unseen too, but nothing is trusted there.
    cloud = lift_unseen(clip, alpha)
    assert len(cloud) == 1
    torch.testing.assert_close(cloud.rgb[0], clip.frames[0, :, 2, 5])
    uv, depth = project_points(cloud.xyz, clip.cameras[0])
    torch.testing.assert_close(uv[0], torch.tensor([5.5, 2.5]), atol=1e-4, rtol=0)
    assert depth.item() == pytest.approx(3.0, abs=1e-5)
