import math

import numpy as np
import pytest
import torch
from factories import make_cameras, make_cloud
from scene_folder import LOOKING_LEFT, read_meta, shifted, write_meta, write_photo, write_scene

from fvgen_recon.errors import InputError
from fvgen_recon.geometry.projection import project_points
from fvgen_recon.io.ply import write_points
from fvgen_recon.io.scenes import load_capture, points_for, write_transforms


def change_frame(folder, index, **changes):
    meta = read_meta(folder)
    meta["frames"][index].update(changes)
    write_meta(folder, meta)
    return folder


def test_a_camera_computed_by_hand(tmp_path):
    capture = load_capture(change_frame(write_scene(tmp_path), 0, transform_matrix=LOOKING_LEFT))
    camera = capture.cameras[0]
    assert camera.position.tolist() == [1, 2, 3]
    assert camera.direction.tolist() == [-1, 0, 0]
    # Ten ahead; then two to the right (world -z) and one up (world y), which is up in the image.
    ahead_and_aside = torch.tensor([[-9.0, 2, 3], [-9, 2, 1], [-9, 3, 3]])
    uv, depth = project_points(ahead_and_aside, camera)
    torch.testing.assert_close(uv, torch.tensor([[16.0, 12], [20, 12], [16, 10]]))
    assert depth.tolist() == [10, 10, 10]


def test_the_world_is_kept_as_it_is(tmp_path):
    changes = {
        "orientation_override": "up",
        "applied_transform": [[0.0, 1, 0, 0], [1, 0, 0, 0], [0, 0, -1, 0]],
        "applied_scale": 3.0,
    }
    capture = load_capture(write_scene(tmp_path, **changes))
    assert [camera.position.tolist() for camera in capture.cameras[:2]] == [[0, 0, 0], [1, 0, 0]]


def test_frames_are_sorted_by_name_with_their_own_intrinsics(tmp_path):
    meta = read_meta(write_scene(tmp_path))
    meta["frames"][3].update(fl_x=44.0, fl_y=45.0, cx=1.0, cy=2.0)
    meta["frames"].reverse()
    write_meta(tmp_path, meta)
    capture = load_capture(tmp_path / "transforms.json")
    assert capture.names == tuple(f"images/{i:03d}.png" for i in range(4))
    assert capture.format == "nerfstudio"
    assert [camera.position[0].item() for camera in capture.cameras] == [0, 1, 2, 3]
    assert capture.cameras[3].K.tolist() == [[44, 0, 1], [0, 45, 2], [0, 0, 1]]


def test_field_of_view_stands_in_for_a_focal_length(tmp_path):
    meta = read_meta(write_scene(tmp_path))
    for key in ("fl_x", "fl_y", "cx", "cy", "w", "h"):
        del meta[key]
    write_meta(tmp_path, {**meta, "camera_angle_x": 2 * math.atan(0.5)})
    K = load_capture(tmp_path).cameras[0].K
    torch.testing.assert_close(K, torch.tensor([[32.0, 0, 16], [0, 32, 12], [0, 0, 1]]))


def test_paths_may_lack_their_ending(tmp_path):
    capture = load_capture(change_frame(write_scene(tmp_path), 0, file_path="./images/000"))
    assert capture.paths[0].name == "000.png"


def test_endings_that_are_left_out_may_be_in_capitals(tmp_path):
    folder = change_frame(write_scene(tmp_path), 0, file_path="images/000")
    (folder / "images" / "000.png").rename(folder / "images" / "000.PNG")
    assert load_capture(folder).paths[0].name == "000.PNG"


@pytest.mark.parametrize(
    ("changes", "is_fisheye", "coefficients"),
    [
        ({"k1": 0.1, "k2": 0.2, "k3": 0.3, "p1": 0.4, "p2": 0.5}, False,
         (0.1, 0.2, 0.4, 0.5, 0.3, 0, 0, 0)),
        ({"camera_model": "OPENCV_FISHEYE", "k1": 0.1, "k2": 0.2, "k3": 0.3, "k4": 0.4}, True,
         (0.1, 0.2, 0.3, 0.4)),
        ({"is_fisheye": True, "k1": 0.1}, True, (0.1, 0, 0, 0)),
        ({"camera_model": "FULL_OPENCV", "k1": 0.1, "k4": 0.4, "k5": 0.5, "k6": 0.6}, False,
         (0.1, 0, 0, 0, 0, 0.4, 0.5, 0.6)),
        ({"distortion_params": [0.1, 0.2, 0.3, 0.0, 0.4, 0.5]}, False,
         (0.1, 0.2, 0.4, 0.5, 0.3, 0, 0, 0)),
        ({"camera_model": "PINHOLE"}, False, (0.0,) * 8),
    ],
)  # fmt: skip
def test_lenses(tmp_path, changes, is_fisheye, coefficients):
    lens = load_capture(write_scene(tmp_path, **changes)).lenses[0]
    assert (lens.is_fisheye, lens.coefficients) == (is_fisheye, coefficients)


