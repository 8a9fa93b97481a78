"""Checkpoints of the distillation, and what a power cut would leave of them."""

import os
import shutil
from pathlib import Path

import torch

from fvgen_recon.distill.checkpoint import (
    CheckpointState,
    list_checkpoints,
    read_tensors,
    save_checkpoint,
)
from fvgen_recon.distill.parallel import Processes

ALONE = Processes(rank=0, count=1, device=torch.device("cpu"))


def _save(folder: Path, tick: int) -> Path:
    files = {"student": {"a": torch.full((3,), float(tick))}, "critic": {"b": torch.ones(2)}}
    state = CheckpointState(tick=tick, settings={}, gradient_norms={})
    return save_checkpoint(folder, files, state, ALONE, keep_last=1)


def test_an_old_checkpoint_is_deleted_once_the_new_one_is_on_the_disk(tmp_path, monkeypatch):
    first = _save(tmp_path, 1)
    synced: set[int] = set()
    missing: list[set[int]] = []
    sync, remove = os.fsync, shutil.rmtree

    def note_sync(handle: int) -> None:
        synced.add(os.fstat(handle).st_ino)
        sync(handle)

    def note_removal(path: Path, **options) -> None:
        if path == first:
            new = tmp_path / f"{2:09d}"
            needed = {place.stat().st_ino for place in (*new.iterdir(), new, tmp_path)}
            missing.append(needed - synced)
        remove(path, **options)

    monkeypatch.setattr(os, "fsync", note_sync)
    monkeypatch.setattr(shutil, "rmtree", note_removal)
    second = _save(tmp_path, 2)
    assert missing == [set()]
    assert list_checkpoints(tmp_path) == [second]
    assert torch.equal(read_tensors(second, "student")["a"], torch.full((3,), 2.0))
