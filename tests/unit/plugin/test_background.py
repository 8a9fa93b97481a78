"""Colours behind holes."""

import torch

from fvgen_nerfstudio.background import diffuse_colors, fill_holes

UNSEEN = torch.tensor([0.9, 0.1, 0.4])


def test_opaque_pixels_stay_and_a_single_colour_fills_everything():
    colour = torch.tensor([0.2, 0.5, 0.8])
    alpha = torch.zeros(13, 22, 1)
    alpha[3:9, 4:15] = 1
    render = colour * alpha
    filled = diffuse_colors(render, alpha, UNSEEN)
    assert filled.shape == (13, 22, 3)
    torch.testing.assert_close(filled, colour.expand(13, 22, 3))


def test_holes_take_the_colour_of_the_nearer_side():
    alpha = torch.zeros(16, 32, 1)
    alpha[:, :4], alpha[:, -4:] = 1, 1
    colours = torch.zeros(16, 32, 3)
    colours[:, -4:] = 1
    filled = diffuse_colors(colours * alpha, alpha, UNSEEN)
    torch.testing.assert_close(filled[:, :4], colours[:, :4])
    row = filled[8, :, 0]
    assert row[8] < 0.35
    assert row[23] > 0.65
    assert (row.diff() >= -1e-6).all()


def test_half_opaque_pixels_are_completed_not_replaced():
    alpha = torch.full((8, 8, 1), 0.5)
    filled = diffuse_colors(torch.full((8, 8, 3), 0.3), alpha, UNSEEN)
    torch.testing.assert_close(filled, torch.full((8, 8, 3), 0.6))


def test_an_empty_render_has_the_colour_of_what_is_unseen():
    filled = fill_holes(torch.zeros(1, 5, 7, 3), torch.zeros(1, 5, 7, 1), UNSEEN)
    torch.testing.assert_close(filled, UNSEEN.expand(1, 5, 7, 3))
