import shutil

import numpy as np
import pytest
import torch
from scene_folder import CAMERAS_TXT, IMAGES_TXT, POINTS_TXT, write_colmap, write_photo

from fvgen_recon.errors import InputError
from fvgen_recon.geometry.projection import project_points
from fvgen_recon.io.scenes import load_capture, load_scene, points_for
from fvgen_recon.io.scenes.undistortion import distort

pycolmap = pytest.importorskip("pycolmap")

MODELS = {
    "SIMPLE_PINHOLE": (21, 15, 13),
    "PINHOLE": (21, 19, 15, 13),
    "SIMPLE_RADIAL": (21, 15, 13, -0.1),
    "RADIAL": (21, 15, 13, -0.1, 0.02),
    "OPENCV": (21, 19, 15, 13, -0.1, 0.02, 0.01, -0.02),
    "FULL_OPENCV": (21, 19, 15, 13, -0.1, 0.02, 0.01, -0.02, 0.03, 0.04, 0.05, 0.06),
    "SIMPLE_RADIAL_FISHEYE": (21, 15, 13, -0.1),
    "RADIAL_FISHEYE": (21, 15, 13, -0.1, 0.02),
    "OPENCV_FISHEYE": (21, 19, 15, 13, -0.1, 0.02, 0.01, -0.02),
    "SIMPLE_FISHEYE": (21, 15, 13),
    "FISHEYE": (21, 19, 15, 13),
}


def as_binary(folder):
    model = folder / "sparse" / "0"
    reconstruction = pycolmap.Reconstruction(str(model))
    for path in model.iterdir():
        path.unlink()
    reconstruction.write_binary(str(model))
    return folder


def test_a_camera_computed_by_hand(tmp_path):
    capture = load_capture(write_colmap(tmp_path))
    assert (capture.format, capture.names) == ("colmap", ("a.png", "b.png"))
    camera = capture.cameras[1]
    torch.testing.assert_close(camera.position, torch.tensor([3.0, -2, -1]))
    torch.testing.assert_close(camera.direction, torch.tensor([-1.0, 0, 0]))
    uv, depth = project_points(torch.tensor([[-7.0, -2, -1], [-7, -1, 1]]), camera)
    torch.testing.assert_close(uv, torch.tensor([[16.0, 12], [20, 14]]))
    torch.testing.assert_close(depth, torch.tensor([10.0, 10]))
    assert load_scene(capture, (0, 1)).images.shape == (2, 3, 24, 32)


def observations(capture):
    """Observations by position of the point, whatever the order of points is."""
    assert capture.points is not None
    assert capture.tracks is not None
    places = capture.points.xyz[capture.tracks.point].tolist()
    return sorted(
        zip(places, capture.tracks.frame.tolist(), capture.tracks.uv.tolist(), strict=True)
    )


def test_tracks_by_hand(tmp_path):
    capture = load_capture(write_colmap(tmp_path))
    assert observations(capture) == [
        ([-7, -2, -1], 1, [16, 12]),
        ([-7, -1, 1], 0, [3.5, 4.5]),
        ([-7, -1, 1], 1, [20, 14]),
    ]
    kept = points_for(capture, (0, 1))
    assert kept is not None
    assert kept.xyz.tolist() == [[-7, -1, 1]]
    torch.testing.assert_close(kept.rgb, torch.tensor([[1.0, 0, 0.2]]))
    assert points_for(capture, (1,)) is None


def test_binary_is_text(tmp_path):
    text = load_capture(write_colmap(tmp_path / "text"))
    binary = load_capture(as_binary(write_colmap(tmp_path / "binary")))
    assert binary.names == text.names
    for ours, theirs in zip(text.cameras, binary.cameras, strict=True):
        torch.testing.assert_close(ours.c2w, theirs.c2w)
        torch.testing.assert_close(ours.K, theirs.K)
    assert observations(binary) == observations(text)


@pytest.mark.parametrize("model", MODELS)
def test_every_camera_model_projects_as_colmap_does(tmp_path, model):
    params = MODELS[model]
    line = f"1 {model} 32 24 {' '.join(map(str, params))}\n"
    capture = load_capture(write_colmap(tmp_path, cameras=line))
    camera = pycolmap.Camera(model=model, width=32, height=24, params=params)
    points = np.array([[0.3, -0.2], [-0.5, 0.4], [0.0, 0.1]])
    expected = np.stack([camera.img_from_cam(np.array([*p, 1.0])) for p in points])
    K = capture.cameras[0].K.double().numpy()
    ours = distort(points, capture.lenses[0]) * K[[0, 1], [0, 1]] + K[:2, 2]
    np.testing.assert_allclose(ours, expected, atol=1e-5)


@pytest.mark.parametrize("place", ["sparse/0", "sparse", "colmap/sparse/0", "dense/0/sparse", "."])
def test_usual_places(tmp_path, place):
    write_colmap(tmp_path)
    model = tmp_path / "sparse" / "0"
    target = tmp_path / place
    target.mkdir(parents=True, exist_ok=True)
    for path in list(model.iterdir()):
        path.rename(target / path.name)
    assert len(load_capture(tmp_path)) == 2
    assert len(load_capture(target)) == 2


