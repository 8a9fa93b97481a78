import pytest
import torch
from factories import make_cameras, make_cloud

from fvgen_recon.errors import InputError
from fvgen_recon.render.parity import compare_render
from fvgen_recon.render.point import disk_radius, projection_matrices, render_points
from fvgen_recon.render.point_reference import find_fragments, render_points_reference
from fvgen_recon.render.point_torch import nearest_points, splat_frames
from fvgen_recon.types import Cameras, PointCloud


def make_points(xyz, rgb=None):
    xyz = torch.tensor(xyz, dtype=torch.float32).reshape(-1, 3)
    rgb = torch.eye(3).repeat(len(xyz), 1)[: len(xyz)] if rgb is None else torch.tensor(rgb)
    zeros = torch.zeros(len(xyz))
    return PointCloud(xyz=xyz, rgb=rgb.float(), confidence=zeros + 1, view=zeros.long())


def make_unit_camera(height=6, width=10):
    """A camera in whose image a point (x, y, 1) lies at pixel coordinates (x, y)."""
    K = torch.eye(3)[None]
    return Cameras(c2w=torch.eye(4)[None], K=K, height=height, width=width)


def render_sorted(cloud, cameras, radius, points_per_pixel=10):
    frames, alpha, depth = splat_frames(
        cloud.xyz,
        cloud.rgb,
        projection_matrices(cameras),
        size=(cameras.height, cameras.width),
        radius=radius,
        points_per_pixel=points_per_pixel,
    )
    return frames, alpha, depth


def assert_same(cloud, cameras, radius, points_per_pixel=10):
    slow = render_points_reference(
        cloud, cameras, radius_px=radius, points_per_pixel=points_per_pixel
    )
    fast = render_points(cloud, cameras, radius_px=radius, points_per_pixel=points_per_pixel)
    by_sort = render_sorted(cloud, cameras, radius, points_per_pixel)
    for ours in ((fast.frames, fast.alpha, fast.depth), by_sort):
        assert torch.allclose(ours[0], slow.frames, atol=1e-5)
        assert torch.allclose(ours[1], slow.alpha, atol=1e-5)
        assert torch.allclose(ours[2], slow.depth, atol=1e-5)
    return fast


@pytest.mark.parity
def test_renders_equal_pytorch3d(parity):
    rows = compare_render(parity / "point_render.safetensors")
    assert len(rows) == 13
    assert [row for row in rows if not row.is_accepted] == []


@pytest.mark.parametrize(
    ("radius", "points_per_pixel"), [(0.3, 10), (1.44, 10), (2.5, 3), (1.0, 1)]
)
def test_fast_paths_equal_the_slow_twin(radius, points_per_pixel):
    cameras = make_cameras(2, height=9, width=14)
    fast = assert_same(make_cloud(300), cameras, radius, points_per_pixel)
    assert fast.alpha.amax() > 0.5


def test_equal_depths_keep_the_order_of_the_points():
    xyz = [[3.5, 2.5, 1.0], [3.5, 2.5, 1.0], [3.75, 2.5, 1.0]] * 5
    render = assert_same(make_points(xyz), make_unit_camera(), 1.5, points_per_pixel=2)
    assert render.frames[0, :, 2, 3].tolist() == [1.0, 0.0, 0.0]
    # In the neighbour the third point lies nearer to the centre, but two others come first.
    assert render.frames[0, 2, 2, 4] == 0


def test_a_point_on_a_pixel_centre_covers_it_alone_at_radius_one():
    render = assert_same(make_points([3.5, 2.5, 1.0]), make_unit_camera(), 1.0)
    expected = torch.zeros(6, 10)
    expected[2, 3] = 1.0
    assert torch.equal(render.alpha[0, 0], expected)
    assert torch.equal(render.depth[0, 0], expected)


def test_opacity_is_one_minus_squared_distance_and_composites_front_to_back():
    cloud = make_points([[7.0, 5.0, 2.0], [4.25, 2.5, 1.0]])
    render = assert_same(cloud, make_unit_camera(), 1.5)
    near, far = 1 - (0.75 / 1.5) ** 2, 1.0
    red, green, _ = render.frames[0, :, 2, 3].tolist()
    assert green == pytest.approx(near)
    assert red == pytest.approx((1 - near) * far)
    assert render.alpha[0, 0, 2, 3] == pytest.approx(1.0)
    # The nearer point weighs 0.75 and the farther 0.25.
    assert render.depth[0, 0, 2, 3] == 1.0


def test_points_behind_the_camera_are_not_drawn():
    cloud = make_points([[-3.5, -2.5, -1.0], [3.5, 2.5, 0.0]])
    render = assert_same(cloud, make_unit_camera(), 1.5)
    assert render.alpha.amax() == 0


def test_an_empty_cloud_gives_black():
    render = assert_same(make_points([]), make_cameras(2, 5, 7), 1.5)
    assert render.frames.shape == (2, 3, 5, 7)
    assert render.frames.amax() == 0


def test_frames_do_not_depend_on_the_number_of_threads():
    cameras, cloud = make_cameras(5, height=9, width=14), make_cloud(300)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    alone = render_points(cloud, cameras, radius_px=1.5)
    torch.set_num_threads(3)
    together = render_points(cloud, cameras, radius_px=1.5)
    torch.set_num_threads(threads)
    assert torch.equal(alone.frames, together.frames)


def test_sorted_path_is_the_same_in_chunks(monkeypatch):
    cameras, cloud = make_cameras(5, height=9, width=14), make_cloud(300)
    whole = render_sorted(cloud, cameras, 1.5)
    monkeypatch.setattr("fvgen_recon.render.point_torch._MAX_CANDIDATES", 2 * 300 * 9)
    parts = render_sorted(cloud, cameras, 1.5)
    assert torch.equal(whole[0], parts[0])


def test_nearest_points_equal_the_slow_twin():
    cameras, cloud = make_cameras(2, height=9, width=14), make_cloud(300)
    slow = find_fragments(cloud, cameras, radius=1.5, points_per_pixel=4)
    fast = nearest_points(
        cloud.xyz, projection_matrices(cameras), size=(9, 14), radius=1.5, points_per_pixel=4
    )
    assert torch.equal(fast.point, slow.point)
    assert torch.allclose(fast.depth, slow.depth)
    hit = slow.point >= 0
    assert torch.allclose(fast.squared_distance[hit], slow.squared_distance[hit], atol=1e-6)


def test_radius_in_ndc_counts_in_halves_of_the_shorter_side():
    assert disk_radius(make_cameras(2, 288, 512)) == pytest.approx(1.44)
    assert disk_radius(make_cameras(2, 512, 288), radius_ndc=0.05) == pytest.approx(7.2)
    assert disk_radius(make_cameras(2, 288, 512), radius_px=2.0) == 2.0


def test_nonsense_is_refused():
    cameras, cloud = make_cameras(2), make_cloud(3)
    with pytest.raises(InputError, match="radius"):
        render_points(cloud, cameras, radius_px=0.0)
    with pytest.raises(InputError, match="points_per_pixel"):
        render_points(cloud, cameras, points_per_pixel=0)


@pytest.mark.gpu
def test_gpu_equals_cpu():
    cameras, cloud = make_cameras(4, height=60, width=96), make_cloud(20000)
    ours = render_points(cloud.to("cuda"), cameras.to("cuda"), radius_px=1.5)
    reference = render_points(cloud, cameras, radius_px=1.5)
    assert torch.allclose(ours.frames.cpu(), reference.frames, atol=1e-4)
    assert torch.allclose(ours.alpha.cpu(), reference.alpha, atol=1e-4)