def test_points_come_from_the_ply(tmp_path):
    write_scene(tmp_path, ply_file_path="points.ply")
    write_points(tmp_path / "points.ply", make_cloud(20))
    capture = load_capture(tmp_path)
    assert capture.points is not None
    torch.testing.assert_close(capture.points.xyz, make_cloud(20).xyz)
    assert capture.tracks is None
    assert points_for(capture, (0, 1)) is None


def write_tracks(folder, **changes):
    arrays = {
        "xyz": np.array([[0.0, 0, -5], [1, 0, -5], [2, 0, -5]]),
        "rgb": np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255]], dtype=np.uint8),
        "obs_point": np.array([0, 0, 1, 1, 2, 2]),
        "obs_frame": np.array([0, 1, 0, 3, 2, 2]),
        "obs_uv": np.arange(12.0).reshape(6, 2),
    }
    np.savez(folder / "tracks.npz", **{**arrays, **changes})


def test_only_points_that_two_chosen_views_see_are_kept(tmp_path):
    write_tracks(write_scene(tmp_path))
    capture = load_capture(tmp_path)
    kept = points_for(capture, (0, 1, 2))
    assert kept is not None
    assert kept.xyz.tolist() == [[0, 0, -5]]
    assert (kept.rgb.tolist(), kept.confidence.tolist(), kept.view.tolist()) == (
        [[1, 0, 0]],
        [1],
        [-1],
    )
    both = points_for(capture, (0, 1, 2, 3))
    assert both is not None
    assert len(both) == 2  # one view sees the third point twice
    assert points_for(capture, (2,)) is None


def test_tracks_follow_frames_that_are_sorted(tmp_path):
    meta = read_meta(write_scene(tmp_path))
    meta["frames"].reverse()
    write_meta(tmp_path, meta)
    write_tracks(tmp_path)
    tracks = load_capture(tmp_path).tracks
    assert tracks is not None
    assert tracks.frame.tolist() == [3, 2, 3, 0, 1, 1]


def test_written_scenes_come_back(tmp_path, rng):
    cameras = make_cameras(3, 24, 32)
    names = tuple(f"frames/{i}.png" for i in range(3))
    for name in names:
        write_photo(tmp_path / name)
    write_points(tmp_path / "p.ply", make_cloud(5))
    write_transforms(tmp_path, cameras, names, points="p.ply", extras=({"a": 1}, {}, {}))
    capture = load_capture(tmp_path)
    assert capture.names == names
    for index in range(3):
        torch.testing.assert_close(capture.cameras[index].c2w, cameras.c2w[index])
        torch.testing.assert_close(capture.cameras[index].K, cameras.K[index])
    assert capture.points is not None
    assert len(capture.points) == 5
    assert read_meta(tmp_path)["frames"][0]["a"] == 1


def test_written_poses_are_opengl(tmp_path):
    eye = torch.eye(4)[None]
    cameras = make_cameras(1, 24, 32)
    cameras = type(cameras)(c2w=eye, K=cameras.K, height=24, width=32)
    write_transforms(tmp_path, cameras, ("x.png",))
    expected = [[1, 0, 0, 0], [0, -1, 0, 0], [0, 0, -1, 0], [0, 0, 0, 1]]
    assert read_meta(tmp_path)["frames"][0]["transform_matrix"] == expected


def test_nerfstudio_itself_reads_what_is_written(tmp_path):
    dataparser = pytest.importorskip("nerfstudio.data.dataparsers.nerfstudio_dataparser")
    cameras = make_cameras(3, 24, 32)
    names = tuple(f"{i}.png" for i in range(3))
    for name in names:
        write_photo(tmp_path / name)
    write_transforms(tmp_path, cameras, names)
    config = dataparser.NerfstudioDataParserConfig(
        data=tmp_path, center_method="none", auto_scale_poses=False, eval_mode="all",
        downscale_factor=1, load_3D_points=False,
    )  # fmt: skip
    read = config.setup().get_dataparser_outputs(split="train").cameras
    torch.testing.assert_close(read.camera_to_worlds[:, :3, 3], cameras.position)
    torch.testing.assert_close(-read.camera_to_worlds[:, :3, 2], cameras.direction)
    torch.testing.assert_close(read.cx[:, 0], cameras.K[:, 0, 2])


BAD_POSES = {
    "four by four|4x4": [[1.0, 2], [3, 4]],
    "4x4": "none",
    "must be rigid": [[2.0, 0, 0, 0], [0, 2, 0, 0], [0, 0, 2, 0], [0, 0, 0, 1]],
    "must be rigid.*part mirrors": [[-1.0, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]],
    "must be finite": [[float("nan"), 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]],
    "finite": [[1.0, 0, 0, float("inf")], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]],
}


