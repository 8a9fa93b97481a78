import pytest
import torch
from factories import make_cameras, make_cloud, make_scene

from fvgen_recon.errors import InputError
from fvgen_recon.render.guidance import (
    TEACHER_GUIDANCE,
    GuidanceConfig,
    close_depth,
    render_guidance,
    support_fraction,
)
from fvgen_recon.render.point import render_points
from fvgen_recon.types import Anchor, Cameras, PointCloud, Trajectory


def make_trajectory(num_frames=5):
    cameras = make_cameras(num_frames)
    return Trajectory(
        cameras=cameras, anchors=(Anchor(frame=0, view=0), Anchor(frame=num_frames - 1, view=2))
    )


def make_cloud_of_views(num_points=3000):
    cloud = make_cloud(num_points)
    confidence = torch.linspace(0, 1, num_points)
    view = torch.arange(num_points) % 3
    return PointCloud(xyz=cloud.xyz, rgb=cloud.rgb, confidence=confidence, view=view)


def make_wall(z, rgb, spacing, extent=1.0):
    """Points on a square grid at depth z in front of the identity camera."""
    line = torch.arange(-extent, extent, spacing) + spacing / 2
    y, x = torch.meshgrid(line, line, indexing="ij")
    xyz = torch.stack([x * z, y * z, torch.full_like(x, z)], dim=-1).reshape(-1, 3)
    zeros = torch.zeros(len(xyz))
    return PointCloud(
        xyz=xyz,
        rgb=torch.tensor(rgb).expand(len(xyz), 3),
        confidence=zeros + 1,
        view=zeros.long(),
    )


def join_clouds(*clouds):
    return PointCloud(
        xyz=torch.cat([c.xyz for c in clouds]),
        rgb=torch.cat([c.rgb for c in clouds]),
        confidence=torch.cat([c.confidence for c in clouds]),
        view=torch.cat([c.view for c in clouds]),
    )


def make_front_camera(size=40):
    K = torch.tensor([[[size / 2, 0, size / 2], [0, size / 2, size / 2], [0, 0, 1.0]]])
    return Cameras(c2w=torch.eye(4)[None], K=K, height=size, width=size)


def test_anchors_hold_the_clean_photo_and_are_trusted():
    scene = make_scene()
    guidance = render_guidance(scene, make_cloud_of_views(), make_trajectory())
    assert torch.equal(guidance.frames[0], scene.images[0])
    assert torch.equal(guidance.frames[-1], scene.images[2])
    assert guidance.mask[[0, -1]].all()
    assert torch.equal(guidance.reference, scene.images[0])
    assert not guidance.mask[1:-1].all()
    assert guidance.frames.amin() >= 0
    assert guidance.frames.amax() <= 1


def test_trusted_points_make_the_frames_and_all_points_of_a_view_make_its_layer():
    scene, cloud, trajectory = make_scene(), make_cloud_of_views(), make_trajectory()
    config = GuidanceConfig(max_conflict=None)
    guidance = render_guidance(scene, cloud, trajectory, extra_layers=(1,), config=config)
    again = render_guidance(scene, cloud[cloud.confidence >= 0.5], trajectory, config=config)
    assert torch.equal(guidance.frames, again.frames)
    assert torch.equal(guidance.depth, again.depth)
    assert guidance.layers.shape == (3, 5, 3, 32, 48)
    for layer, view in enumerate((0, 2, 1)):
        alone = render_guidance(
            scene, cloud[cloud.view == view], trajectory, min_confidence=0.0, config=config
        )
        assert torch.equal(guidance.layers[layer, 1:-1], alone.frames[1:-1])
        assert torch.equal(guidance.layer_masks[layer, 1:-1], alone.mask[1:-1])
        assert guidance.layer_masks[layer].any()


def test_trusted_pixels_have_depth_and_colour_of_their_points():
    camera = make_front_camera()
    cloud = make_wall(2.0, [0.2, 0.4, 0.6], spacing=0.04)
    scene = make_scene(1, 40, 40)
    guidance = render_guidance(scene, cloud, Trajectory(cameras=camera, anchors=()))
    inside = guidance.mask[0, 0]
    assert inside.float().mean() > 0.9
    assert torch.allclose(guidance.depth[0, 0][inside], torch.tensor(2.0))
    colour = guidance.frames[0, :, inside]
    assert torch.allclose(colour, torch.tensor([[0.2], [0.4], [0.6]]).expand_as(colour), atol=1e-5)


def test_far_points_do_not_show_through_a_sparse_near_surface():
    camera, scene = make_front_camera(), make_scene(1, 40, 40)
    near = make_wall(1.0, [1.0, 0.0, 0.0], spacing=0.15, extent=0.6)  # A point every three pixels.
    far = make_wall(3.0, [0.0, 1.0, 0.0], spacing=0.04)
    trajectory = Trajectory(cameras=camera, anchors=())
    cloud = join_clouds(near, far)
    guidance = render_guidance(scene, cloud, trajectory)
    middle = (slice(12, 28), slice(12, 28))
    assert guidance.frames[0, 1][middle].max() == 0
    # Outside the near wall's outline the far wall stays, right up to the outline.
    assert guidance.mask[0, 0, 20, 2]
    assert guidance.frames[0, 1, 20, 2] > 0.9
    outline = guidance.frames[0, 1, 20, :8]
    assert (outline[:7] > 0.9).all()
    seen = render_guidance(
        scene, cloud, trajectory, config=GuidanceConfig(gap_px=0, max_conflict=None)
    )
    assert seen.frames[0, 1][middle].max() > 0.5


