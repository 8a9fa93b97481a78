"""Worlds, walks and photographs: exact, consistent between views, reproducible."""

import pytest
import torch
import torch.nn.functional as F

from fvgen_recon.errors import InputError
from fvgen_recon.geometry.projection import camera_rays, project_points, unproject_depth
from fvgen_recon.render.world import (
    TraceConfig,
    plan_walk,
    procedural_capture,
    random_world,
    render_world,
)
from fvgen_recon.render.world.recipe import RECIPES
from fvgen_recon.render.world.shape import first_hit
from fvgen_recon.render.world.tracer import camera_directions
from fvgen_recon.types import Cameras

SIZE = (48, 72)
FAST = TraceConfig(supersample=1)


@pytest.mark.parametrize("kind", list(RECIPES))
def test_views_agree_where_both_see(kind: str) -> None:
    """Warping by exact depth brings colours together far better than not warping."""
    capture = procedural_capture(
        5, num_frames=2, num_extras=0, height=48, width=72, gap_deg=6.0, kind=kind,
        texture_size=64, config=FAST,
    )  # fmt: skip
    points, _ = unproject_depth(capture.depth[0], capture.cameras[0])
    uv, z = project_points(points.reshape(-1, 3), capture.cameras[1])
    grid = (uv / torch.tensor([72.0, 48.0]) * 2 - 1).reshape(1, *SIZE, 2)
    warped = F.grid_sample(capture.images[1:], grid, align_corners=False)[0]
    seen = F.grid_sample(capture.depth[1:, None], grid, align_corners=False)
    visible = ((seen[0, 0].flatten() - z).abs() < 0.03 * z).reshape(SIZE)
    visible &= (grid.abs() < 1).all(-1)[0] & (capture.depth[0] > 0)
    with_warp = (warped - capture.images[0]).abs()[:, visible].mean()
    without = (capture.images[1] - capture.images[0]).abs()[:, visible].mean()
    assert float(visible.float().mean()) > 0.3
    assert float(with_warp) < 0.5 * float(without)


def test_tiles_and_culling_do_not_change_the_picture() -> None:
    world = random_world(3, kind="table", texture_size=64)
    walk = plan_walk(
        world, torch.Generator().manual_seed(1), num_frames=2, num_extras=0, size=(24, 32)
    )
    assert walk is not None
    cameras = walk.cameras[:1]
    small = render_world(world, cameras, TraceConfig(tile=8, exposure=1.0))
    whole = render_world(world, cameras, TraceConfig(tile=32, exposure=1.0))
    assert float((small.images - whole.images).abs().mean()) < 1e-4
    rays = camera_directions(cameras[0])
    torch.testing.assert_close(rays, camera_rays(cameras[0]))
    distance, _ = first_hit(world.shapes, cameras.position, rays.reshape(-1, 3))
    torch.testing.assert_close(small.depth[0].flatten(), distance)


def test_walks_have_the_gap_that_was_asked_for_and_are_smooth() -> None:
    world = random_world(8, kind="room", texture_size=64)
    for seed, gap in ((0, 8.0), (1, 20.0), (2, 35.0)):
        walk = plan_walk(
            world,
            torch.Generator().manual_seed(seed),
            num_frames=16,
            num_extras=2,
            size=SIZE,
            gap_deg=gap,
        )
        assert walk is not None
        assert len(walk.cameras) == 18
        assert abs(walk.gap_deg - gap) < 0.3 * gap
        step = walk.cameras.position[:16].diff(dim=0).norm(dim=1)
        assert float(step.max()) < 4 * float(step.median())
        low, high = world.bounds
        assert bool(((walk.cameras.position > low) & (walk.cameras.position < high)).all())


def test_captures_are_reproducible_and_differ_by_seed() -> None:
    def photograph(seed: int, photos: torch.Tensor | None = None) -> torch.Tensor:
        capture = procedural_capture(
            seed, num_frames=2, num_extras=1, height=16, width=24, texture_size=64, photos=photos,
            config=FAST,
        )  # fmt: skip
        assert capture.images.shape == (3, 3, 16, 24)
        assert float(capture.images.min()) >= 0
        assert float(capture.images.max()) <= 1
        return capture.images

    first = photograph(1)
    assert torch.equal(first, photograph(1))
    assert not torch.equal(first, photograph(2))
    red = torch.tensor([1.0, 0.0, 0.0])[None, :, None, None].expand(2, 3, 64, 64)
    assert not torch.equal(first, photograph(1, red))


def test_photos_reach_surfaces() -> None:
    """A world whose photos are all pure red shows more red than one of patterns alone."""
    red = torch.tensor([1.0, 0.0, 0.0])[None, :, None, None].expand(2, 3, 64, 64)

    def redness(photos: torch.Tensor | None) -> float:
        total = 0.0
        for seed in range(2):
            images = procedural_capture(
                seed, num_frames=2, num_extras=0, height=16, width=24, texture_size=64,
                photos=photos, kind="table", config=FAST,
            ).images  # fmt: skip
            total += float(((images[:, 0] > 0.2) & (images[:, 1:].amax(1) < 0.1)).float().mean())
        return total / 2

    assert redness(red) > redness(None) + 0.02


def test_sky_has_no_depth() -> None:
    world = random_world(4, kind="yard", texture_size=64)
    up = torch.eye(4)
    up[:3, :3] = torch.tensor([[1.0, 0, 0], [0, 0, -1], [0, 1, 0]])
    up[:3, 3] = torch.tensor([0.0, -5.0, 0.0])
    K = torch.tensor([[40.0, 0, 12], [0, 40.0, 8], [0, 0, 1]])
    camera = Cameras(c2w=up[None], K=K[None], height=16, width=24)
    render = render_world(world, camera, FAST)
    assert float(render.depth.abs().max()) == 0
    assert float(render.images.std()) > 0


def test_bad_requests_are_refused() -> None:
    with pytest.raises(InputError, match="no world `forest`"):
        random_world(0, kind="forest")
    with pytest.raises(InputError, match="power of two"):
        random_world(0, texture_size=100)
