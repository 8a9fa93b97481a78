import itertools
import json
from dataclasses import replace

import pytest
import torch
from factories import make_cloud, make_scene

from fvgen_recon.errors import InputError
from fvgen_recon.geometry.conventions import opencv_to_opengl
from fvgen_recon.geometry.rigid import look_at
from fvgen_recon.trajectory import PLANNERS, make_planner
from fvgen_recon.trajectory.between import EvenPlanner, InterpolatePlanner
from fvgen_recon.trajectory.camera_file import FilePlanner, read_camera_path
from fvgen_recon.trajectory.pose import pose_distances
from fvgen_recon.trajectory.support import SupportPlanner, viewing_distance
from fvgen_recon.types import Cameras, PointCloud, Scene


def see_everything(camera):
    return 1.0


@pytest.fixture
def camera_file(tmp_path):
    """A nerfstudio camera path of 10 cameras beside the scene's arc."""
    cameras = make_scene(10).cameras
    rows = [
        {"camera_to_world": opencv_to_opengl(c.c2w).flatten().tolist(), "fov": 50.0, "aspect": 1.5}
        for c in cameras
    ]
    path = tmp_path / "camera_path.json"
    content = {"camera_type": "perspective", "render_height": 64, "render_width": 96}
    path.write_text(json.dumps({**content, "camera_path": rows}))
    return path


@pytest.fixture(params=sorted(PLANNERS))
def planner(request, camera_file, monkeypatch):
    monkeypatch.chdir(camera_file.parent)
    return PLANNERS[request.param]()


def make_odd_scene(kind):
    """Scenes whose cameras are awkward to interpolate between."""
    scene = make_scene(3)
    c2w = scene.cameras.c2w.clone()
    if kind == "identical":
        c2w[:] = c2w[0]
    elif kind == "parallel":
        c2w[:, :3, :3] = torch.eye(3)
        c2w[:, :3, 3] = torch.tensor([[0.0, 0, 0], [1.0, 0, 0], [2.0, 0, 0]])
    elif kind == "opposite":
        position = torch.tensor([[0.0, 0, -3], [0.0, 0, 3], [3.0, 0, 0]])
        c2w = look_at(position, torch.zeros(3, 3), torch.tensor([0.0, -1.0, 0.0]))
    elif kind == "upside-down":
        c2w[1, :3, :3] = c2w[0, :3, :3] @ torch.diag(torch.tensor([-1.0, -1.0, 1.0]))
    return replace(scene, cameras=replace(scene.cameras, c2w=c2w))


def test_clips_have_the_asked_length_and_input_views_at_their_ends(planner):
    scene = make_scene(5)
    for num_frames in (2, 3, 16):
        for clip in planner.plan(scene, num_frames, see_everything):
            assert len(clip) == num_frames
            assert [anchor.frame for anchor in clip.anchors] == [0, num_frames - 1]
            for anchor in clip.anchors:
                view = scene.cameras[anchor.view]
                assert torch.allclose(clip.cameras[anchor.frame].c2w, view.c2w, atol=1e-6)
                assert torch.allclose(clip.cameras[anchor.frame].K, view.K, atol=1e-6)
            assert (clip.cameras.height, clip.cameras.width) == (32, 48)


def test_neighbouring_clips_share_their_end_frames(planner):
    clips = planner.plan(make_scene(4), 4, see_everything)
    assert len(clips) == 3
    for first, second in itertools.pairwise(clips):
        assert first.anchors[-1].view == second.anchors[0].view
        assert torch.equal(first.cameras.c2w[-1], second.cameras.c2w[0])


@pytest.mark.parametrize("kind", ["identical", "parallel", "opposite", "upside-down"])
def test_awkward_cameras_give_finite_rigid_poses(planner, kind):
    # `Cameras` itself refuses poses that are not finite and rigid.
    for clip in planner.plan(make_odd_scene(kind), 9, see_everything):
        rotation = clip.cameras.c2w[:, :3, :3]
        assert torch.allclose(rotation @ rotation.mT, torch.eye(3).expand(9, 3, 3), atol=1e-5)


def test_plans_come_from_the_chosen_cameras_alone(planner):
    scene = make_scene(4)
    cloud = make_cloud(10)
    other = Scene(
        images=torch.zeros_like(scene.images),
        cameras=scene.cameras,
        names=("a", "b", "c", "d"),
        points=PointCloud(
            xyz=cloud.xyz * 100, rgb=cloud.rgb, confidence=cloud.confidence, view=cloud.view
        ),
    )
    for first, second in zip(
        planner.plan(scene, 5, see_everything), planner.plan(other, 5, see_everything), strict=True
    ):
        assert torch.equal(first.cameras.c2w, second.cameras.c2w)
        assert first.anchors == second.anchors


@pytest.mark.parametrize("name", ["even", "interpolate", "support"])
def test_one_view_is_too_few(name):
    with pytest.raises(InputError, match=r"at least two views: 1 came.*Choose more"):
        PLANNERS[name]().plan(make_scene(1), 8, see_everything)


