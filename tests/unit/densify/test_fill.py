import torch
from factories import make_guidance

from fvgen_recon.densify.fill import FillGenerator, inpaint
from fvgen_recon.diffusion.generator import VideoGenerator


def test_trusted_pixels_win_then_layers_by_place():
    guidance = make_guidance(5, 12, 16)
    generator = FillGenerator(num_frames=5)
    frames = generator.generate(guidance, seed=0)
    assert isinstance(generator, VideoGenerator)
    known = guidance.mask.expand_as(frames)
    assert torch.equal(frames[known], guidance.frames[known])
    both = (guidance.layer_masks.all(0) & ~guidance.mask)[2].expand(3, -1, -1)
    middle = guidance.layers[:, 2].mean(0)
    torch.testing.assert_close(frames[2][both], middle[both])
    only = (guidance.layer_masks[1] & ~guidance.layer_masks[0] & ~guidance.mask)[1]
    torch.testing.assert_close(
        frames[1][only.expand(3, -1, -1)], guidance.layers[1, 1][only.expand(3, -1, -1)]
    )


def test_inpainting_continues_a_plain_colour_and_keeps_what_is_known():
    image = torch.tensor([0.2, 0.4, 0.6])[:, None, None].expand(3, 12, 16).clone()
    known = torch.ones(1, 12, 16, dtype=torch.bool)
    known[:, 4:8, 5:9] = False
    filled = inpaint(image * known, known)
    assert float((filled - image).abs().max()) < 2 / 255
    assert torch.equal(filled[:, known[0]], image[:, known[0]])


def test_nothing_known_is_grey():
    filled = inpaint(torch.rand(3, 4, 5), torch.zeros(1, 4, 5, dtype=torch.bool))
    assert torch.equal(filled, torch.full((3, 4, 5), 0.5))
