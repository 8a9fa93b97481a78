import numpy as np
import pytest
import torch
from PIL import Image
from scene_folder import write_photo

from fvgen_recon.errors import InputError
from fvgen_recon.io.image import image_size, is_turned, read_image, write_image


def test_png_comes_back_to_the_byte(tmp_path, rng):
    image = torch.randint(0, 256, (3, 5, 7), generator=rng) / 255
    write_image(tmp_path / "x.png", image)
    torch.testing.assert_close(read_image(tmp_path / "x.png"), image)
    assert image_size(tmp_path / "x.png") == (5, 7)


def test_channels_and_rows_are_where_they_belong(tmp_path):
    pixels = np.zeros((2, 3, 3), dtype=np.uint8)
    pixels[1, 2] = (255, 51, 0)
    Image.fromarray(pixels).save(tmp_path / "x.png")
    image = read_image(tmp_path / "x.png")
    torch.testing.assert_close(image[:, 1, 2], torch.tensor([1.0, 0.2, 0.0]))
    assert float(image.sum()) == pytest.approx(1.2)


def test_jpeg_stays_near(tmp_path):
    image = torch.linspace(0, 1, 32).expand(3, 16, 32).contiguous()
    write_image(tmp_path / "x.jpg", image)
    assert float((read_image(tmp_path / "x.jpg") - image).abs().max()) < 0.02


def test_exif_orientation_turns_the_image_unless_told_not_to(tmp_path):
    pixels = np.zeros((2, 3, 3), dtype=np.uint8)
    pixels[0, 0] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned by 90 degrees clockwise
    Image.fromarray(pixels).save(tmp_path / "x.png", exif=exif)
    upright = read_image(tmp_path / "x.png")
    assert upright.shape == (3, 3, 2)
    assert float(upright[0, 0, 1]) == 1.0
    assert image_size(tmp_path / "x.png") == (3, 2)
    stored = read_image(tmp_path / "x.png", is_upright=False)
    assert stored.shape == (3, 2, 3)
    assert float(stored[0, 0, 0]) == 1.0
    assert image_size(tmp_path / "x.png", is_upright=False) == (2, 3)
    assert is_turned(tmp_path / "x.png")


def test_sixteen_bit_grey_keeps_its_scale(tmp_path):
    Image.fromarray(np.full((2, 2), 32768, dtype=np.uint16)).save(tmp_path / "x.png")
    torch.testing.assert_close(read_image(tmp_path / "x.png"), torch.full((3, 2, 2), 32768 / 65535))


def test_grey_and_transparent_images_become_rgb(tmp_path):
    for mode in ("L", "RGBA", "P", "1", "CMYK"):
        path = tmp_path / ("x.jpg" if mode == "CMYK" else "x.png")
        Image.new(mode, (4, 2)).save(path)
        assert read_image(path).shape == (3, 2, 4)


@pytest.mark.parametrize("ending", ["png", "jpg", "webp", "tiff", "bmp"])
def test_truncated_images_are_named(tmp_path, ending):
    path = tmp_path / f"x.{ending}"
    write_photo(path)
    content = path.read_bytes()
    for kept in (0, 1, 10, len(content) // 2, len(content) - 60):
        path.write_bytes(content[:kept])
        with pytest.raises(InputError, match=rf"The image .*x\.{ending} cannot be read") as caught:
            read_image(path)
        assert "\n" not in str(caught.value)


def test_a_missing_image_and_a_text_are_named(tmp_path):
    with pytest.raises(InputError, match=r"x\.png was expected and is not there"):
        read_image(tmp_path / "x.png")
    (tmp_path / "y.png").write_text("not an image")
    with pytest.raises(InputError, match=r"y\.png cannot be read"):
        image_size(tmp_path / "y.png")
