import pytest
import torch
from unit.diffusion.viewcrafter.small import FULL_VOCABULARY, make_guidance, small_architecture

from fvgen_recon.diffusion.backbone import Codec
from fvgen_recon.diffusion.viewcrafter.architecture import build_parts
from fvgen_recon.diffusion.viewcrafter.clip import (
    NULL_PROMPT_IDS,
    PROMPT_IDS,
    image_tokens,
    preprocess,
)
from fvgen_recon.diffusion.viewcrafter.codec import ViewCrafterCodec
from fvgen_recon.errors import InputError


@pytest.fixture(scope="module")
def codec():
    torch.manual_seed(0)
    parts = build_parts(small_architecture(FULL_VOCABULARY), "shared", device="cpu")
    return ViewCrafterCodec(
        vae=parts.vae,
        text_encoder=parts.text_encoder,
        image_encoder=parts.image_encoder,
        image_projector=parts.image_projector,
        size_multiple=16,
    )


def test_it_is_a_codec(codec):
    assert (codec.latent_channels, codec.size_multiple, codec.vae_factor) == (4, 16, 8)
    assert isinstance(codec, Codec)


def test_encode_samples_the_posterior_of_each_frame(codec, rng):
    frames = torch.rand(2, 3, 3, 16, 32, generator=rng)
    z = codec.encode(frames, torch.Generator().manual_seed(4))
    noise = torch.randn(6, 4, 2, 4, generator=torch.Generator().manual_seed(4))
    for i in range(6):
        image = 2 * frames.flatten(0, 1)[i : i + 1] - 1
        posterior = codec.vae.encode(image).latent_dist
        expected = 0.18215 * (posterior.mean + posterior.std * noise[i])
        torch.testing.assert_close(z[i // 3, :, i % 3], expected[0], atol=1e-5, rtol=1e-4)


def test_encode_without_a_generator_is_the_mean(codec, rng):
    frames = torch.rand(1, 2, 3, 16, 32, generator=rng)
    assert torch.equal(codec.encode(frames), codec.encode(frames))
    drawn = torch.stack([codec.encode(frames, rng) for _ in range(50)]).mean(dim=0)
    deviation = codec.vae.encode(2 * frames[0] - 1).latent_dist.std.mean() * 0.18215
    assert (drawn - codec.encode(frames)).abs().mean() < 0.3 * deviation


def test_decode_undoes_scaling_and_range(codec, rng):
    z = torch.randn(1, 4, 3, 2, 4, generator=rng)
    frames = codec.decode(z)
    expected = (codec.vae.decode(z[0, :, 1][None] / 0.18215).sample + 1) / 2
    torch.testing.assert_close(frames[0, 1], expected[0].clamp(0, 1), atol=1e-5, rtol=1e-4)
    assert frames.shape == (1, 3, 3, 16, 32)


def test_chunks_change_no_value(codec, rng):
    frames = torch.rand(1, 5, 3, 16, 32, generator=rng)
    together = codec.encode(frames, torch.Generator().manual_seed(1))
    codec.frames_at_once = 2
    chunked = codec.encode(frames, torch.Generator().manual_seed(1))
    torch.testing.assert_close(chunked, together, atol=1e-5, rtol=1e-4)
    in_chunks = codec.decode(together)
    codec.frames_at_once = None
    torch.testing.assert_close(codec.decode(together), in_chunks, atol=1e-5, rtol=1e-4)


def test_condition_is_renders_prompt_and_reference(codec):
    clips = [make_guidance(seed=1), make_guidance(seed=2)]
    condition = codec.condition(clips)
    for i, clip in enumerate(clips):
        torch.testing.assert_close(condition.concat[i], codec.encode(clip.frames[None])[0])
        tokens = image_tokens(codec.image_encoder, 2 * clip.reference[None] - 1)
        expected = codec.image_projector(tokens)[0]
        torch.testing.assert_close(condition.context[i, 77:], expected, atol=1e-5, rtol=1e-4)
    grey = image_tokens(codec.image_encoder, torch.zeros(1, 3, 8, 8))
    expected = codec.image_projector(grey)[0]
    torch.testing.assert_close(condition.null_context[1, 77:], expected, atol=1e-5, rtol=1e-4)
    ids = torch.zeros(2, 77, dtype=torch.long)
    ids[0, : len(PROMPT_IDS)] = torch.tensor(PROMPT_IDS)
    ids[1, : len(NULL_PROMPT_IDS)] = torch.tensor(NULL_PROMPT_IDS)
    texts = codec.text_encoder(input_ids=ids).last_hidden_state
    torch.testing.assert_close(condition.context[0, :77], texts[0], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(condition.null_context[0, :77], texts[1], atol=1e-5, rtol=1e-4)
    assert not torch.allclose(texts[0], texts[1])


def test_constant_tokens_are_computed_once(codec):
    calls = []
    handle = codec.text_encoder.register_forward_hook(lambda *_: calls.append("text"))
    first = codec.condition([make_guidance()])
    again = codec.condition([make_guidance()])
    handle.remove()
    assert len(calls) <= 1
    assert torch.equal(first.null_context, again.null_context)


def test_bad_guidance_is_refused(codec):
    with pytest.raises(InputError, match="one length and size"):
        codec.condition([make_guidance(), make_guidance(width=64)])
    with pytest.raises(InputError, match="none came"):
        codec.condition([])
    with pytest.raises(InputError, match=r"33x48.*multiples of 16.*32x48"):
        codec.condition([make_guidance(height=33)])


def test_preprocessing_keeps_means_and_squashes(rng):
    flat = torch.full((1, 3, 50, 300), 0.2)
    out = preprocess(flat, 28)
    expected = (0.6 - torch.tensor([0.48145466, 0.4578275, 0.40821073])) / torch.tensor(
        [0.26862954, 0.26130258, 0.27577711]
    )
    torch.testing.assert_close(out[0].mean(dim=(1, 2)), expected, atol=1e-5, rtol=0)
    ramp = torch.linspace(-1, 1, 300).expand(1, 3, 50, 300)
    rows = preprocess(ramp, 28)[0, 0, 14]
    assert (rows.diff() > 0).all()


def test_preprocessing_suppresses_what_the_square_cannot_show():
    stripes = torch.ones(1, 3, 224, 448)
    stripes[..., ::2] = -1
    plain = preprocess(torch.zeros(1, 3, 224, 448), 56)
    inner = (preprocess(stripes, 56) - plain)[..., 2:-2]
    assert inner.abs().max() < 3e-2
