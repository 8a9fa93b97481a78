from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from factories import make_cameras, make_guidance

from fvgen_recon.diffusion.backbone import Condition
from fvgen_recon.distill.data import TrainingBatch
from fvgen_recon.distill.shard_clip import ClipOrigin, ShardClip, decode_clip, encode_clip
from fvgen_recon.errors import InputError


def smooth(*shape: int) -> torch.Tensor:
    rng = torch.Generator().manual_seed(0)
    coarse = torch.rand(shape[0], shape[1], 4, 6, generator=rng)
    return F.interpolate(coarse, shape[2:], mode="bilinear")


def make_clip(is_raw: bool = False) -> ShardClip:
    guidance = make_guidance()
    frames = smooth(4, 3, 32, 48)
    render = frames * guidance.mask
    layers = frames * guidance.layer_masks
    return ShardClip(
        key="room_00000_abc",
        origin=ClipOrigin(
            scene="1K/room",
            photos=("a", "b", "c", "d"),
            views=(0, 3),
            estimator="plane-sweep",
            is_raw=is_raw,
            version="0",
        ),
        frames=frames,
        cameras=make_cameras(4),
        guidance=replace(guidance, frames=render, layers=layers, reference=render[0]),
    )


def test_clip_comes_back_as_it_was() -> None:
    clip = make_clip()
    back = decode_clip(clip.key, encode_clip(clip))
    assert back.origin == clip.origin
    assert back.guidance.anchors == clip.guidance.anchors
    torch.testing.assert_close(back.cameras.c2w, clip.cameras.c2w, rtol=0, atol=0)
    torch.testing.assert_close(back.cameras.K, clip.cameras.K, rtol=0, atol=0)
    assert torch.equal(back.guidance.mask, clip.guidance.mask)
    assert torch.equal(back.guidance.layer_masks, clip.guidance.layer_masks)
    assert (back.frames - clip.frames).abs().mean() < 0.01
    known = clip.guidance.mask.expand_as(clip.frames)
    error = (back.guidance.frames - clip.guidance.frames).abs()
    assert error[known].mean() < 0.06
    assert bool((back.guidance.frames[~known] == 0).all())
    layer_holes = ~clip.guidance.layer_masks.expand_as(clip.guidance.layers)
    assert bool((back.guidance.layers[layer_holes] == 0).all())


def test_frames_keep_their_order_and_raw_renders_their_dark_rim() -> None:
    clip = make_clip(is_raw=True)
    steps = torch.tensor([0.1, 0.3, 0.6, 0.9])[:, None, None, None].expand(4, 3, 32, 48)
    clip = replace(clip, frames=steps, guidance=replace(clip.guidance, frames=steps.clone()))
    back = decode_clip(clip.key, encode_clip(clip))
    torch.testing.assert_close(back.frames, steps, rtol=0, atol=0.005)
    torch.testing.assert_close(back.guidance.frames, steps, rtol=0, atol=0.005)


def test_depth_is_within_half_precision_at_stored_pixels() -> None:
    clip = make_clip()
    depth = 1e5 * (1 + smooth(4, 1, 32, 48)) * clip.guidance.mask
    clip = replace(clip, guidance=replace(clip.guidance, depth=depth))
    back = decode_clip(clip.key, encode_clip(clip)).guidance.depth
    kept = back[..., 2::4, 2::4], depth[..., 2::4, 2::4]
    torch.testing.assert_close(*kept, rtol=2e-3, atol=0)
    assert bool((back[~clip.guidance.mask] == 0).all())


def test_latents_come_back_in_half_precision() -> None:
    rng = torch.Generator().manual_seed(0)
    x0, concat = (torch.randn(1, 4, 4, 4, 6, generator=rng) for _ in range(2))
    context = torch.randn(1, 5, 8, generator=rng)
    condition = Condition(concat=concat, context=context, null_context=-context)
    clip = replace(make_clip(), latents=TrainingBatch(x0=x0, condition=condition))
    latents = decode_clip(clip.key, encode_clip(clip)).latents
    assert latents is not None
    torch.testing.assert_close(latents.x0, x0, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(latents.condition.null_context, -context, rtol=1e-3, atol=1e-4)


def test_same_clip_same_bytes() -> None:
    assert encode_clip(make_clip()) == encode_clip(make_clip())


@pytest.mark.parametrize("name", ["json", "real.jpg", "mask.png", "depth.npy", "layer1.png"])
def test_missing_or_damaged_file_is_said_in_a_sentence(name: str) -> None:
    members = encode_clip(make_clip())
    with pytest.raises(InputError, match="incomplete or damaged"):
        decode_clip("key", tuple(m for m in members if m.name != name))
    cut = tuple(
        replace(m, data=m.data[: len(m.data) // 3]) if m.name == name else m for m in members
    )
    with pytest.raises(InputError, match="incomplete or damaged"):
        decode_clip("key", cut)