def test_even_steps_are_even_and_interpolated_ones_are_the_teachers():
    scene = make_scene(2)
    even = EvenPlanner().plan(scene, 9, see_everything)[0].cameras
    steps = pose_distances(even, even, unit=1.0).diagonal(1)
    assert torch.allclose(steps, steps.mean().expand_as(steps), rtol=1e-3)
    teacher = InterpolatePlanner().plan(scene, 9, see_everything)[0].cameras
    gaps = teacher.position.diff(dim=0).norm(dim=-1)
    # The last step is twice the others.
    assert torch.allclose(gaps[:-1], gaps[:1].expand(7), rtol=1e-3)
    assert torch.allclose(gaps[-1], 2 * gaps[0], rtol=1e-3)


def test_support_takes_the_most_novel_pose_under_the_bound():
    scene = make_scene(2)
    planner = SupportPlanner(max_holes=0.3)
    asked = []

    def support(camera):
        """Holes grow with the height above the arc."""
        asked.append(camera)
        return 1 - float(camera.position[1].abs()) / 2

    (clip,) = planner.plan(scene, 21, support)
    novelty = pose_distances(clip.cameras, scene.cameras, unit=1.0).amin(1)
    highest = clip.cameras.position[:, 1].abs().amax()
    assert len(asked) == 46
    assert highest <= 0.6 + 1e-5
    everywhere = SupportPlanner(max_holes=1.0).plan(scene, 21, support)[0].cameras
    assert everywhere.position[:, 1].abs().amax() > highest
    even = EvenPlanner().plan(scene, 21, support)[0].cameras
    assert novelty.amax() > pose_distances(even, scene.cameras, unit=1.0).amin(1).amax()


def test_without_support_the_best_supported_pose_is_taken():
    scene = make_scene(2)
    middle = EvenPlanner().plan(scene, 3, see_everything)[0].cameras[1]

    def support(camera):
        return 0.2 if torch.allclose(camera.c2w, middle.c2w, atol=1e-5) else 0.1

    (clip,) = SupportPlanner().plan(scene, 5, support)
    even = EvenPlanner().plan(scene, 5, see_everything)[0]
    assert torch.allclose(clip.cameras.c2w, even.cameras.c2w, atol=1e-5)


def test_viewing_distance_is_where_the_axes_meet():
    cameras = make_scene(2).cameras
    assert viewing_distance(cameras[0], cameras[1], 1.0) == pytest.approx(4.0, rel=1e-4)
    parallel = make_odd_scene("parallel").cameras
    assert viewing_distance(parallel[0], parallel[1], 1.5) == 6.0


def test_camera_files_are_read_as_nerfstudio_does(camera_file):
    read = read_camera_path(camera_file, height=40, width=60)
    assert torch.allclose(read.c2w, make_scene(10).cameras.c2w, atol=1e-6)
    # nerfstudio: focal = height / 2 / tan(fov / 2).
    focal = 20 / torch.tan(torch.deg2rad(torch.tensor(25.0)))
    assert torch.allclose(read.K[:, [0, 1], [0, 1]], focal.expand(10, 2))
    assert read.K[0, :2, 2].tolist() == [30.0, 20.0]


def test_a_long_file_becomes_clips_along_it(camera_file):
    scene = make_scene(5)
    clips = FilePlanner(path=camera_file).plan(scene, 4, see_everything)
    assert [[anchor.view for anchor in clip.anchors] for clip in clips] == [[0, 1], [1, 3], [3, 4]]
    path = make_scene(10).cameras
    for clip in clips:
        near = pose_distances(clip.cameras, Cameras(
            c2w=path.c2w, K=path.K, height=32, width=48), unit=1.0)  # fmt: skip
        assert near.amin(1).amax() < 0.15


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{}", "camera_path"),
        ('{"camera_path": []}', "no cameras"),
        ('{"camera_path": [{"camera_to_world": [1, 2], "fov": 50}]}', "2 numbers"),
        ('{"camera_path": [{"fov": 50}]}', "Camera 0"),
        ('{"camera_type": "fisheye", "camera_path": []}', "fisheye"),
        ("not json", "JSON"),
    ],
)
def test_files_that_are_no_camera_paths_are_named(tmp_path, content, message):
    path = tmp_path / "path.json"
    path.write_text(content)
    with pytest.raises(InputError, match=message):
        FilePlanner(path=path).plan(make_scene(2), 4, see_everything)
    with pytest.raises(InputError, match="is not there"):
        FilePlanner(path=tmp_path / "none.json").plan(make_scene(2), 4, see_everything)


def test_the_planner_file_follows_the_file_it_is_given(camera_file):
    assert make_planner("file", camera_file) == FilePlanner(path=camera_file)
    assert make_planner("support") == SupportPlanner()


@pytest.mark.parametrize(
    ("name", "has_path", "sentence"),
    [
        ("magic", False, "no trajectory planner `magic`"),
        ("file", False, "needs a camera path"),
        ("even", True, "needs a camera path"),
        ("file", True, "gone.json was expected"),
    ],
)
def test_planners_that_cannot_be_made(name, has_path, sentence, tmp_path):
    with pytest.raises(InputError, match=sentence):
        make_planner(name, tmp_path / "gone.json" if has_path else None)
