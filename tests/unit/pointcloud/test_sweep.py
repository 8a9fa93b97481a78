import numpy as np
import pytest
import torch
import torch.nn.functional as F
from factories import make_cameras, make_scene
from unit.pointcloud.stage import make_stage

from fvgen_recon.geometry.projection import camera_rays, project_points
from fvgen_recon.pointcloud import confidence, consistency, depth_range
from fvgen_recon.pointcloud.confidence import gather_evidence
from fvgen_recon.pointcloud.consistency import compare_depth
from fvgen_recon.pointcloud.depth_range import find_depth_span
from fvgen_recon.pointcloud.neighbour import best_sources, other_views, view_overlap
from fvgen_recon.pointcloud.sweep import (
    best_mean,
    box_mean,
    correlate,
    match_scores,
    project_inverse_depth,
    relate_views,
)


def test_projection_equals_lifting_and_projecting(rng):
    cameras = make_cameras(3)
    sources = other_views(3, cameras.K)
    inverse_depth = torch.rand(3, 2, 32, 48, generator=rng) * 0.3 + 0.1
    uv, z = project_inverse_depth(relate_views(cameras, sources), inverse_depth, (32, 48))
    for view in range(3):
        point = camera_rays(cameras[view]) / inverse_depth[view, 1][..., None]
        point = (point + cameras.position[view]).reshape(-1, 3)
        for slot, source in enumerate(sources[view].tolist()):
            expected, depth = project_points(point, cameras[source])
            assert torch.allclose(uv[view, slot, 1].reshape(-1, 2), expected, atol=2e-3)
            relative = depth * inverse_depth[view, 1].reshape(-1)
            assert torch.allclose(z[view, slot, 1].reshape(-1), relative, atol=1e-4)


