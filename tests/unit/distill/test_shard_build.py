import tarfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from room_folder import write_room

from fvgen_recon.diffusion.backbone import Codec
from fvgen_recon.distill.data import ClipSource
from fvgen_recon.distill.model import random_compact
from fvgen_recon.distill.shard_build import (
    Share,
    build_clip,
    build_shards,
    pending_shards,
    read_share,
    settle_plan,
)
from fvgen_recon.distill.shard_file import (
    ShardRecord,
    drop_damaged,
    find_faults,
    read_members,
    read_record,
    record_path,
    tar_path,
)
from fvgen_recon.distill.shard_plan import ShardPlan, ShardSettings, make_plan
from fvgen_recon.distill.shard_source import ShardSource, open_shards, shard_validation
from fvgen_recon.errors import InputError
from fvgen_recon.io.file import file_sha256
from fvgen_recon.io.scenes import load_capture, load_scene
from fvgen_recon.recipes.distill import RECIPES

TINY = ShardSettings(num_frames=4, height=32, width=48, clips_per_shard=2)
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def rooms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("rooms")
    for seed in range(3):
        write_room(root / "1K" / f"room{seed}", seed=seed)
    return root


@pytest.fixture(scope="module")
def made(rooms: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ShardPlan]:
    """A finished data set; tests that change one make a copy."""
    folder = tmp_path_factory.mktemp("shards")
    return folder, prepare(rooms, folder)


def prepare(rooms: Path, folder: Path, share: Share | None = None) -> ShardPlan:
    plan = settle_plan(folder, make_plan(rooms, TINY)[0])
    build_shards(rooms, folder, plan, share=share, report=lambda record: None)
    return plan


@pytest.fixture
def copied(made: tuple[Path, ShardPlan], tmp_path: Path) -> tuple[Path, ShardPlan]:
    folder, plan = made
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    return tmp_path, plan


def digests(folder: Path) -> dict[str, str]:
    return {path.name: file_sha256(path) for path in folder.glob("*.tar")}


def test_all_planned_clips_are_there_once(made: tuple[Path, ShardPlan]) -> None:
    folder, plan = made
    assert (plan.num_clips, len(plan.shards)) == (6, 3)
    assert find_faults(folder, plan) == []
    assert sorted(p.name for p in folder.glob("*.tar")) == [f"clips-{n:06d}.tar" for n in range(3)]


def test_second_run_does_nothing(rooms: Path, made: tuple[Path, ShardPlan]) -> None:
    folder, plan = made
    before = {p: p.stat().st_mtime_ns for p in folder.iterdir()}
    assert build_shards(rooms, folder, plan, report=lambda r: None) == 0
    assert settle_plan(folder, make_plan(rooms, TINY)[0]) == plan
    assert {p: p.stat().st_mtime_ns for p in folder.iterdir()} == before


def test_clip_holds_the_photos_and_cameras_and_renders_near_them(
    rooms: Path, made: tuple[Path, ShardPlan]
) -> None:
    folder, plan = made
    window = plan.shards[1][0]
    source = open_shards(folder, seed=0, device=CPU, codec=debug_codec())
    clip = source.clip([place.key for _, place in source.places].index(window.key))
    capture = load_capture(rooms / window.scene)
    scene = load_scene(capture, window.frames)
    assert clip.origin.photos == scene.names
    torch.testing.assert_close(clip.cameras.c2w, scene.cameras.c2w)
    torch.testing.assert_close(clip.cameras.K, scene.cameras.K)
    assert (clip.frames - scene.images).abs().mean() < 0.02
    guidance = clip.guidance
    assert bool(guidance.mask[[0, -1]].all())
    assert (guidance.frames[[0, -1]] - scene.images[[0, -1]]).abs().mean() < 0.02
    between = guidance.mask[1:-1].expand(-1, 3, -1, -1)
    assert between.float().mean() > 0.1
    assert (guidance.frames[1:-1] - scene.images[1:-1]).abs()[between].mean() < 0.15


def test_interrupted_run_goes_on_to_the_same_bytes(
    rooms: Path, made: tuple[Path, ShardPlan], tmp_path: Path
) -> None:
    whole, plan = made
    settle_plan(tmp_path, plan)

    def stop(record: ShardRecord) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_shards(rooms, tmp_path, plan, report=stop)
    assert pending_shards(tmp_path, plan, Share()) == [1, 2]
    # A crash between tar and record leaves a tar that does not count.
    tar_path(tmp_path, 1).write_bytes(b"half")
    done = build_shards(rooms, tmp_path, plan, report=lambda r: None)
    assert done == 2
    assert digests(tmp_path) == digests(whole)
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".")]


