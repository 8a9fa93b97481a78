import logging

import numpy as np
import pytest
import torch
from PIL import Image
from scene_folder import write_photo

from fvgen_recon.errors import InputError
from fvgen_recon.io.image import write_image
from fvgen_recon.io.scenes import load_capture, load_scene
from fvgen_recon.render.procedural import arc_cameras, random_scene, render_procedural

pytest.importorskip("pycolmap")


@pytest.fixture(scope="module")
def room(tmp_path_factory):
    """Photos of a rendered room, the first two stored on their sides, with their true cameras."""
    folder = tmp_path_factory.mktemp("room")
    cameras = arc_cameras([-16.0, -8.0, 0.0, 8.0, 16.0], radius=3.2, height=240, width=320)
    photos = render_procedural(random_scene(3, num_solids=5), cameras, supersample=1).images
    for index, photo in enumerate(photos):
        write_image(folder / f"{index}.png", photo)
    exif = Image.Exif()
    exif[0x0112] = 6
    for index in (0, 1):
        with Image.open(folder / f"{index}.png") as image:
            image.transpose(Image.Transpose.ROTATE_90).save(folder / f"{index}.png", exif=exif)
    return folder, cameras, photos


def test_photos_get_the_poses_they_were_taken_from(room, tmp_path, caplog):
    folder, cameras, photos = room
    before = sorted(path.name for path in folder.iterdir())
    with caplog.at_level(logging.INFO):
        capture = load_capture(folder, cache=tmp_path)
    assert sorted(path.name for path in folder.iterdir()) == before
    assert (capture.format, capture.names) == ("photos", tuple(before))
    assert "5 of 5 photos have one" in caplog.text
    ours = torch.stack([camera.c2w for camera in capture.cameras])
    true = cameras.c2w
    turn = ours[:, :3, :3].mT @ ours[:1, :3, :3]
    assert float((turn - true[:, :3, :3].mT @ true[:1, :3, :3]).abs().max()) < 0.02
    ratio = torch.pdist(ours[:, :3, 3]) / torch.pdist(true[:, :3, 3])
    assert float(ratio.std() / ratio.mean()) < 0.03
    scene = load_scene(capture, (0, 4))
    assert float((scene.images - photos[[0, 4]]).abs().mean()) < 0.02
    assert scene.points is not None

    caplog.clear()
    with caplog.at_level(logging.INFO):
        again = load_capture(folder, cache=tmp_path)
    assert "finding features" not in caplog.text
    for first, second in zip(capture.cameras, again.cameras, strict=True):
        assert torch.equal(first.c2w, second.c2w)


def test_photos_of_formats_that_colmap_does_not_know(room, tmp_path):
    photos = room[2]
    for index, photo in enumerate(photos):
        pixels = (photo * 255).round().byte().permute(1, 2, 0).contiguous().numpy()
        ending = "webp" if index else "jpg"  # One says that it is a JPEG.
        (tmp_path / "photos").mkdir(exist_ok=True)
        path = tmp_path / "photos" / f"{index}.{ending}"
        Image.fromarray(pixels).save(path, format="WEBP", lossless=True)
    capture = load_capture(tmp_path / "photos", cache=tmp_path / "cache")
    assert len(capture) == len(photos)
    scene = load_scene(capture, (0, 4))
    assert float((scene.images - photos[[0, 4]]).abs().mean()) < 0.02


def test_hidden_files_and_folders_are_no_photos(tmp_path):
    write_photo(tmp_path / "x.png")
    (tmp_path / "._x.png").write_bytes(b"what a Mac leaves")
    (tmp_path / "y.png").mkdir()
    with pytest.raises(InputError, match=r"1 photo\(s\) were found"):
        load_capture(tmp_path, cache=tmp_path / "cache")


def test_a_cache_that_is_a_file(tmp_path):
    for name in ("x.png", "y.png"):
        write_photo(tmp_path / "photos" / name)
    (tmp_path / "cache").write_text("mine")
    with pytest.raises(InputError, match=r"is a file; name another.*XDG_CACHE_HOME"):
        load_capture(tmp_path / "photos", cache=tmp_path / "cache")


def test_photos_that_show_nothing_in_common(tmp_path):
    for index in range(3):
        grey = np.full((48, 64, 3), 60 * index + 40, dtype=np.uint8)
        (tmp_path / "photos").mkdir(exist_ok=True)
        Image.fromarray(grey).save(tmp_path / "photos" / f"{index}.png")
    with pytest.raises(InputError, match=r"3 photos in .* could not be connected"):
        load_capture(tmp_path / "photos", cache=tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def test_one_photo(tmp_path):
    write_photo(tmp_path / "images" / "x.png")
    with pytest.raises(InputError, match=r"1 photo\(s\) were found"):
        load_capture(tmp_path, cache=tmp_path)


def test_a_truncated_photo_is_named(tmp_path):
    for name in ("x.png", "y.png"):
        write_photo(tmp_path / name)
    content = (tmp_path / "y.png").read_bytes()
    (tmp_path / "y.png").write_bytes(content[:500])
    with pytest.raises(InputError, match=r"y\.png cannot be read"):
        load_capture(tmp_path, cache=tmp_path / "cache")
    assert not (tmp_path / "cache").exists()
