"""Checkpoints that load with weights_only, and one sentence for those that do not."""

import os

import numpy as np
import pytest
import torch

from fvgen_nerfstudio.checkpoint import (
    find_checkpoint,
    plain_numbers,
    read_checkpoint,
    write_checkpoint,
)
from fvgen_recon.errors import InputError, WeightsError


def _state(lr):
    return {"step": 7, "pipeline": {"a": torch.ones(2)}, "optimizers": {}, "lr": [lr]}


def test_numpy_numbers_become_python_numbers():
    plain = plain_numbers({"a": [np.float64(0.5), (np.int64(3), "x")], 1: torch.ones(1)})
    assert plain["a"] == [0.5, (3, "x")]
    assert type(plain["a"][0]) is float
    assert type(plain["a"][1][0]) is int


def test_a_written_checkpoint_loads_without_pickled_code(tmp_path):
    path = tmp_path / "new" / "step-000000007.ckpt"
    write_checkpoint(_state(np.float64(0.25)), path)
    assert torch.load(path, weights_only=True)["lr"] == [0.25]
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_a_checkpoint_that_is_not_whole_does_not_lie_where_stock_tools_look(tmp_path, monkeypatch):
    path, seen = tmp_path / "models" / "step-000000007.ckpt", []

    def save(_, partial):
        seen.append((partial.parent, list(path.parent.iterdir())))

    monkeypatch.setattr(torch, "save", save)
    write_checkpoint(_state(0.25), path)
    assert seen == [(tmp_path, [])]
    assert path.is_file()


def test_a_checkpoint_is_on_the_disk_before_older_ones_may_be_deleted(tmp_path, monkeypatch):
    path, synced = tmp_path / "models" / "step-000000007.ckpt", []
    monkeypatch.setattr(os, "fsync", lambda handle: synced.append(os.fstat(handle).st_ino))
    write_checkpoint(_state(0.25), path)
    assert synced == [path.stat().st_ino, path.parent.stat().st_ino]


def test_stock_checkpoints_with_numpy_learning_rates_can_be_read(tmp_path):
    path = tmp_path / "step-000000007.ckpt"
    torch.save(_state(np.float64(0.25)), path)
    assert read_checkpoint(path)["lr"] == [0.25]


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"PK\x03\x04 cut short"])
def test_what_is_no_checkpoint_is_named(tmp_path, content):
    path = tmp_path / "step-000000001.ckpt"
    path.write_bytes(content)
    with pytest.raises(WeightsError, match="not a checkpoint"):
        read_checkpoint(path)


@pytest.mark.parametrize("kept", [0.1, 0.9])
def test_a_checkpoint_that_was_cut_short_is_named(tmp_path, kept):
    path = tmp_path / "step-000000001.ckpt"
    write_checkpoint({**_state(0.25), "pipeline": {"a": torch.ones(100_000)}}, path)
    path.write_bytes(path.read_bytes()[: int(kept * path.stat().st_size)])
    with pytest.raises(WeightsError, match="damaged"):
        read_checkpoint(path)


def test_a_bit_that_flipped_is_told_though_torch_would_read_it(tmp_path):
    path = tmp_path / "step-000000001.ckpt"
    write_checkpoint({**_state(0.25), "pipeline": {"a": torch.ones(100_000)}}, path)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    assert not torch.equal(
        torch.load(path, weights_only=True)["pipeline"]["a"], torch.ones(100_000)
    )
    with pytest.raises(WeightsError, match="damaged"):
        read_checkpoint(path)


def test_other_torch_files_and_missing_files_are_named(tmp_path):
    torch.save({"weights": torch.ones(1)}, tmp_path / "other.ckpt")
    with pytest.raises(WeightsError, match="no step, pipeline and optimizers"):
        read_checkpoint(tmp_path / "other.ckpt")
    with pytest.raises(WeightsError, match="There is no checkpoint"):
        read_checkpoint(tmp_path / "absent.ckpt")
    with pytest.raises(InputError, match="There are no checkpoints"):
        find_checkpoint(tmp_path, None)


def test_the_latest_checkpoint_is_found(tmp_path):
    for step in (2, 10, 9):
        (tmp_path / f"step-{step:09d}.ckpt").touch()
    (tmp_path / "step-000000011.ckpt.partial").touch()
    assert find_checkpoint(tmp_path, None).name == "step-000000010.ckpt"
    assert find_checkpoint(tmp_path, 2).name == "step-000000002.ckpt"
