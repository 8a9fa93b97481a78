import pytest
import torch
from unit.pointcloud.stage import make_stage

from fvgen_recon.pointcloud import label
from fvgen_recon.pointcloud.depth_range import find_depth_span, plane_depths
from fvgen_recon.pointcloud.label import Matching, find_labels
from fvgen_recon.pointcloud.neighbour import other_views
from fvgen_recon.pointcloud.sweep import relate_views


@pytest.mark.parametrize("views_at_once", [1, 2])
def test_many_views_are_matched_part_by_part_with_the_same_outcome(monkeypatch, views_at_once):
    scene, depth = make_stage()
    span = find_depth_span(scene.images, scene.cameras)
    planes = plane_depths(span, 16)
    matching = Matching(windows=(5,), best=1, small_penalty=0.1, large_penalty=0.6)
    pairs = relate_views(scene.cameras, other_views(3, depth)[:, :1])
    whole = find_labels(scene.images, pairs, planes, matching)
    counts = []

    def watched(cost, *args, **settings):
        counts.append(len(cost))
        return aggregate(cost, *args, **settings)

    aggregate = label.aggregate_cost
    monkeypatch.setattr(label, "aggregate_cost", watched)
    monkeypatch.setattr(label, "_MOST_CPU", views_at_once * 16 * depth[0].numel())
    parts = find_labels(scene.images, pairs, planes, matching)
    assert counts == {1: [1, 1, 1], 2: [2, 1]}[views_at_once]
    # Sampling rounds by the size of its batch; a tie may fall to either side.
    same = (parts.label - whole.label).abs() < 1e-2
    assert same.float().mean() > 0.999
    torch.testing.assert_close(parts.score[same], whole.score[same], rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(parts.clarity[same], whole.clarity[same], rtol=1e-3, atol=1e-3)
