"""Confidence follows support, agreement and the spread of samples."""

from dataclasses import replace

import torch
from factories import make_guidance

from fvgen_recon.densify.confidence import ConfidenceConfig, agreement, frame_confidence


def test_agreement_at_the_tolerance_is_exp_of_minus_a_half() -> None:
    first = torch.zeros(3, 2, 2)
    result = agreement(first, first + 0.1, 0.1)
    torch.testing.assert_close(result, torch.full((1, 2, 2), 0.60653066))


def test_levels_by_support() -> None:
    guidance = make_guidance(4)
    guidance = replace(guidance, layers=torch.zeros_like(guidance.layers))
    config = ConfidenceConfig(supported=0.9, seen=0.6, invented=0.2)
    frames = torch.where(guidance.mask, guidance.frames, torch.zeros_like(guidance.frames))
    result = frame_confidence(frames[None], guidance, config)
    inner, mask = result[1:3], guidance.mask[1:3]
    hit = guidance.layer_masks.any(0)[1:3]
    torch.testing.assert_close(inner[mask], torch.full_like(inner[mask], 0.9))
    torch.testing.assert_close(inner[~mask & hit], torch.full_like(inner[~mask & hit], 0.6))
    torch.testing.assert_close(inner[~mask & ~hit], torch.full_like(inner[~mask & ~hit], 0.2))
    assert bool((result[[0, 3]] == 1).all())


def test_disagreement_with_the_render_lowers_confidence() -> None:
    guidance = make_guidance(4)
    config = ConfidenceConfig()
    good = frame_confidence(guidance.frames[None], guidance, config)[1:3]
    bad = frame_confidence((guidance.frames + 0.3)[None], guidance, config)[1:3]
    mask = guidance.mask[1:3]
    assert bool((bad[mask] < good[mask]).all())


def test_spread_of_samples_lowers_confidence() -> None:
    guidance = make_guidance(4)
    config = ConfidenceConfig()
    same = guidance.frames.expand(2, -1, -1, -1, -1)
    apart = torch.stack([guidance.frames, 1 - guidance.frames])
    agreeing = frame_confidence(same, guidance, config)[1:3]
    torch.testing.assert_close(agreeing, frame_confidence(same[:1], guidance, config)[1:3])
    assert float(frame_confidence(apart, guidance, config)[1:3].mean()) < float(agreeing.mean())
