"""What a stereo training has to know is found once, by any number of processes."""

import builtins
import pickle
from dataclasses import replace

import pytest
import torch
from unit.pointcloud.stage import make_stage

from fvgen_recon.distill.pack import PackedScene, PackedTracks, encode_photo, write_pack
from fvgen_recon.distill.stereo.preparation import Preparation, prepare_training
from fvgen_recon.errors import FvgenError, InputError

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def packed():
    scene, depth = make_stage((-12, -4, 4, 12))
    none = torch.zeros(0, dtype=torch.long)
    return PackedScene(
        name="stage",
        photo_names=scene.names,
        jpegs=tuple(encode_photo(image, 95) for image in scene.images),
        cameras=scene.cameras,
        depth=depth.flatten(1).median(dim=1).values,
        tracks=PackedTracks(xyz=torch.zeros(0, 3), point=none, frame=none),
    )


@pytest.fixture
def wanted(packed, tmp_path):
    write_pack([packed], tmp_path / "train.pack")
    return Preparation(
        pack=tmp_path / "train.pack", cache=tmp_path / "cache", num_worlds=1, world_views=8
    )


@pytest.mark.parametrize("num_workers", [0, 2])
def test_depth_and_worlds_are_found_once(wanted, num_workers):
    wanted = replace(wanted, num_workers=num_workers)
    scenes, worlds = prepare_training(wanted, CPU)
    assert [scene.name for scene in scenes] == ["stage"]
    assert [world.name for world in worlds] == ["procedural-8-0"]
    _, depth = make_stage((-12, -4, 4, 12))
    known = scenes[0].truth > 0
    assert known.float().mean() > 0.2
    assert ((scenes[0].truth * depth)[known] - 1).abs().median() < 0.02
    written = {path: path.stat().st_mtime_ns for path in wanted.cache.iterdir()}
    prepare_training(wanted, CPU)
    assert written == {path: path.stat().st_mtime_ns for path in wanted.cache.iterdir()}
    assert len(written) == 2


def test_it_can_be_sent_to_a_process_whatever_print_is(wanted, monkeypatch):
    monkeypatch.setattr(builtins, "print", lambda *words, **options: None)
    assert pickle.loads(pickle.dumps(wanted)) == wanted


def test_a_process_that_fails_is_told_and_does_not_hang(wanted):
    with pytest.raises(FvgenError, match="processes that measure depth"):
        prepare_training(replace(wanted, num_workers=1, world_views=0), CPU)


def test_a_pack_without_tracks_is_refused(packed, wanted):
    write_pack([replace(packed, tracks=None)], wanted.pack)
    with pytest.raises(InputError, match="no tracks"):
        prepare_training(wanted, CPU)
