import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from factories import make_cameras, make_guidance

from fvgen_recon.diffusion.passthrough import RenderGenerator
from fvgen_recon.evaluation.comparison import (
    Row,
    Score,
    Truth,
    by_gap,
    caption,
    mean_over_scenes,
    mean_score,
    run_method,
    score_frames,
    write_comparison,
)
from fvgen_recon.io.image import read_image


def judge(image, truth):
    return (image - truth).abs().mean(dim=(1, 2, 3))


def make_truth(frames=(1, 2)):
    guidance = make_guidance(4, 16, 24)
    photos = torch.rand(len(frames), 3, 16, 24, generator=torch.Generator().manual_seed(5))
    return Truth(
        guidance=guidance,
        cameras=make_cameras(4, 16, 24),
        frames=frames,
        photos=photos,
        scene="room",
        clip=0,
        gap_deg=20.0,
    )


def test_holes_are_scored_alone():
    truth = make_truth()
    image = torch.where(truth.hole > 0, truth.photos, truth.photos + 0.1)
    score = score_frames(image, truth, judge)
    assert score.psnr_hole == pytest.approx(100.0)
    assert score.stlpips_alex_hole == 0
    assert 20 < score.psnr < 25
    assert score.sharp_hole == pytest.approx(1.0, abs=0.2)


def test_sharpness_at_trusted_points_tells_blur_there_from_blur_in_holes():
    truth = make_truth()
    flat = torch.full_like(truth.photos, 0.5)
    blurred_holes = score_frames(torch.where(truth.hole > 0, flat, truth.photos), truth, judge)
    assert blurred_holes.sharp_trusted > 1.3 * blurred_holes.sharp_hole
    blurred_points = score_frames(torch.where(truth.hole > 0, truth.photos, flat), truth, judge)
    assert blurred_points.sharp_hole > 1.3 * blurred_points.sharp_trusted


def test_generators_of_bare_renders_get_them_and_are_measured_in_the_same_holes():
    truth = make_truth()
    bare = replace(truth.guidance, frames=truth.guidance.frames / 2)
    both = replace(truth, bare=bare)
    raw = replace(RenderGenerator(num_frames=4), is_raw=True)
    for generator, guidance in ((RenderGenerator(num_frames=4), truth.guidance), (raw, bare)):
        row, frames = run_method("render", generator, both, judge)
        assert torch.equal(frames, guidance.frames)
        assert row.hole_share == float(truth.hole.mean())
    with pytest.raises(AssertionError, match="has_bare"):
        truth.guidance_for(raw)


def test_one_frame_has_no_flicker():
    truth = make_truth(frames=(2,))
    row, frames = run_method("render", RenderGenerator(num_frames=4), truth, judge)
    assert torch.equal(frames, truth.guidance.frames)
    assert math.isnan(row.score.flicker)
    assert row.num_frames == 1
    assert row.hole_share == pytest.approx(float(1 - truth.guidance.mask[2].float().mean()))


def make_row(scene, value, num_frames, gap_deg=10.0):
    score = Score(
        psnr=value,
        psnr_hole=math.nan,
        ssim=0.5,
        stlpips_alex=0.1,
        stlpips_alex_hole=0.1,
        sharp_hole=1.0,
        sharp_trusted=1.0,
        flicker=0.0,
        unsteady=1.0,
    )
    return Row(
        method="m",
        scene=scene,
        clip=0,
        gap_deg=gap_deg,
        num_frames=num_frames,
        hole_share=0.5,
        seconds=1.0,
        peak_gib=None,
        score=score,
    )


def test_means_weigh_frames_within_and_scenes_alike():
    rows = [make_row("a", 10.0, 1), make_row("a", 20.0, 3), make_row("b", 30.0, 1)]
    assert mean_score(rows[:2]).psnr == pytest.approx(17.5)
    assert mean_over_scenes(rows).psnr == pytest.approx((17.5 + 30) / 2)
    assert math.isnan(mean_over_scenes(rows).psnr_hole)
    known = replace(rows[0], score=replace(rows[0].score, psnr_hole=7.0))
    assert mean_score([known, *rows[1:]]).psnr_hole == pytest.approx(7.0)


def test_gap_bins():
    rows = [make_row("a", 1.0, 1, gap) for gap in (15.0, 15.1, 30.0, 31.0)]
    assert [[r.gap_deg for r in b] for b in by_gap(rows)] == [[15.0], [15.1, 30.0], [31.0]]


def test_picture_has_a_heading_and_every_image(tmp_path, rng):
    rows = [[torch.rand(3, 8, 40, generator=rng) for _ in range(2)] for _ in range(3)]
    path = tmp_path / "panel.png"
    write_comparison(path, ["render", "truth"], rows)
    picture = read_image(path)
    assert picture.shape == (3, 18 + 3 * 8, 80)
    torch.testing.assert_close(picture[:, 18:26, 40:], rows[0][1], atol=0.003, rtol=0)


def test_headings_of_narrow_columns_stay_inside_and_tell_methods_apart():
    names = ("fvgen-splat-none", "fvgen-splat-regression", "fvgen-splat-student")
    narrow = [caption(90, name) for name in names]
    assert not any(torch.equal(a, b) for a, b in pairwise(narrow))
    assert all((strip[..., -2:] == 1).all() for strip in narrow)
    # What fits is written whole.
    torch.testing.assert_close(caption(220, "none")[..., :90], caption(90, "none"))
