"""Textures tile, mipmaps are means, and lookups land on the right texel."""

import pytest
import torch

from fvgen_recon.render.world.pattern import PATTERNS, palette
from fvgen_recon.render.world.texture import make_atlas, sample_atlas


@pytest.mark.parametrize("name", [n for n in PATTERNS if n not in ("writing", "clouds")])
def test_patterns_continue_over_their_borders(name: str) -> None:
    image = PATTERNS[name](128, torch.Generator().manual_seed(4), torch.device("cpu"))
    assert image.shape == (3, 128, 128)
    assert float(image.min()) >= 0
    assert float(image.max()) <= 1
    assert float(image.std()) > 0.01
    for turned in (image, image.mT):
        across = (turned[:, 0] - turned[:, -1]).abs().mean()
        inside = (turned[:, 1:] - turned[:, :-1]).abs().mean((0, 2)).amax()
        assert float(across) <= 1.3 * float(inside) + 0.01


def test_texels_are_found_at_their_centres(rng: torch.Generator) -> None:
    images = torch.rand(3, 3, 8, 8, generator=rng)
    atlas = make_atlas(images, torch.tensor([False, False, True]))
    uv = (torch.tensor([[2.0, 5.0]]) + 0.5) / 8
    for shift in (0.0, 4.0, -2.0):
        for texture in range(3):
            index = torch.tensor([texture])
            colour = sample_atlas(atlas, index, uv + shift, torch.tensor([1e-3]))
            torch.testing.assert_close(colour[0], images[texture, :, 5, 2] ** 2.2)
    mirrored = sample_atlas(atlas, torch.tensor([2]), 2 - uv, torch.tensor([1e-3]))
    torch.testing.assert_close(mirrored[0], images[2, :, 5, 2] ** 2.2)


def test_a_wide_footprint_sees_the_mean(rng: torch.Generator) -> None:
    images = torch.rand(2, 3, 16, 16, generator=rng)
    atlas = make_atlas(images, torch.zeros(2, dtype=torch.bool))
    mean = (images**2.2).mean((2, 3))
    colour = sample_atlas(atlas, torch.tensor([0, 1]), torch.rand(2, 2), torch.tensor([1.0, 9.0]))
    torch.testing.assert_close(colour, mean)
    half = sample_atlas(atlas, torch.tensor([0]), torch.full((1, 2), 1 / 8), torch.tensor([2 / 16]))
    torch.testing.assert_close(
        half[0], (images[0, :, 1:3, 1:3] ** 2.2).mean((1, 2)), atol=0.2, rtol=0
    )


def test_palettes_are_colours_of_different_brightness(rng: torch.Generator) -> None:
    for _ in range(50):
        colours = palette(rng, 3)
        assert float(colours.min()) >= 0
        assert float(colours.max()) <= 1
        value = colours.amax(1).sort().values
        assert float(value[-1] - value[0]) > 0.2
