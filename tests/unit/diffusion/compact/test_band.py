"""Fine detail is taken from fewer renders than coarse colour."""

import json
import math
from dataclasses import replace

import torch
from unit.diffusion.compact.miniature import TINY
from unit.diffusion.compact.test_compact_backbone import make_inputs

from fvgen_recon.diffusion.compact.backbone import CompactBackbone
from fvgen_recon.diffusion.compact.checkpoint import load_compact, read_card, save_compact
from fvgen_recon.diffusion.compact.head import Renders, blend_bands

_SHARES = (0.0, 0.0, 0.0)
"""Logits of all renders but the fill."""
LOW_PASS = torch.tensor([1.0, 4.0, 6.0, 4.0, 1.0]) / 16


def _checkers(size: int) -> torch.Tensor:
    place = torch.arange(size)
    return (((place[:, None] + place) % 2) * 2.0 - 1).expand(1, 3, -1, -1)


def test_detail_of_the_likelier_image_and_colour_of_both():
    checkers = _checkers(16)
    colors = torch.stack([0.2 + 0.1 * checkers, torch.full_like(checkers, 0.8)], dim=1)
    logits = torch.tensor([0.7, 0.3]).log()[None, :, None, None].expand(1, 2, 16, 16)
    plain = blend_bands(colors, logits, 1.0, LOW_PASS)
    torch.testing.assert_close(plain, 0.7 * colors[:, 0] + 0.3 * colors[:, 1])
    got = blend_bands(colors, logits, 3.0, LOW_PASS)
    firm = 0.7**3 / (0.7**3 + 0.3**3)
    # The filter takes away all of the pattern and nothing of its mean.
    wanted = 0.7 * 0.2 + 0.3 * 0.8 + firm * 0.1 * checkers
    torch.testing.assert_close(got[..., 2:-2, 2:-2], wanted[..., 2:-2, 2:-2])


def test_a_whole_network_keeps_its_coarse_colours():
    torch.manual_seed(0)
    plain = CompactBackbone(TINY).eval()
    firm = CompactBackbone(replace(TINY, fine_power=4.0)).eval()
    firm.load_state_dict(plain.state_dict())
    x_t, t, condition = make_inputs(size=(32, 48))
    with torch.no_grad():
        change = firm(x_t, t, condition)[0] - plain(x_t, t, condition)[0]
    assert float(change.abs().mean()) > 1e-3
    # Of a change in detail alone nothing is left in the mean.
    assert float(change.mean().abs()) < 0.05 * float(change.abs().mean())


def test_detail_is_read_at_single_pixels_and_colour_between_them():
    # Half a pixel aside the mean of two neighbours is grey, and either of them is not.
    checkers = _checkers(16)
    sources = torch.cat([0.5 + 0.4 * checkers, torch.ones(1, 1, 16, 16)], dim=1)
    sources = sources[:, None].expand(-1, len(_SHARES), -1, -1, -1)
    fill = torch.zeros(1, 4, 16, 16)
    head = CompactBackbone(replace(TINY, fine_nearest=True)).head
    grid = head.renders(torch.zeros(1, TINY.condition_channels, 8, 8)).grid
    renders = Renders(sources=sources, fill=fill, grid=grid)
    aside = math.atanh(0.49 / TINY.max_offset_px) * TINY.max_offset_px
    offsets = torch.tensor([aside, 0.0]).repeat(len(_SHARES))[None, :, None, None]
    copies = head._copies(renders, offsets.expand(-1, -1, 8, 8))
    inner = copies.colors[0, 0, :, 2:-2, 2:-2]
    torch.testing.assert_close(inner, torch.full_like(inner, 0.5), atol=0.02, rtol=0)
    assert copies.detail is not None
    torch.testing.assert_close(copies.detail[0, 0], sources[0, 0, :3])
    logits = torch.tensor((*_SHARES, -9.0))[None, :, None, None].expand(1, -1, 16, 16)
    got = blend_bands(copies.colors, logits, 1.0, LOW_PASS, detail=copies.detail)
    torch.testing.assert_close(
        got[..., 3:-3, 3:-3], sources[:, 0, :3, 3:-3, 3:-3], atol=0.02, rtol=0
    )


def test_what_a_single_pixel_misses_is_read_between_four():
    sources = torch.zeros(1, len(_SHARES), 4, 16, 16)
    sources[..., 8:] = 0.5  # colours times masks, and masks, right of the middle
    head = CompactBackbone(replace(TINY, fine_nearest=True)).head
    grid = head.renders(torch.zeros(1, TINY.condition_channels, 8, 8)).grid
    renders = Renders(sources=sources, fill=torch.zeros(1, 4, 16, 16), grid=grid)
    aside = math.atanh(0.4 / TINY.max_offset_px) * TINY.max_offset_px
    offsets = torch.tensor([aside, 0.0]).repeat(len(_SHARES))[None, :, None, None]
    copies = head._copies(renders, offsets.expand(-1, -1, 8, 8))
    assert copies.detail is not None
    torch.testing.assert_close(copies.detail[..., 7], copies.colors[..., 7])
    assert float(copies.detail[0, 0, 0, 8, 7]) > 0.9


def test_folders_name_it_and_older_ones_need_not(tmp_path):
    torch.manual_seed(0)
    backbone = CompactBackbone(replace(TINY, fine_power=3.0))
    save_compact(tmp_path, backbone, role="regression", num_steps=1)
    firm = read_card(tmp_path)
    assert firm.config.fine_power == 3
    file = tmp_path / "config.json"
    content = json.loads(file.read_text())
    del content["config"]["fine_power"]
    del content["config"]["fine_nearest"]
    file.write_text(json.dumps(content))
    plain = read_card(tmp_path)
    assert plain.config.fine_power == 1
    # The same weights, and other frames.
    assert plain.sha256 == firm.sha256 == plain.fingerprint
    assert firm.fingerprint != plain.fingerprint == load_compact(tmp_path)[0].weights_hash
    single = replace(plain, config=replace(plain.config, fine_nearest=True))
    assert single.fingerprint not in (plain.fingerprint, firm.fingerprint)