def test_gaps_within_a_surface_are_filled_and_outlines_stay():
    camera, scene = make_front_camera(), make_scene(1, 40, 40)
    trajectory = Trajectory(cameras=camera, anchors=())
    sparse = make_wall(1.0, [0.2, 0.4, 0.6], spacing=0.15, extent=0.6)
    guidance = render_guidance(scene, sparse, trajectory)
    bare = render_guidance(scene, sparse, trajectory, config=GuidanceConfig(gap_px=0))
    inside = (slice(12, 28), slice(12, 28))
    assert guidance.mask[0, 0][inside].all()
    assert not bare.mask[0, 0][inside].all()
    assert torch.allclose(guidance.depth[0, 0][inside], torch.tensor(1.0), atol=1e-5)
    colour = guidance.frames[0][(slice(None), *inside)]
    assert torch.allclose(colour[2], torch.tensor(0.6), atol=1e-5)
    rows = bare.mask[0, 0].any(1).nonzero()
    filled_rows = guidance.mask[0, 0].any(1).nonzero()
    assert torch.equal(rows[[0, -1]], filled_rows[[0, -1]])


def test_what_a_dense_layer_contradicts_is_unknown():
    camera, scene = make_front_camera(), make_scene(1, 40, 40)
    trajectory = Trajectory(cameras=camera, anchors=())
    far = make_wall(3.0, [0.0, 1.0, 0.0], spacing=0.04)
    near = make_wall(1.0, [1.0, 0.0, 0.0], spacing=0.05, extent=0.6)
    untrusted = PointCloud(
        xyz=near.xyz, rgb=near.rgb, confidence=near.confidence * 0.1, view=near.view
    )
    guidance = render_guidance(scene, join_clouds(untrusted, far), trajectory)
    assert not guidance.mask[0, 0, 20, 20]
    assert guidance.frames[0, :, 20, 20].tolist() == [0.0, 0.0, 0.0]
    assert guidance.mask[0, 0, 20, 2]
    same_colour = PointCloud(
        xyz=near.xyz, rgb=far.rgb[: len(near)], confidence=untrusted.confidence, view=near.view
    )
    assert render_guidance(scene, join_clouds(same_colour, far), trajectory).mask[0, 0, 20, 20]
    kept = GuidanceConfig(max_conflict=None)
    assert render_guidance(scene, join_clouds(untrusted, far), trajectory, config=kept).mask[
        0, 0, 20, 20
    ]


def test_teacher_guidance_is_the_bare_render():
    scene, cloud, trajectory = make_scene(), make_cloud_of_views(), make_trajectory()
    guidance = render_guidance(scene, cloud, trajectory, config=TEACHER_GUIDANCE)
    trusted = cloud[cloud.confidence >= 0.5]
    bare = render_points(trusted, trajectory.cameras, radius_px=1.44)
    assert torch.equal(guidance.frames[1:-1], bare.frames[1:-1])


def test_close_depth_fills_gaps_and_keeps_outlines():
    depth = torch.full((1, 1, 1, 14), 5.0)
    depth[..., [4, 7]] = 1.0
    closed = close_depth(depth, gap_px=3)[0, 0, 0].tolist()
    assert closed == [5.0] * 4 + [1.0] * 4 + [5.0] * 6
    assert torch.isinf(close_depth(torch.full((1, 1, 3, 3), torch.inf), gap_px=3)).all()


def test_support_fraction_counts_covered_pixels():
    camera = make_front_camera(192)[0]
    left = make_wall(2.0, [0.5, 0.5, 0.5], spacing=0.01)
    assert support_fraction(left, camera) == 1.0
    assert support_fraction(left[left.xyz[:, 0] < 0], camera) == pytest.approx(0.5, abs=0.02)
    assert support_fraction(left[left.xyz[:, 0] > 9], camera) == 0.0


def test_a_path_without_anchors_takes_the_nearest_views():
    scene, cloud = make_scene(), make_cloud_of_views()
    path = Trajectory(cameras=scene.cameras[[2, 1]], anchors=())
    guidance = render_guidance(scene, cloud, path)
    assert torch.equal(guidance.reference, scene.images[2])
    assert not guidance.is_anchor.any()


def test_misfits_are_named():
    scene, cloud = make_scene(), make_cloud_of_views()
    wrong_size = Trajectory(cameras=make_cameras(3, 16, 24), anchors=())
    with pytest.raises(InputError, match="32x48"):
        render_guidance(scene, cloud, wrong_size)
    wrong_view = Trajectory(cameras=make_cameras(3), anchors=(Anchor(frame=0, view=7),))
    with pytest.raises(InputError, match="view 7"):
        render_guidance(scene, cloud, wrong_view)
