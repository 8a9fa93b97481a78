"""Points that the ablation keeps come back as they were found, guesses included."""

import importlib
from dataclasses import replace
from pathlib import Path

import torch
from factories import make_cloud, make_scene

from fvgen_recon.types import PointCloud, Scene

BENCHMARKS = Path(__file__).resolve().parents[3] / "benchmarks"


class _Counting:
    """A source that says how often it was asked."""

    calls = 0

    def estimate(self, scene: Scene) -> PointCloud:
        del scene
        self.calls += 1
        cloud = make_cloud(20)
        # Colours are one tensor in all of them, as `stereo` may share them.
        others = tuple(replace(make_cloud(20, seed=s), rgb=cloud.rgb) for s in (1, 2))
        return replace(cloud, alternatives=others)


def test_kept_points_have_their_alternatives(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    ablation = importlib.import_module("ablation")
    inner = _Counting()
    kept = ablation._CachedEstimator("stereo", inner, tmp_path)
    wanted = _Counting().estimate(make_scene())
    for _ in range(2):
        found = kept.estimate(make_scene())
        assert len(found.alternatives) == 2
        for one, other in zip(
            (found, *found.alternatives), (wanted, *wanted.alternatives), strict=True
        ):
            for name in ("xyz", "rgb", "confidence", "view"):
                assert torch.equal(getattr(one, name), getattr(other, name))
    assert inner.calls == 1