def test_shares_of_machines_add_up(
    rooms: Path, made: tuple[Path, ShardPlan], tmp_path: Path
) -> None:
    prepare(rooms, tmp_path, Share(index=1, count=2))
    assert [p.name for p in tmp_path.glob("*.tar")] == ["clips-000001.tar"]
    plan = prepare(rooms, tmp_path, Share(index=0, count=2))
    assert digests(tmp_path) == digests(made[0])
    assert find_faults(tmp_path, plan) == []
    assert read_share("2/8") == Share(index=2, count=8)
    for text in ("8/8", "1", "a/b", "-1/2", "0/0"):
        with pytest.raises(InputError, match="share"):
            read_share(text)


def test_verification_finds_every_kind_of_fault(copied: tuple[Path, ShardPlan]) -> None:
    folder, plan = copied
    data = bytearray(tar_path(folder, 0).read_bytes())
    data[len(data) // 2] ^= 1
    tar_path(folder, 0).write_bytes(data)
    record_path(folder, 1).unlink()
    (folder / "clips-000009.tar").write_bytes(b"")
    assert find_faults(folder, plan) == [
        "clips-000000.tar is damaged: delete it and run the preparation again.",
        "clips-000001.tar is missing: run the preparation again.",
        "clips-000009.tar is not in the plan.",
    ]
    assert drop_damaged(folder, plan) == [0]
    assert pending_shards(folder, plan, Share()) == [0, 1]
    tar_path(folder, 2).write_bytes(b"short")
    assert pending_shards(folder, plan, Share()) == [0, 1, 2]


def test_clips_in_two_shards_are_found(copied: tuple[Path, ShardPlan]) -> None:
    folder, plan = copied
    tar_path(folder, 1).write_bytes(tar_path(folder, 0).read_bytes())
    record = record_path(folder, 0).read_text().replace('"number": 0', '"number": 1')
    record_path(folder, 1).write_text(record)
    faults = find_faults(folder, plan)
    assert "clips-000001.tar does not hold the clips of its plan." in faults
    assert sum("is there twice" in fault for fault in faults) == 2


def test_other_settings_or_scenes_are_refused(rooms: Path, made: tuple[Path, ShardPlan]) -> None:
    folder, _ = made
    with pytest.raises(InputError, match="other settings"):
        settle_plan(folder, make_plan(rooms, replace(TINY, seed=1))[0])
    with pytest.raises(InputError, match="other scenes"):
        settle_plan(folder, make_plan(rooms, TINY, excluded=["room0"])[0])


@pytest.mark.parametrize(("kind", "folder"), [("nope", "."), ("compact", "nowhere")])
def test_a_codec_that_is_not_there_does_not_bind_the_folder(
    kind: str, folder: str, rooms: Path, tmp_path: Path
) -> None:
    slip = replace(TINY, codec=kind, codec_folder=folder)
    with pytest.raises(InputError, match="codec"):
        settle_plan(tmp_path, make_plan(rooms, slip)[0])
    assert settle_plan(tmp_path, make_plan(rooms, TINY)[0]).settings == TINY


def test_bad_photo_skips_its_clip_with_the_reason(tmp_path: Path) -> None:
    write_room(tmp_path / "data" / "room")
    broken = tmp_path / "data" / "room" / "images" / "frame_00002.png"
    broken.write_bytes(broken.read_bytes()[:50])
    plan = prepare(tmp_path / "data", tmp_path / "out")
    record = read_record(tmp_path / "out", 0)
    assert (len(record.clips), len(record.skipped)) == (1, 1)
    assert "frame_00002.png" in record.skipped[0].reason
    assert find_faults(tmp_path / "out", plan) == []
    source = open_shards(tmp_path / "out", seed=0, device=CPU, codec=debug_codec())
    assert len(source) == 1


def test_scene_that_vanished_stops_the_run(tmp_path: Path) -> None:
    room = write_room(tmp_path / "data" / "room")
    plan = settle_plan(tmp_path / "out", make_plan(tmp_path / "data", TINY)[0])
    room.rename(tmp_path / "elsewhere")
    with pytest.raises(InputError, match="is not there"):
        build_shards(tmp_path / "data", tmp_path / "out", plan, report=lambda r: None)
    assert not list((tmp_path / "out").glob("*.tar"))


def test_plain_tar_readers_see_the_same_bytes_as_random_access(
    made: tuple[Path, ShardPlan],
) -> None:
    folder, _ = made
    record = read_record(folder, 0)
    with tarfile.open(tar_path(folder, 0)) as tar, tar_path(folder, 0).open("rb") as file:
        for clip in record.clips:
            for member in read_members(file, clip):
                stored = tar.extractfile(f"{clip.key}.{member.name}")
                assert stored is not None
                assert stored.read() == member.data


def test_webdataset_groups_the_clips(made: tuple[Path, ShardPlan]) -> None:
    wds = pytest.importorskip("webdataset", reason="needs fvgen-recon[distill]")
    folder, plan = made
    samples = list(wds.WebDataset(str(tar_path(folder, 0)), shardshuffle=False))
    assert [s["__key__"] for s in samples] == [w.key for w in plan.shards[0]]
    assert {"json", "real.jpg", "render.jpg", "mask.png", "layer1.jpg"} <= set(samples[0])


def debug_codec() -> Codec:
    untrained = RECIPES["debug"]().untrained
    assert untrained is not None
    return random_compact(untrained).codec


def test_batches_depend_on_seed_and_numbers_alone(made: tuple[Path, ShardPlan]) -> None:
    def opened(seed: int) -> ShardSource:
        return open_shards(made[0], seed=seed, device=CPU, codec=debug_codec())

    source = opened(0)
    assert isinstance(source, ClipSource)
    straight = source.batch(range(8))
    assert straight.x0.shape[0] == 8
    resumed = opened(0).batch(range(5, 8))
    assert torch.equal(resumed.x0, straight.x0[5:])
    assert torch.equal(resumed.condition.concat, straight.condition.concat[5:])
    epoch = source.batch(range(6)).x0.flatten(1)
    assert len({tuple(row.tolist()) for row in epoch}) == 6
    assert not torch.equal(opened(1).batch(range(6)).x0, straight.x0[:6])


def test_ranks_share_a_step_out(made: tuple[Path, ShardPlan]) -> None:
    source = open_shards(made[0], seed=0, device=CPU, codec=debug_codec())
    parts = [source.step_batch(1, rank=r, num_ranks=2, batch_size=1).x0 for r in range(2)]
    assert torch.equal(torch.cat(parts), source.batch(range(2, 4)).x0)


def test_unfinished_and_latentless_sets_are_refused(copied: tuple[Path, ShardPlan]) -> None:
    folder, _ = copied
    with pytest.raises(InputError, match="without latents"):
        open_shards(folder, seed=0, device=CPU)
    record_path(folder, 2).unlink()
    with pytest.raises(InputError, match="has 2 of 3 shards"):
        open_shards(folder, seed=0, device=CPU, codec=debug_codec())


def test_first_clips_are_to_look_at(made: tuple[Path, ShardPlan]) -> None:
    codec = debug_codec()
    source = open_shards(made[0], seed=0, device=CPU, codec=codec)
    everything = source.load()
    assert len(everything) == len(source) == 6
    torch.testing.assert_close(everything.x0[4], codec.encode(source.clip(4).frames[None])[0])
    shown = shard_validation(source, codec, max_clips=2)
    assert len(shown.clips) == 2
    torch.testing.assert_close(shown.clips.x0, everything.x0[:2])
    torch.testing.assert_close(shown.truth[1], source.clip(1).frames)
    torch.testing.assert_close(shown.renders[1], source.clip(1).guidance.frames)


def test_stored_latents_are_what_the_codec_gives(rooms: Path, made: tuple[Path, ShardPlan]) -> None:
    plan = made[1]
    codec = debug_codec()
    clip = build_clip(rooms, plan.shards[0][0], plan.settings, codec=codec)
    assert clip.latents is not None
    torch.testing.assert_close(clip.latents.x0, codec.encode(clip.frames[None]))


def test_more_views_and_raw_renders(rooms: Path, made: tuple[Path, ShardPlan]) -> None:
    window = made[1].shards[0][0]
    settings = replace(TINY, num_views=3, is_raw=True)
    clip = build_clip(rooms, window, settings)
    assert clip.origin.views == (0, 2, 3)
    assert clip.origin.is_raw
    assert [a.view for a in clip.guidance.anchors] == [0, 2]
    torch.testing.assert_close(clip.guidance.frames[-1], clip.frames[-1])
