"""Checkpoints of the distillation, and what a power cut would leave of them."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from fvgen_recon.distill.checkpoint import (
    CheckpointState,
    list_checkpoints,
    read_state,
    read_tensors,
    resume_training,
    save_checkpoint,
    save_training,
)
from fvgen_recon.distill.parallel import Processes
from fvgen_recon.errors import WeightsError

ALONE = Processes(rank=0, count=1, device=torch.device("cpu"))


def _flip(path: Path, place: int) -> None:
    """Change one bit, which leaves the file readable."""
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)


def _save(folder: Path, tick: int, keep_last: int = 1) -> Path:
    files = {
        "student": {"a": torch.full((3,), float(tick))},
        "critic": {"b": torch.ones(2)},
        "optimizer-disc": {},
    }
    state = CheckpointState(tick=tick, settings={"rates": (0.1, 1e-5)}, gradient_norms={"a": [2.5]})
    return save_checkpoint(folder, files, state, ALONE, keep_last=keep_last)


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


def test_a_bit_that_flipped_in_a_checkpoint_is_told_with_the_way_out(tmp_path: Path) -> None:
    _save(tmp_path, 1, keep_last=2)
    second = _save(tmp_path, 2, keep_last=2)
    assert read_tensors(second, "optimizer-disc") == {}
    _flip(second / "student.safetensors", -1)
    sentence = (
        r"000000002/student\.safetensors is damaged: SHA-256 \w{12}\.\.\. was written, "
        r"\w{12}\.\.\. is there\. Put back a copy of 000000002, or delete that folder to go on "
        r"from 000000001\."
    )
    with pytest.raises(WeightsError, match=sentence):
        read_tensors(second, "student")
    assert list(read_tensors(second, "critic")) == ["b"]  # The others are as they were.
    shutil.rmtree(tmp_path / "000000001")
    with pytest.raises(WeightsError, match="to go on from the start"):
        read_tensors(second, "student")


def test_a_file_that_is_gone_from_a_checkpoint_is_missed(tmp_path: Path) -> None:
    folder = _save(tmp_path, 1)
    (folder / "critic.safetensors").unlink()
    with pytest.raises(WeightsError, match=r"critic\.safetensors was written and is not there"):
        read_tensors(folder, "critic")


def test_a_flipped_digit_of_the_state_is_told(tmp_path: Path) -> None:
    folder = _save(tmp_path, 4)
    state = read_state(folder)
    assert (state.tick, state.gradient_norms) == (4, {"a": [2.5]})
    path = folder / "state.json"
    path.write_text(path.read_text().replace('"tick": 4', '"tick": 5'))
    with pytest.raises(WeightsError, match=r"state\.json is damaged"):
        read_state(folder)


def test_checkpoints_from_before_checksums_are_read(tmp_path: Path) -> None:
    folder = _save(tmp_path, 3)
    path = folder / "state.json"
    content = json.loads(path.read_text())
    del content["sha256"], content["files"]
    path.write_text(json.dumps(content))
    _flip(folder / "critic.safetensors", -1)
    assert read_state(folder).tick == 3
    assert list(read_tensors(folder, "critic")) == ["b"]
    assert read_tensors(folder, "optimizer-disc") == {}


def _training() -> tuple[dict[str, nn.Module], torch.optim.Optimizer, list[str]]:
    network = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))  # Its counter has no dimension.
    names, weights = zip(*network.named_parameters(), strict=True)
    optimizer = torch.optim.AdamW(weights, lr=0.1)
    network(torch.randn(4, 2)).square().sum().backward()
    optimizer.step()
    return {"model": network}, optimizer, list(names)


def test_a_bit_that_flipped_in_the_state_of_a_training_is_told(tmp_path: Path) -> None:
    path = tmp_path / "state.safetensors"
    save_training(path, *_training(), (7, 1.5))
    networks, *rest = _training()
    assert resume_training(path, networks, *rest) == (7, 1.5)
    with safe_open(path, "pt") as file:
        for name, value in networks["model"].state_dict().items():
            assert torch.equal(value, file.get_tensor(f"model/{name}"))
    good = path.read_bytes()
    step = good.index(b'"step":"7"') + len('"step":"')
    for place in (-1, -40, step):
        path.write_bytes(good)
        _flip(path, place)
        with pytest.raises(WeightsError, match=r"state\.safetensors is damaged: SHA-256"):
            resume_training(path, networks, *rest)


def test_the_state_of_a_training_from_before_checksums_is_read(tmp_path: Path) -> None:
    path = tmp_path / "state.safetensors"
    save_training(path, *_training(), (7, 1.5))
    with safe_open(path, "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    save_file(tensors, path, {"step": "8", "seconds": "2.5"})
    assert resume_training(path, *_training()) == (8, 2.5)