@pytest.mark.parametrize("sentence", BAD_POSES)
def test_bad_poses_name_their_frame(tmp_path, sentence):
    change_frame(write_scene(tmp_path), 1, transform_matrix=BAD_POSES[sentence])
    with pytest.raises(InputError, match=f"001.png.*({sentence})"):
        load_capture(tmp_path)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"frames": []}, "No images are listed"),
        ({"frames": None}, "has no list of `frames`"),
        ({"frames": [{"transform_matrix": shifted(0)}]}, "has no `file_path`"),
        ({"frames": [3]}, "has no `file_path`"),
        ({"frames": [{"file_path": "images/000.png"}]}, "needs a 4x4"),
        ({"fl_x": "long"}, "needs a finite number for `fl_x`: 'long' came"),
        ({"fl_x": -3.0}, "Focal lengths must be positive"),
        ({"cx": float("nan")}, "needs a finite number for `cx`: nan came"),
        ({"w": float("nan")}, "needs a finite number for `w`: nan came"),
        ({"h": float("inf")}, "needs a finite number for `h`: inf came"),
        ({"k1": float("nan")}, "needs a finite number for `k1`: nan came"),
        ({"w": 0}, "at least 1x1"),
        ({"k4": 0.1}, "k4, k5 or k6"),
        ({"camera_model": "EQUIRECTANGULAR"}, "camera model EQUIRECTANGULAR"),
        ({"distortion_params": [1, 2]}, "six `distortion_params`"),
        ({"train_filenames": "all"}, "needs a list of file paths for `train_filenames`"),
        ({"test_filenames": ["9.png"]}, r"`test_filenames` of .* name 9\.png, which is no frame"),
        ({"ply_file_path": "gone.ply"}, r"gone\.ply, which is not there"),
    ],
)
def test_bad_values_get_one_sentence(tmp_path, changes, sentence):
    with pytest.raises(InputError, match=sentence) as caught:
        load_capture(write_scene(tmp_path, **changes))
    assert "\n" not in str(caught.value)
    assert str(caught.value).count("Frame ") <= 1


def moved(folder, offset):
    meta = read_meta(folder)
    for frame in meta["frames"]:
        frame["transform_matrix"][0][3] += offset
    write_meta(folder, meta)
    return folder


def test_map_coordinates_that_single_precision_cannot_tell_apart(tmp_path):
    assert len(load_capture(moved(write_scene(tmp_path), 1e4))) == 4
    with pytest.raises(InputError, match=r"3 units of each other and 5\.01e\+06 from the"):
        load_capture(moved(tmp_path, 5e6))


def test_cameras_at_one_place_are_no_matter_of_precision(tmp_path):
    meta = read_meta(write_scene(tmp_path))
    for frame in meta["frames"]:
        frame["transform_matrix"][0][3] = 7e5
    write_meta(tmp_path, meta)
    assert len(load_capture(tmp_path)) == 4


@pytest.mark.parametrize("angle", [0, -0.5, 3.2])
def test_fields_of_view_that_no_pinhole_has(tmp_path, angle):
    meta = read_meta(write_scene(tmp_path))
    del meta["fl_x"], meta["fl_y"]
    write_meta(tmp_path, {**meta, "camera_angle_x": angle})
    with pytest.raises(InputError, match="`camera_angle_x` between 0 and pi"):
        load_capture(tmp_path)


def test_missing_intrinsics(tmp_path):
    meta = read_meta(write_scene(tmp_path))
    del meta["fl_x"], meta["fl_y"]
    write_meta(tmp_path, meta)
    with pytest.raises(InputError, match="has no intrinsics"):
        load_capture(tmp_path)


def test_sizes_that_nothing_tells(tmp_path):
    meta = read_meta(write_scene(tmp_path))
    del meta["w"]
    write_meta(tmp_path, meta)
    for path in (tmp_path / "images").iterdir():
        path.write_text("junk")
    with pytest.raises(InputError, match="states no `w` and `h`"):
        load_capture(tmp_path)


def test_a_frame_named_twice(tmp_path):
    change_frame(write_scene(tmp_path), 1, file_path="images/000.png")
    with pytest.raises(InputError, match=r"000\.png more than once"):
        load_capture(tmp_path)


@pytest.mark.parametrize(
    "changes",
    [
        {"obs_point": np.array([0, 0, 1, 1, 2, 9])},
        {"obs_frame": np.array([0, 1, 0, 4, 2, 2])},
        {"obs_frame": np.array([0, 1, 0, -1, 2, 2])},
    ],
)
def test_tracks_that_point_nowhere(tmp_path, changes):
    write_tracks(write_scene(tmp_path), **changes)
    with pytest.raises(InputError, match="points or frames that do not exist"):
        load_capture(tmp_path)


def test_damaged_tracks(tmp_path):
    write_tracks(write_scene(tmp_path))
    content = (tmp_path / "tracks.npz").read_bytes()
    (tmp_path / "tracks.npz").write_bytes(content[: len(content) // 2])
    with pytest.raises(InputError, match=r"tracks\.npz cannot be read as tracks"):
        load_capture(tmp_path)


def test_masks_are_not_read_and_that_is_said_once(tmp_path, caplog):
    meta = read_meta(write_scene(tmp_path, 3))
    load_capture(tmp_path)
    assert not caplog.messages
    for frame in meta["frames"][:2]:
        frame["mask_path"] = "masks/none.png"
    write_meta(tmp_path, meta)
    load_capture(tmp_path)
    assert [("2 frames" in m, "masks" in m) for m in caplog.messages] == [(True, True)]