@pytest.mark.parametrize("window", [1, 3, 5, 7, 11])
def test_box_mean_equals_pooling(window, rng):
    values = torch.rand(2, 9, 12, generator=rng)
    pooled = F.avg_pool2d(values, window, 1, window // 2, count_include_pad=False)
    assert torch.allclose(box_mean(values, window), pooled, atol=1e-6)


def test_correlation_equals_the_definition(rng):
    reference = torch.rand(1, 1, 1, 9, 11, generator=rng)
    warped = torch.rand(1, 1, 1, 9, 11, generator=rng)
    found = correlate(reference, warped, 5)[0, 0, 0]
    for y, x in ((0, 0), (4, 5), (8, 3)):
        rows, columns = slice(max(0, y - 2), y + 3), slice(max(0, x - 2), x + 3)
        a = reference[0, 0, 0, rows, columns].numpy().astype(float)
        b = warped[0, 0, 0, rows, columns].numpy().astype(float)
        scale = np.sqrt((a.var() + 1e-4) * (b.var() + 1e-4))
        expected = ((a - a.mean()) * (b - b.mean())).mean() / scale
        assert abs(float(found[y, x]) - expected) < 1e-4


def test_best_mean_leaves_out_the_unseen_and_the_worst():
    scores = torch.tensor([0.9, 0.5, -0.3, 0.8]).reshape(1, 4, 1, 1, 1)
    seen = torch.tensor([True, True, True, False]).reshape(1, 4, 1, 1, 1)
    assert torch.allclose(best_mean(scores, seen, 2), torch.tensor(0.7))
    assert torch.allclose(best_mean(scores, seen, 1), torch.tensor(0.9))
    assert torch.allclose(best_mean(scores, seen | True, 4), torch.tensor(0.475))
    assert torch.allclose(best_mean(scores, seen & (scores > 0.8), 2), torch.tensor(0.9))
    assert float(best_mean(scores, torch.zeros_like(seen), 2)) == 0


def test_true_depth_scores_best():
    scene, depth = make_stage()
    pairs = relate_views(scene.cameras, other_views(3, depth))
    factors = torch.tensor([0.94, 0.97, 1.0, 1.03, 1.06])[None, :, None, None]
    scores = match_scores(
        scene.images.mean(1), pairs, factors / depth[:, None], windows=(5,), best=2
    )
    assert scores[:, 2].median() > 0.96
    seen = scores.amax(dim=1) > 0.1  # a pixel that no source sees scores 0 everywhere
    assert seen.float().mean() > 0.85
    assert (scores.argmax(dim=1) == 2)[seen].float().mean() > 0.85


def test_true_depths_agree_and_wrong_ones_do_not():
    scene, depth = make_stage()
    agreement = compare_depth(1 / depth, scene.cameras)
    assert agreement.error[agreement.seen].median() < 0.02
    assert agreement.relative[agreement.seen].abs().median() < 1e-3
    shifted = depth.clone()
    shifted[1] *= 0.8
    wrong = compare_depth(1 / shifted, scene.cameras)
    assert wrong.error[1][wrong.seen[1]].median() > 1
    # View 1 now floats before what the others see.
    assert wrong.relative[1][wrong.seen[1]].median() > 0.15
    evidence = gather_evidence(
        score=depth * 0, clarity=depth * 0, inverse_depth=1 / shifted, cameras=scene.cameras
    )
    assert evidence.in_front[1].mean() > 0.8
    assert evidence.in_front[[0, 2]].mean() < 0.1
    assert evidence.agreement[0].median() > 0.9
    assert evidence.agreement[1].median() < 0.1


def test_many_views_are_compared_part_by_part_with_the_same_outcome(monkeypatch):
    scene, depth = make_stage()
    shifted = depth * torch.tensor([1.0, 0.97, 1.0])[:, None, None]
    settings = {"score": depth * 0, "clarity": depth * 0, "cameras": scene.cameras}
    whole = gather_evidence(inverse_depth=1 / shifted, **settings).stack()
    span = find_depth_span(scene.images, scene.cameras)
    sizes = []

    def watched(*args):
        found = compare_depth(*args)
        sizes.append(found.seen.numel())
        return found

    most = 2 * depth[0].numel()  # One view with its two others.
    monkeypatch.setattr(consistency, "_CHUNK_CPU", most)
    monkeypatch.setattr(depth_range, "_MOST_PROJECTED", 1)  # One view after the other.
    monkeypatch.setattr(confidence, "compare_depth", watched)
    monkeypatch.setattr(depth_range, "compare_depth", watched)
    parts = gather_evidence(inverse_depth=1 / shifted, **settings).stack()
    # Sampling rounds by the size of its batch, by up to 6e-5 seen.
    torch.testing.assert_close(parts, whole, rtol=1e-4, atol=2e-4)
    torch.testing.assert_close(find_depth_span(scene.images, scene.cameras), span)
    assert sizes == [most] * 9  # Evidence once and the span twice, three views each.


def test_overlap_and_choice_of_sources():
    cameras = make_cameras(5, arc_deg=60)
    overlap = view_overlap(cameras, torch.full((5, 1), 0.25))[..., 0]
    assert overlap[0, 0] > overlap[0, 3]
    assert best_sources(cameras, torch.full((5, 3), 0.25), 2)[2].sort().values.tolist() == [1, 3]
    assert best_sources(cameras, torch.full((5, 3), 0.25), 2)[0].tolist() == [1, 2]


def test_span_holds_the_scene_and_not_much_more():
    scene, depth = make_stage()
    span = find_depth_span(scene.images, scene.cameras)
    nearest, farthest = (1 / depth).flatten(1).amax(1), (1 / depth).flatten(1).amin(1)
    assert bool((span[:, 1] > 0.98 * nearest).all())
    assert bool((span[:, 0] < 1.02 * farthest).all())
    assert bool((span[:, 1] < 1.5 * nearest).all())
    assert bool((span[:, 0] > 0.3 * farthest).all())


def test_other_views():
    assert other_views(3, make_scene().images).tolist() == [[1, 2], [0, 2], [0, 1]]
