import pytest
import torch
from factories import make_guidance
from unit.diffusion.compact.miniature import TINY, make_backbone

from fvgen_recon.diffusion.backbone import VideoBackbone
from fvgen_recon.diffusion.compact.backbone import CompactBackbone, Prepared
from fvgen_recon.diffusion.compact.checkpoint import widen
from fvgen_recon.diffusion.compact.codec import CompactCodec, merge_sources, stack_guidance
from fvgen_recon.diffusion.compact.config import CompactConfig
from fvgen_recon.diffusion.compact.fill import push_pull
from fvgen_recon.diffusion.compact.layer import (
    Attention,
    join_channels,
    neighbours,
    rotary_phase,
    rotate,
)
from fvgen_recon.errors import InputError


def make_inputs(num_clips: int = 1, num_frames: int = 4, size: tuple[int, int] = (16, 24)):
    codec = CompactCodec(config=TINY)
    condition = codec.condition(
        [make_guidance(num_frames, *size, seed=i) for i in range(num_clips)]
    )
    shape = (num_clips, TINY.latent_channels, num_frames, size[0] // 2, size[1] // 2)
    rng = torch.Generator().manual_seed(1)
    return torch.randn(shape, generator=rng), torch.full((num_clips,), 600), condition


def test_backbone_keeps_shape_and_shows_bottleneck_first():
    backbone = make_backbone()
    x, t, condition = make_inputs()
    with torch.no_grad():
        x0, mid = backbone(x, t, condition, return_mid=True)
    assert isinstance(backbone, VideoBackbone)
    assert x0.shape == x.shape
    assert [tuple(f.shape) for f in mid] == [(1, 16, 4, 2, 3), (1, 8, 4, 4, 6), (1, 8, 4, 8, 12)]


def test_clips_of_a_batch_do_not_see_each_other():
    backbone = make_backbone()
    x, t, condition = make_inputs(num_clips=2)
    with torch.no_grad():
        both, _ = backbone(x, t, condition)
        second, _ = backbone(x[1:], t[1:], condition[1:])
    torch.testing.assert_close(both[1:], second, atol=1e-5, rtol=1e-4)


def test_frames_of_a_clip_see_each_other_and_time_and_noise_matter():
    backbone = make_backbone()
    x, t, condition = make_inputs()
    changed = x.clone()
    changed[:, :, 0] += 1
    with torch.no_grad():
        before, _ = backbone(x, t, condition)
        after, _ = backbone(changed, t, condition)
        later, _ = backbone(x, t // 2, condition)
    assert (after - before)[:, :, -1].abs().max() > 1e-4
    assert (later - before).abs().max() > 1e-4


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("gate", "num_alternatives"), [(False, 0), (True, 0), (True, 2)])
def test_a_prepared_clip_gives_what_a_call_gives(dtype, gate, num_alternatives):
    backbone = widen(make_backbone(), gate=gate, num_alternatives=num_alternatives).to(dtype)
    x, t, _ = make_inputs()
    condition = CompactCodec(config=backbone.config).condition([make_guidance(4, 16, 24)])
    condition = condition.to("cpu", dtype)
    with torch.no_grad():
        prepared = Prepared.from_tensors(*backbone.prepare(condition).tensors())
        for time in (t, t // 3):
            plain, mid = backbone(x, time, condition, return_mid=True)
            found, found_mid = backbone.denoise(x, time, prepared, return_mid=True)
            torch.testing.assert_close(found, plain, atol=1e-6, rtol=0)
            for one, other in zip(found_mid, mid, strict=True):
                torch.testing.assert_close(one, other, atol=1e-6, rtol=0)
    with torch.enable_grad():  # all frames at once
        together = backbone(x, t, condition)[0].detach()
    with torch.no_grad():
        torch.testing.assert_close(backbone(x, t, condition)[0], together, atol=1e-5, rtol=0)


def test_a_step_goes_on_from_what_an_earlier_one_found_deepest():
    backbone = make_backbone()
    x, t, condition = make_inputs()
    with torch.no_grad():
        prepared = backbone.prepare(condition)
        first, deep = backbone.take_step(x, t, prepared)
        torch.testing.assert_close(first, backbone.denoise(x, t, prepared)[0], atol=1e-6, rtol=0)
        again, kept = backbone.take_step(x, t, prepared, deep)
        torch.testing.assert_close(again, first, atol=1e-6, rtol=0)
        assert kept is deep
        moved, _ = backbone.take_step(x, t, prepared, deep + 1)
        later, _ = backbone.take_step(x, t // 3, prepared, deep)
    assert (moved - first).abs().max() > 1e-4  # It counts,
    assert (later - first).abs().max() > 1e-4  # and so does the step itself.


def test_the_first_convolution_is_one_over_noise_and_condition():
    backbone = make_backbone()
    x, t, condition = make_inputs()
    seen = []
    backbone.down1[0].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        backbone(x, t, condition)
        maps = torch.cat([x, condition.concat], dim=1).transpose(1, 2).flatten(0, 1)
        torch.testing.assert_close(seen[0], backbone.stem(maps), atol=1e-5, rtol=1e-5)


def test_every_weight_is_trained():
    backbone = make_backbone()
    x, t, condition = make_inputs()
    backbone(x, t, condition)[0].square().mean().backward()
    unused = [n for n, p in backbone.named_parameters() if p.grad is None or not p.grad.any()]
    # A key's bias would not matter, and there is none; everything else must.
    assert unused == []


def test_untrained_network_copies_the_trusted_render():
    torch.manual_seed(0)
    backbone, codec = CompactBackbone(TINY), CompactCodec(config=TINY)
    guidance = make_guidance(4, 16, 24)
    condition = codec.condition([guidance])
    x = torch.randn(1, TINY.latent_channels, 4, 8, 12)
    with torch.no_grad():
        frames = codec.decode(backbone(x, torch.full((1,), 999), condition)[0])
    # The anchors are trusted everywhere and hit by no point elsewhere: only the fill competes.
    error = (frames[0, 0] - guidance.frames[0]).abs()
    only = ~guidance.layer_masks[:, 0].any(0).expand(3, -1, -1)
    assert float(error[only].max()) < 5e-3


def test_size_of_the_shipped_shape():
    count = sum(p.numel() for p in CompactBackbone(CompactConfig()).parameters())
    assert 2 * count <= 32 * 2**20  # bytes in bfloat16


def test_codec_is_exact_and_refuses_odd_sizes(rng):
    codec = CompactCodec(config=TINY)
    frames = torch.rand(2, 3, 3, 16, 24, generator=rng)
    torch.testing.assert_close(codec.decode(codec.encode(frames)), frames, atol=1e-6, rtol=0)
    assert codec.encode(frames).shape == (2, 12, 3, 8, 12)
    with pytest.raises(InputError, match="multiples of 8"):
        codec.condition([make_guidance(4, 20, 24)])
    with pytest.raises(InputError, match="one length and size"):
        stack_guidance([make_guidance(4), make_guidance(5)])


def test_merge_against_loops():
    guidance = make_guidance(5, 6, 7)
    blend, known = merge_sources(stack_guidance([guidance]))
    for t in range(5):
        near, far = max(1 - t / 4, 1e-3), max(t / 4, 1e-3)
        for y in range(6):
            for x in range(7):
                weights = [
                    w * float(m)
                    for w, m in zip((near, far), guidance.layer_masks[:, t, 0, y, x], strict=True)
                ]
                wanted = torch.zeros(3)
                if guidance.mask[t, 0, y, x]:
                    wanted = guidance.frames[t, :, y, x]
                elif sum(weights) > 0:
                    layers = guidance.layers[:, t, :, y, x]
                    wanted = (layers * torch.tensor(weights)[:, None]).sum(0) / sum(weights)
                torch.testing.assert_close(blend[0, t, :, y, x], wanted, atol=1e-5, rtol=1e-5)
                assert bool(known[0, t, 0, y, x]) == bool(
                    guidance.mask[t, 0, y, x] or sum(weights) > 0
                )


def test_push_pull_keeps_what_is_known_and_spreads_it(rng):
    color = torch.rand(1, 3, 13, 18, generator=rng)
    known = torch.zeros(1, 1, 13, 18)
    known[..., 2:5, 3:9] = 1
    filled = push_pull(color, known)
    torch.testing.assert_close(filled * known, color * known)
    inside = color[..., 2:5, 3:9]
    assert inside.amin() <= filled.amin()
    assert filled.amax() <= inside.amax() + 1e-6
    assert not push_pull(color, torch.zeros_like(known)).any()
    flat = push_pull(torch.full_like(color, 0.3) * known, known)
    torch.testing.assert_close(flat, torch.full_like(color, 0.3))


def test_neighbours_by_hand():
    x = torch.arange(6.0).view(6, 1, 1, 1)  # two clips of three frames
    before, here, after = neighbours(x, 3)[:, :, 0, 0].unbind(1)
    assert before.tolist() == [0, 0, 1, 3, 3, 4]
    assert here.tolist() == [0, 1, 2, 3, 4, 5]
    assert after.tolist() == [1, 2, 2, 4, 5, 5]
    wide = torch.zeros(6, 3, 4, 5).contiguous(memory_format=torch.channels_last)
    assert neighbours(wide, 3).is_contiguous(memory_format=torch.channels_last)


def test_joined_channels_keep_their_order_whatever_their_layout(rng):
    last = torch.rand(2, 7, 4, 5, generator=rng).contiguous(memory_format=torch.channels_last)
    plain = torch.rand(2, 3, 4, 5, generator=rng)
    level = torch.rand(2, 1, 1, 1, generator=rng).expand(2, 1, 4, 5)
    parts = [last[:, :4], plain, level, plain[:, 1:2], last[:, 4:5], last[:, 5:], plain]
    joined = join_channels(parts)
    assert torch.equal(joined, torch.cat(parts, dim=1))
    assert joined.is_contiguous(memory_format=torch.channels_last)


def test_rotary_phases_only_tell_differences(rng):
    q, k = torch.randn(2, 1, 1, 1, 16, generator=rng)
    phase = rotary_phase(3, 4, 5, 16, torch.device("cpu")).view(3, 4, 5, 8)

    def product(a, b):
        turned = rotate(q, phase[a][None]), rotate(k, phase[b][None])
        return float((turned[0] * turned[1]).sum())

    assert product((0, 1, 1), (1, 3, 4)) == pytest.approx(product((1, 0, 0), (2, 2, 3)), abs=1e-5)
    assert product((0, 0, 0), (0, 0, 0)) == pytest.approx(float((q * k).sum()), abs=1e-5)
    assert abs(product((0, 0, 0), (0, 0, 1)) - product((0, 0, 0), (0, 1, 0))) > 1e-4


def test_attention_against_its_formula(rng):
    torch.manual_seed(0)
    layer = Attention(16, 16)
    with torch.no_grad():
        layer.out.weight.copy_(torch.eye(16))
        layer.narrow.weight.zero_()
    x = torch.randn(2, 16, 2, 3, generator=rng)  # one clip of two frames
    phase = rotary_phase(2, 2, 3, 16, x.device)
    tokens = x.permute(0, 2, 3, 1).reshape(12, 16)
    q, k, v = (layer.norm1(tokens) @ layer.qkv.weight.T).split(16, dim=1)
    q, k = (rotate(a[None, None], phase)[0, 0] for a in (q, k))
    wanted = tokens + torch.softmax(q @ k.T / 4, dim=1) @ v
    got = layer(x, phase).permute(0, 2, 3, 1).reshape(12, 16)
    torch.testing.assert_close(got, wanted, atol=1e-5, rtol=1e-4)
