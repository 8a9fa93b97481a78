"""The bank keeps frames with their provenance and survives being closed."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from factories import make_cloud, make_guidance, make_scene

from fvgen_recon.densify.bank import Bank, Origin, hash_guidance
from fvgen_recon.densify.confidence import ConfidenceConfig
from fvgen_recon.densify.densifier import Densifier, DensifyConfig
from fvgen_recon.densify.generators import GeneratorConfig
from fvgen_recon.densify.replay import ReplayGenerator
from fvgen_recon.errors import InputError
from fvgen_recon.types import Clip, Guidance


def make_origin(guidance: Guidance, **changes: object) -> Origin:
    origin = Origin(
        generator="test",
        weights_hash="abc",
        num_steps=4,
        seed=3,
        round=0,
        trajectory=0,
        guidance_hash=hash_guidance(guidance),
    )
    return replace(origin, **changes)  # pyright: ignore[reportArgumentType]


def make_clip(num_frames: int = 4) -> Clip:
    guidance = make_guidance(num_frames)
    rng = torch.Generator().manual_seed(5)
    return Clip(
        frames=torch.rand(guidance.frames.shape, generator=rng),
        cameras=make_scene(num_frames).cameras,
        guidance=guidance,
        confidence=torch.rand(guidance.depth.shape, generator=rng),
    )


def test_a_clip_comes_back_from_disk(tmp_path: Path) -> None:
    clip = make_clip()
    Bank(tmp_path).add_clip(clip, make_origin(clip.guidance))
    bank = Bank(tmp_path)
    assert [entry.frame for entry in bank.entries] == [1, 2]  # 0 and 3 are anchors: photos.
    views = bank.view_batch(bank.entries)
    torch.testing.assert_close(views.images, clip.frames[1:3], atol=0.5 / 255 + 1e-6, rtol=0)
    torch.testing.assert_close(views.weight, clip.confidence[1:3], atol=0.5 / 255 + 1e-6, rtol=0)
    torch.testing.assert_close(views.cameras.c2w, clip.cameras.c2w[1:3])
    assert bank.entries[0].origin.weights_hash == "abc"
    assert not views.is_real.any()


def test_reading_a_clip_again_gives_photos_at_anchors(tmp_path: Path) -> None:
    clip = make_clip()
    origin = make_origin(clip.guidance)
    bank = Bank(tmp_path)
    assert bank.read_clip(origin, clip.guidance, clip.cameras) is None
    bank.add_clip(clip, origin)
    again = bank.read_clip(origin, clip.guidance, clip.cameras)
    assert again is not None
    torch.testing.assert_close(again.frames[0], clip.guidance.frames[0])
    torch.testing.assert_close(again.frames[1], clip.frames[1], atol=0.5 / 255 + 1e-6, rtol=0)


def test_adding_the_same_clip_twice_does_not_double_it(tmp_path: Path) -> None:
    clip = make_clip()
    bank = Bank(tmp_path)
    bank.add_clip(clip, make_origin(clip.guidance))
    bank.add_clip(clip, make_origin(clip.guidance))
    bank.add_clip(clip, make_origin(clip.guidance, round=1))
    assert len(bank) == 4


def test_a_round_counts_once_it_is_whole(tmp_path: Path) -> None:
    clip = make_clip()
    bank = Bank(tmp_path)
    origins = [make_origin(clip.guidance, trajectory=k) for k in range(2)]
    bank.add_clip(clip, origins[0])
    assert Bank(tmp_path).num_rounds == 0
    bank.add_clip(clip, origins[1])
    bank.finish_round(0, tuple(origins))
    assert Bank(tmp_path).num_rounds == 1
    assert len(Bank(tmp_path)) == 4


def test_another_attempt_at_a_round_replaces_the_first(tmp_path: Path) -> None:
    clip, shorter = make_clip(4), make_clip(3)
    bank = Bank(tmp_path)
    old = [make_origin(clip.guidance, trajectory=k, round=r) for r in (0, 1) for k in (0, 1)]
    for origin in old:
        bank.add_clip(clip, origin)
    new = make_origin(shorter.guidance, generator="other", round=1)
    bank.add_clip(shorter, new)
    assert {entry.origin for entry in bank.entries} == {*old[:2], old[3], new}
    assert [entry.frame for entry in bank.find(new)] == [1]
    bank.finish_round(1, (new,))
    assert {entry.origin for entry in Bank(tmp_path).entries} == {*old[:2], new}


def test_frames_taken_out_stay_out(tmp_path: Path) -> None:
    clip = make_clip()
    bank = Bank(tmp_path)
    added = bank.add_clip(clip, make_origin(clip.guidance))
    bank.take_out(added[:1])
    assert [entry.frame for entry in Bank(tmp_path).entries] == [2]


def test_the_guidance_hash_sees_every_part() -> None:
    guidance = make_guidance(4)
    seen = {hash_guidance(guidance)}
    guesses = guidance.layers.flip(0)
    masks = guidance.layer_masks.flip(0)
    seen.add(hash_guidance(replace(guidance, alternatives=guesses, alternative_masks=masks)))
    seen.add(hash_guidance(replace(guidance, frames=1 - guidance.frames)))
    seen.add(hash_guidance(replace(guidance, mask=~guidance.mask)))
    seen.add(hash_guidance(replace(guidance, layers=1 - guidance.layers)))
    seen.add(hash_guidance(replace(guidance, hints=torch.zeros(3, 4, 2, 8, 12))))
    seen.add(hash_guidance(replace(guidance, hints=torch.ones(3, 4, 2, 8, 12))))
    assert len(seen) == 7
    assert hash_guidance(make_guidance(4)) in seen


def test_replay_needs_the_same_conditioning(tmp_path: Path) -> None:
    clip = make_clip()
    bank = Bank(tmp_path)
    bank.add_clip(clip, make_origin(clip.guidance))
    replay = ReplayGenerator(bank=bank, num_frames=4)
    frames = replay.generate(clip.guidance, seed=9)
    torch.testing.assert_close(frames[2], clip.frames[2], atol=0.5 / 255 + 1e-6, rtol=0)
    with pytest.raises(InputError, match="replay needs"):
        replay.generate(replace(clip.guidance, mask=~clip.guidance.mask), seed=9)


def test_another_schema_or_a_missing_file_is_one_sentence(tmp_path: Path) -> None:
    clip = make_clip()
    Bank(tmp_path).add_clip(clip, make_origin(clip.guidance))
    manifest = tmp_path / "manifest.json"
    content = json.loads(manifest.read_text())
    manifest.write_text(json.dumps({**content, "schema_version": 99}))
    with pytest.raises(InputError, match="schema version 99"):
        Bank(tmp_path)
    manifest.write_text("[]")
    with pytest.raises(InputError, match="schema version None"):
        Bank(tmp_path)
    manifest.write_text(json.dumps({"schema_version": 1, "num_rounds": 0, "frames": [{"K": []}]}))
    with pytest.raises(InputError, match="damaged"):
        Bank(tmp_path)
    manifest.write_text(json.dumps(content))
    (tmp_path / content["frames"][0]["image"]).unlink()
    with pytest.raises(InputError, match="not there"):
        Bank(tmp_path)


def test_frames_are_weighed_again_where_that_is_told_otherwise(tmp_path: Path) -> None:
    def weigh(folder: str, **changes: float) -> torch.Tensor:
        config = DensifyConfig(
            generator=GeneratorConfig(name="fill", num_frames=4),
            confidence=ConfidenceConfig(**changes),  # pyright: ignore[reportArgumentType]
            long_side=48,
        )
        bank = Bank(tmp_path / folder)
        return (
            Densifier(config).run(make_scene(2), points=make_cloud(), bank=bank).clips[0].confidence
        )

    first = weigh("one")
    torch.testing.assert_close(weigh("one"), first, atol=1 / 255, rtol=0)
    again = weigh("one", supported=0.5)
    torch.testing.assert_close(again, weigh("two", supported=0.5), atol=1 / 255, rtol=0)
    assert float((again - first).abs().max()) > 0.4


def test_a_bank_starts_anew_with_other_photos(tmp_path: Path) -> None:
    clip = make_clip()
    bank = Bank(tmp_path)
    bank.start_round(make_scene(3).cameras)
    bank.add_clip(clip, make_origin(clip.guidance))
    bank = Bank(tmp_path)
    bank.require_inputs(make_scene(3).cameras)
    with pytest.raises(InputError, match="other input photos"):
        bank.require_inputs(make_scene(2).cameras)
    bank.start_round(make_scene(3).cameras)
    assert len(bank) == 2
    bank.start_round(make_scene(2).cameras)
    assert len(bank) == 0
