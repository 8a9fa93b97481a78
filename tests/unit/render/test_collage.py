import pytest
import torch

from fvgen_recon.pointcloud.consistency import compare_depth
from fvgen_recon.pointcloud.sweep import project_inverse_depth, relate_views, sample_views
from fvgen_recon.render.collage import (
    build_atlas,
    random_arc,
    random_collage,
    render_collage,
    render_collages,
)


@pytest.fixture(scope="module")
def atlas():
    rng = torch.Generator().manual_seed(4)
    noise = torch.rand(5, 3, 16, 16, generator=rng)
    smooth = torch.nn.functional.interpolate(noise, (256, 256), mode="bicubic").clamp(0, 1)
    return build_atlas(smooth)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_views_agree_in_depth_and_colour(atlas, seed):
    rng = torch.Generator().manual_seed(seed)
    collage = random_collage(rng, atlas.count)
    cameras = random_arc(rng, 2, height=48, width=64, max_gap_deg=12.0)
    render = render_collage(collage, atlas, cameras)
    assert (render.depth > 0).all()
    assert (render.depth < 30).all()
    assert (render.images >= 0).all()
    assert (render.images <= 1).all()
    found = compare_depth(1 / render.depth, cameras)
    both = found.seen & (found.error < 0.7) & (found.relative.abs() < 0.01)
    assert both[:, 0].float().mean() > 0.5
    # Where they see the same point without gloss, the colours are the same.
    others = torch.tensor([[1], [0]])
    uv, _ = project_inverse_depth(
        relate_views(cameras, others), 1 / render.depth[:, None], (48, 64)
    )
    warped = sample_views(render.images, others[:, 0], uv[:, 0, 0])
    difference = (warped - render.images).abs().mean(dim=1)[both[:, 0]]
    assert difference.median() < 0.03


def test_the_same_seed_gives_the_same_scene(atlas):
    first, second = (
        render_collage(
            random_collage(torch.Generator().manual_seed(7), atlas.count),
            atlas,
            random_arc(torch.Generator().manual_seed(8), 2, height=16, width=24),
        )
        for _ in range(2)
    )
    assert torch.equal(first.images, second.images)
    assert torch.equal(first.depth, second.depth)


@pytest.mark.parametrize("values", [0, 2**40])
def test_collages_together_look_as_each_alone(atlas, values, monkeypatch):
    monkeypatch.setattr("fvgen_recon.render.collage._VALUES_ELSEWHERE", values)
    rng = torch.Generator().manual_seed(3)
    collages = [random_collage(rng, atlas.count) for _ in range(3)]
    assert len({len(c.texture) for c in collages}) > 1  # some are filled up
    cameras = [random_arc(rng, 2, height=16, width=24) for _ in collages]
    together = render_collages(collages, atlas, cameras)
    for collage, own, render in zip(collages, cameras, together, strict=True):
        alone = render_collage(collage, atlas, own)
        assert torch.allclose(render.images, alone.images, atol=1e-5)
        assert torch.allclose(render.depth, alone.depth, rtol=1e-5)
