"""The network's depth counts, and the sweep's where that is trusted and by far surer."""

import math
from dataclasses import dataclass

import torch
from factories import make_scene

from fvgen_recon.pointcloud import ESTIMATORS
from fvgen_recon.pointcloud.combined import CombinedStereo
from fvgen_recon.pointcloud.depth_map import DepthMaps
from fvgen_recon.types import Scene


@dataclass(frozen=True)
class _Known:
    """A source whose answer is given."""

    maps: DepthMaps

    def estimate_depth(self, scene: Scene) -> DepthMaps:
        del scene
        return self.maps


def test_the_sweep_counts_where_it_is_trusted_and_by_far_surer(rng):
    scene = make_scene(2, 6, 8)
    answers = [
        DepthMaps(
            depth=torch.rand(2, 6, 8, generator=rng) + at,
            confidence=torch.rand(2, 6, 8, generator=rng),
        )
        for at in (1, 3)
    ]
    first, second = (_Known(maps) for maps in answers)
    stereo = CombinedStereo(sweep=first, network=second)
    found, cloud = stereo.estimate_depth(scene), stereo.estimate(scene)
    swept = answers[0].confidence
    odds = [maps.confidence / (1 - maps.confidence) for maps in answers]
    is_first = (odds[0] > math.exp(2) * odds[1]) & (swept >= 0.5)
    assert is_first.any()
    is_surer = (swept > answers[1].confidence) & (swept >= 0.5)
    assert (is_surer & ~is_first).any()
    assert torch.equal(found.depth < 2, is_first)
    doubted = (swept < 0.5) & (answers[1].confidence < 0.5)
    assert doubted.any()
    assert torch.equal(found.depth[doubted], answers[1].depth[doubted])
    assert torch.equal(found.confidence[doubted], answers[1].confidence[doubted])
    assert torch.equal(cloud.confidence, found.confidence.flatten())
    assert len(cloud) == 2 * 6 * 8
    network, sweep = cloud.alternatives
    assert torch.equal(sweep.confidence, answers[0].confidence.flatten())
    assert torch.equal(network.confidence, answers[1].confidence.flatten())
    sweep_depth = torch.where(is_first.flatten()[:, None], cloud.xyz, sweep.xyz)
    assert torch.equal(sweep_depth, sweep.xyz)


def test_a_user_can_name_it():
    assert isinstance(ESTIMATORS["stereo"](), CombinedStereo)
