"""Procedural scenes: exact depth, consistent between views."""

import torch

from fvgen_recon.geometry.projection import project_points, unproject_depth
from fvgen_recon.render.procedural import (
    ProceduralScene,
    arc_cameras,
    random_scene,
    render_procedural,
)


def empty_room() -> ProceduralScene:
    scene = random_scene(0)
    return ProceduralScene(room=scene.room, solids=(), light=scene.light)


def test_depth_of_an_empty_room_by_hand() -> None:
    camera = arc_cameras([0.0], radius=3.0, height=9, width=9)
    depth = render_procedural(empty_room(), camera, supersample=1).depth
    points, _ = unproject_depth(depth, camera)
    on_wall = (points.abs() - torch.tensor([4.0, 2.0, 4.0])).abs().amin(-1)
    assert float(on_wall.max()) < 1e-4


def test_sphere_depth_by_hand() -> None:
    scene = random_scene(0)
    ball = next(solid for solid in scene.solids if solid.is_sphere)
    alone = ProceduralScene(room=scene.room, solids=(ball,), light=scene.light)
    cameras = arc_cameras([0.0, 20.0], radius=3.5, height=64, width=96)
    points, _ = unproject_depth(render_procedural(alone, cameras, supersample=1).depth, cameras)
    distance = (points - ball.centre).norm(dim=-1)
    assert int((distance < ball.size[0] + 1e-3).sum()) > 10
    assert float(distance.min()) > float(ball.size[0]) - 1e-3


def test_views_agree_where_both_see() -> None:
    """Warping by exact depth brings colours together far better than not warping."""
    cameras = arc_cameras([0.0, 8.0], radius=3.4, height=48, width=72)
    render = render_procedural(random_scene(3), cameras)
    points, _ = unproject_depth(render.depth[0], cameras[0])
    uv, z = project_points(points.reshape(-1, 3), cameras[1])
    grid = (uv / torch.tensor([72.0, 48.0]) * 2 - 1).reshape(1, 48, 72, 2)
    warped = torch.nn.functional.grid_sample(render.images[1:], grid, align_corners=False)[0]
    seen = torch.nn.functional.grid_sample(render.depth[1:, None], grid, align_corners=False)
    visible = ((seen[0, 0].flatten() - z).abs() < 0.05).reshape(48, 72)
    visible &= (grid.abs() < 1).all(-1)[0]
    with_warp = (warped - render.images[0]).abs()[:, visible].mean()
    without = (render.images[1] - render.images[0]).abs()[:, visible].mean()
    assert float(visible.float().mean()) > 0.5
    assert float(with_warp) < 0.6 * float(without)


def test_scenes_are_reproducible_and_differ_by_seed() -> None:
    cameras = arc_cameras([0.0], radius=3.0, height=16, width=24)
    first, again, other = (render_procedural(random_scene(s), cameras).images for s in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
