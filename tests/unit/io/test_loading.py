import weakref
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from scene_folder import HEIGHT, WIDTH, read_meta, write_meta, write_photo, write_scene

from fvgen_recon.errors import InputError
from fvgen_recon.io.image import read_image
from fvgen_recon.io.scenes import (
    load_capture,
    load_frame,
    load_scene,
    loading,
    photo_size,
    view_camera,
)
from fvgen_recon.io.scenes.loading import cover_crop
from fvgen_recon.types import Cameras


def test_native_size_leaves_pixels_and_cameras_alone(tmp_path):
    capture = load_capture(write_scene(tmp_path))
    scene = load_scene(capture, (2, 0))
    assert scene.names == ("images/002.png", "images/000.png")
    assert torch.equal(scene.images[0], read_image(tmp_path / "images/002.png"))
    assert torch.equal(scene.cameras.c2w[0], capture.cameras[2].c2w)
    assert torch.equal(scene.cameras.K[1], capture.cameras[0].K)


@pytest.mark.parametrize(
    "size", [(24, 32), (48, 64), (12, 16), (12, 12), (24, 10), (7, 32), (40, 41), (13, 31)]
)
def test_cover_crop_moves_the_camera_as_it_moves_the_pixels(size):
    x = (torch.arange(32) + 0.5).expand(24, 32) / 32
    y = (torch.arange(24) + 0.5)[:, None].expand(24, 32) / 24
    K = torch.tensor([[30.0, 0, 14.2], [0, 28.0, 13.1], [0, 0, 1]])
    camera = Cameras(c2w=torch.eye(4), K=K, height=24, width=32)
    image, moved = cover_crop(torch.stack([x, y, 0 * x]), camera, *size)
    assert image.shape == (3, *size)
    assert (moved.height, moved.width) == size
    for row, column in [(size[0] // 2, size[1] // 2), (size[0] // 3, size[1] // 4)]:
        ray_x = (column + 0.5 - moved.K[0, 2]) / moved.K[0, 0]
        ray_y = (row + 0.5 - moved.K[1, 2]) / moved.K[1, 1]
        assert float(30 * ray_x + 14.2) / 32 == pytest.approx(
            float(image[0, row, column]), abs=3e-3
        )
        assert float(28 * ray_y + 13.1) / 24 == pytest.approx(
            float(image[1, row, column]), abs=3e-3
        )


def test_cover_crop_by_hand():
    K = torch.tensor([[30.0, 0, 16.0], [0, 30.0, 12.0], [0, 0, 1]])
    camera = Cameras(c2w=torch.eye(4), K=K, height=24, width=32)
    _, moved = cover_crop(torch.zeros(3, 24, 32), camera, 12, 12)
    # Half the size is 12x16; two columns go on each side.
    torch.testing.assert_close(moved.K, torch.tensor([[15.0, 0, 6], [0, 15, 6], [0, 0, 1]]))


def test_cover_crop_averages_what_it_shrinks():
    checks = torch.zeros(3, 64, 64)
    checks[:, ::2, 1::2] = checks[:, 1::2, ::2] = 1
    camera = Cameras(c2w=torch.eye(4), K=torch.eye(3), height=64, width=64)
    small, _ = cover_crop(checks, camera, 8, 8)
    assert float((small - 0.5).abs().max()) < 0.02


def test_photos_of_different_sizes_are_brought_to_the_largest_common_one(tmp_path):
    write_scene(tmp_path)
    meta = read_meta(tmp_path)
    write_photo(tmp_path / "images/001.png", 32, 24)
    meta["frames"][1].update(w=24, h=32, cx=12.0, cy=16.0)
    write_meta(tmp_path, meta)
    scene = load_scene(load_capture(tmp_path), (0, 1))
    assert scene.images.shape == (2, 3, 24, 24)
    assert scene.cameras.K[:, 0, 2].tolist() == [12.0, 12.0]
    assert scene.cameras.K[:, 0, 0].tolist() == [20.0, 20.0]


def test_one_small_photo_that_makes_all_others_small_is_named(tmp_path, caplog):
    capture = load_capture(write_scene(tmp_path))
    write_photo(capture.paths[1], 18, 24)
    assert load_scene(capture, (0, 1, 2)).images.shape == (3, 3, 18, 24)
    assert not caplog.text
    write_photo(capture.paths[1], 6, 8)
    assert load_scene(capture, (0, 1, 2)).images.shape == (3, 3, 6, 8)
    assert "brought to 6x8 (height x width), as small as" in caplog.text
    assert "001.png" in caplog.text
    caplog.clear()
    load_scene(capture, (0, 1, 2), height=6, width=8)
    assert not caplog.text


def test_evenly_scaled_down_photos_rescale_their_intrinsics(tmp_path):
    write_scene(tmp_path)
    write_photo(tmp_path / "images/000.png", 6, 8)
    capture = load_capture(tmp_path)
    _, camera = load_frame(capture, 0)
    assert photo_size(capture, 0) == (6, 8)
    torch.testing.assert_close(camera.K, torch.tensor([[5.0, 0, 4], [0, 5, 3], [0, 0, 1]]))


@pytest.mark.parametrize("size", [(24, 30), (12, 20), (48, 64), (32, 32)])
def test_photos_of_another_shape_or_larger_are_refused(tmp_path, size):
    write_scene(tmp_path)
    write_photo(tmp_path / "images/000.png", *size)
    with pytest.raises(InputError, match=rf"000\.png is {size[0]}x{size[1]}.* are for 24x32"):
        load_scene(load_capture(tmp_path), (0, 1))


def test_exif_turns_a_photo_only_where_its_intrinsics_ask_for_it(tmp_path):
    write_scene(tmp_path)
    exif = Image.Exif()
    exif[0x0112] = 6
    stored = np.zeros((HEIGHT, WIDTH, 3), dtype=np.uint8)
    stored[0, 0] = 255
    Image.fromarray(stored).save(tmp_path / "images/000.png", exif=exif)
    Image.fromarray(stored.transpose(1, 0, 2)).save(tmp_path / "images/001.png", exif=exif)
    capture = load_capture(tmp_path)
    as_stored, turned = load_frame(capture, 0)[0], load_frame(capture, 1)[0]
    assert as_stored.shape == turned.shape == (3, HEIGHT, WIDTH)
    assert float(as_stored[0, 0, 0]) == 1.0
    assert float(turned[0, 0, -1]) == 1.0
    with pytest.raises(InputError, match="32x24"):
        load_frame(replace(capture, is_upright=True), 0)


@pytest.mark.parametrize("size", [(24, 32), (12, 12), (10, 32)])
@pytest.mark.parametrize("k1", [0.0, 0.2])
def test_view_camera_is_the_loaded_camera_without_opening_the_photo(tmp_path, size, k1):
    capture = load_capture(write_scene(tmp_path, k1=k1))
    scene = load_scene(capture, (0, 1), height=size[0], width=size[1])
    camera = view_camera(capture, 1, (HEIGHT, WIDTH), height=size[0], width=size[1])
    torch.testing.assert_close(camera.K, scene.cameras.K[1])
    assert (camera.height, camera.width) == size


def test_large_photos_are_not_in_memory_all_at_once(tmp_path, monkeypatch):
    opened, alive = [], []

    def watched(*args):
        alive.append(sum(photo() is not None for photo in opened))
        image, camera = load_frame(*args)
        opened.append(weakref.ref(image))
        return image, camera

    monkeypatch.setattr(loading, "load_frame", watched)
    scene = load_scene(load_capture(write_scene(tmp_path)), (0, 1, 2), height=12, width=16)
    assert scene.images.shape == (3, 3, 12, 16)
    assert max(alive) <= 1  # The one before may go only when the next has come.


def test_no_views_is_an_error(tmp_path):
    with pytest.raises(InputError, match="No input views"):
        load_scene(load_capture(write_scene(tmp_path)), ())