def test_the_first_of_several_models_is_read_and_the_others_are_told(tmp_path, caplog):
    sparse = write_colmap(tmp_path) / "sparse"
    assert len(load_capture(tmp_path)) == 2
    assert not caplog.text
    shutil.copytree(sparse / "0", sparse / "1")
    assert len(load_capture(tmp_path)) == 2
    assert "number 0 with 2 images is read; to use another (1)" in caplog.text
    shutil.rmtree(sparse / "0")
    caplog.clear()
    capture = load_capture(tmp_path)
    assert (capture.format, len(capture)) == ("colmap", 2)
    assert not caplog.text


@pytest.mark.parametrize("binary", [False, True])
def test_a_model_without_a_file_of_points(tmp_path, binary):
    write_colmap(tmp_path)
    if binary:
        as_binary(tmp_path)
    next((tmp_path / "sparse" / "0").glob("points3D.*")).unlink()
    capture = load_capture(tmp_path)
    assert (capture.format, len(capture), capture.points) == ("colmap", 2, None)


def test_map_coordinates_that_single_precision_cannot_tell_apart(tmp_path):
    images = "1 1 0 0 0 0 0 -5e6 1 a.png\n\n2 1 0 0 0 -1 0 -5e6 1 b.png\n\n"
    write_colmap(tmp_path, images=images)
    with pytest.raises(InputError, match="single precision cannot tell apart"):
        load_capture(tmp_path)


def test_an_unknown_lens(tmp_path):
    write_colmap(tmp_path, cameras="1 FOV 32 24 20 20 16 12 0.5\n")
    with pytest.raises(InputError, match="camera model FOV cannot be undistorted here"):
        load_capture(tmp_path)


def test_no_image_is_there(tmp_path):
    write_colmap(tmp_path)
    for path in (tmp_path / "images").iterdir():
        path.unlink()
    with pytest.raises(InputError, match=r"None of the 2 images.*first is named a\.png"):
        load_capture(tmp_path)


def test_reduced_images_alone_are_found(tmp_path):
    write_colmap(tmp_path)
    shutil.rmtree(tmp_path / "images")
    for name in ("a.png", "b.png"):
        write_photo(tmp_path / "images_4" / name, height=6, width=8)
    for folder in (tmp_path, tmp_path / "sparse" / "0"):
        scene = load_scene(load_capture(folder), (0, 1))
        assert scene.images.shape == (2, 3, 6, 8)
        torch.testing.assert_close(scene.cameras.K[0, 0], torch.tensor([5.0, 0, 4]))


def test_one_image_is_missing(tmp_path):
    write_colmap(tmp_path)
    (tmp_path / "images" / "a.png").unlink()
    capture = load_capture(tmp_path)
    assert [capture.has_photo(0), capture.has_photo(1)] == [False, True]
    with pytest.raises(InputError, match=r"a\.png was expected"):
        load_scene(capture, (0, 1))


def test_poses_that_are_not_finite(tmp_path):
    write_colmap(tmp_path, images=IMAGES_TXT.replace("1 2 3 1 b.png", "nan 2 3 1 b.png"))
    with pytest.raises(InputError, match=r"Image b\.png of the COLMAP model.*finite"):
        load_capture(tmp_path)


@pytest.mark.parametrize("name", ["cameras", "images", "points3D"])
@pytest.mark.parametrize("share", [0.0, 0.4, 0.9])
def test_truncated_binary_models(tmp_path, name, share):
    path = as_binary(write_colmap(tmp_path)) / "sparse" / "0" / f"{name}.bin"
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(InputError, match=rf"{name}\.bin is truncated or not a COLMAP") as caught:
        load_capture(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"cameras": "1 PINHOLE 32 24 20 20 16\n"}, r"cameras\.txt is truncated.*3 parameters"),
        ({"cameras": "1 PINHOLE wide 24 20 20 16 12\n"}, r"cameras\.txt is truncated"),
        ({"cameras": CAMERAS_TXT.replace("1 ", "2 ", 1)}, r"the camera 1, which it does not have"),
        ({"images": IMAGES_TXT[:60]}, r"images\.txt is truncated"),
        ({"points": "7 -7 -1\n"}, r"points3D\.txt is truncated"),
        ({"points": POINTS_TXT.replace("-7", "nan")}, r"Points of the COLMAP model.*finite"),
    ],
)
def test_damaged_texts(tmp_path, changes, sentence):
    with pytest.raises(InputError, match=sentence):
        load_capture(write_colmap(tmp_path, **changes))


def test_a_text_model_without_points(tmp_path):
    images = "\n".join(line if "png" in line else "" for line in IMAGES_TXT.splitlines()) + "\n"
    capture = load_capture(write_colmap(tmp_path, images=images, points=""))
    assert (capture.points, capture.tracks) == (None, None)


def test_the_texts_of_the_fixture_agree():
    assert CAMERAS_TXT.split()[1] == "PINHOLE"
    assert POINTS_TXT.count("\n") == 2
