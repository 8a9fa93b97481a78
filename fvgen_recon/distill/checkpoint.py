"""Checkpoints: safetensors and JSON in one folder each, written whole or not at all.

Every file's SHA-256 is kept and compared when a training goes on: bytes that a disk or a copy has
changed are still numbers, and would only spoil what is trained from them. Files of before that
have none are read unchecked.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import fvgen_recon
from fvgen_recon.distill.parallel import (
    Processes,
    local,
    placed_like,
    spread_like,
    wait_for_all,
    whole,
)
from fvgen_recon.errors import WeightsError
from fvgen_recon.io.file import atomic_path, file_sha256, sync_file, sync_folder

_SCHEMA = 1
_STATE = "state.json"
_OPTIMIZER = "optimizer/"
_CHECKSUM = "sha256"


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckpointState:
    """What a checkpoint says besides tensors. Noise needs no state: it depends on the tick only."""

    tick: int
    """Updates done."""
    settings: Mapping[str, object]
    """The settings of the run, as JSON."""
    gradient_norms: Mapping[str, list[float]]
    """What the divergence guard has seen."""


def trained_tensors(module: nn.Module, names: Iterable[str]) -> dict[str, Tensor]:
    """Return the named weights, and all buffers, of a network."""
    parameters = dict(module.named_parameters())
    return {name: parameters[name] for name in names} | dict(module.named_buffers())


def optimizer_tensors(
    optimizer: torch.optim.Optimizer, names: list[str], weights: Sequence[Tensor] | None = None
) -> dict[str, Tensor]:
    """Return the state of an optimizer by weight name; empty before its first step.

    Args:
        optimizer: With one group of parameters.
        names: Their names.
        weights: What they are, or are the shards of; by default they themselves.
    """
    parameters = optimizer.param_groups[0]["params"]
    tensors: dict[str, Tensor] = {}
    for name, parameter, weight in zip(names, parameters, weights or parameters, strict=True):
        for key, value in optimizer.state.get(parameter, {}).items():
            tensors[f"{name}/{key}"] = placed_like(value, weight)
    return tensors


def load_optimizer(
    optimizer: torch.optim.Optimizer,
    names: list[str],
    tensors: Mapping[str, Tensor],
    weights: Sequence[Tensor] | None = None,
) -> None:
    """Put back what `optimizer_tensors` returned."""
    parameters = optimizer.param_groups[0]["params"]
    state: dict[int, dict[str, Tensor]] = {}
    for index, (name, weight) in enumerate(zip(names, weights or parameters, strict=True)):
        prefix = f"{name}/"
        found = {k[len(prefix) :]: v for k, v in tensors.items() if k.startswith(prefix)}
        state[index] = {
            key: value if value.ndim == 0 else local(spread_like(value, weight))
            for key, value in found.items()
        }
    whole_state = optimizer.state_dict()
    whole_state["state"] = {i: s for i, s in state.items() if s}
    optimizer.load_state_dict(whole_state)


@torch.no_grad()
def load_tensors(targets: Mapping[str, Tensor], values: Mapping[str, Tensor], origin: str) -> None:
    """Copy stored tensors into weights.

    Raises:
        WeightsError: Names or shapes differ.
    """
    if targets.keys() != values.keys():
        odd = sorted(targets.keys() ^ values.keys())
        raise WeightsError(
            f"{origin} does not fit this network: {len(odd)} tensors are missing or unknown, such "
            f"as {odd[0]}. Was it made with other settings?"
        )
    for name, target in targets.items():
        if target.shape != values[name].shape:
            raise WeightsError(
                f"{origin}: {name} has shape {list(values[name].shape)}, {list(target.shape)} was "
                "expected."
            )
        target.copy_(spread_like(values[name].to(target.dtype), target))


def save_training(
    path: Path,
    networks: Mapping[str, nn.Module],
    optimizer: torch.optim.Optimizer,
    names: list[str],
    spent: tuple[int, float],
) -> None:
    """Write everything that a training in one process needs to go on into one file.

    Args:
        path: File to write.
        networks: Networks by their part in the training.
        optimizer: With one group of parameters.
        names: Their names.
        spent: Steps and seconds so far.
    """
    tensors = {
        f"{part}/{key}": value
        for part, network in networks.items()
        for key, value in network.state_dict().items()
    }
    state = optimizer_tensors(optimizer, names)
    tensors |= {f"{_OPTIMIZER}{key}": value for key, value in state.items()}
    flat = {k: v.detach().to("cpu", copy=True).contiguous() for k, v in tensors.items()}
    header = {"step": str(spent[0]), "seconds": str(spent[1])}
    header[_CHECKSUM] = _tensors_sha256(flat, header)
    with atomic_path(path, is_durable=True) as target:
        save_file(flat, target, header)


def resume_training(
    path: Path,
    networks: Mapping[str, nn.Module],
    optimizer: torch.optim.Optimizer,
    names: list[str],
) -> tuple[int, float]:
    """Load what `save_training` wrote; returns steps and seconds so far.

    Raises:
        WeightsError: It is no such file, is damaged, or does not fit these networks.
    """
    try:
        with safe_open(path, "pt") as file:
            header = file.metadata()
            tensors = {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118
        step, seconds = int(header["step"]), float(header["seconds"])
    except Exception as error:
        raise WeightsError(f"{path} is no state of a training: {error}.") from error
    expected = header.pop(_CHECKSUM, None)
    if expected is not None:
        remedy = "Put back a copy, or train into a new folder."
        _compare(path, expected, _tensors_sha256(tensors, header), remedy)
    for part, network in networks.items():
        load_tensors(network.state_dict(), _under(f"{part}/", tensors), str(path))
    load_optimizer(optimizer, names, _under(_OPTIMIZER, tensors))
    return step, seconds


def _tensors_sha256(tensors: Mapping[str, Tensor], header: Mapping[str, str]) -> str:
    """Return the SHA-256 of tensors on the CPU, with their names and shapes, and of a header."""
    digest = hashlib.sha256(json.dumps(header, sort_keys=True).encode())
    for name, value in sorted(tensors.items()):
        digest.update(f"{name} {value.dtype} {list(value.shape)}".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _compare(path: Path, expected: str, found: str, remedy: str) -> None:
    if found != expected:
        raise WeightsError(
            f"{path} is damaged: SHA-256 {expected[:12]}... was written, {found[:12]}... is there. "
            f"{remedy}"
        )


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {k[len(prefix) :]: v for k, v in tensors.items() if k.startswith(prefix)}


def save_checkpoint(
    folder: Path,
    files: Mapping[str, Mapping[str, Tensor]],
    state: CheckpointState,
    processes: Processes,
    *,
    keep_last: int,
) -> Path:
    """Write a checkpoint and delete the oldest ones, once it is on the disk.

    Every process must call it, since shards are gathered; the main one writes.

    Args:
        folder: Where checkpoints live.
        files: Tensors of each safetensors file, by its stem.
        state: What else there is to say.
        processes: Who takes part.
        keep_last: How many checkpoints stay.

    Returns:
        The folder of the new checkpoint.
    """
    final = folder / f"{state.tick:09d}"
    part = folder / f".{final.name}.part"
    if processes.is_main:
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
    checksums: dict[str, str] = {}
    for stem, tensors in files.items():
        gathered = {name: whole(value.detach()) for name, value in tensors.items()}
        if processes.is_main and gathered:
            flat = {k: v.to("cpu", copy=True).contiguous() for k, v in gathered.items()}
            save_file(flat, part / f"{stem}.safetensors")
            checksums[stem] = file_sha256(part / f"{stem}.safetensors")
    if processes.is_main:
        said = {
            "schema": _SCHEMA,
            "version": fvgen_recon.__version__,
            "tick": state.tick,
            "settings": state.settings,
            "gradient_norms": state.gradient_norms,
            "files": checksums,
        }
        content = json.loads(json.dumps(said))  # As it is read: lists, and names of text.
        content[_CHECKSUM] = _content_sha256(content)
        (part / _STATE).write_text(json.dumps(content, indent=1))
        for file in part.iterdir():
            sync_file(file)
        sync_folder(part)
        shutil.rmtree(final, ignore_errors=True)
        os.replace(part, final)
        sync_folder(folder)
        for old in list_checkpoints(folder)[:-keep_last]:
            shutil.rmtree(old)
    wait_for_all(processes)
    return final


def list_checkpoints(folder: Path) -> list[Path]:
    """Return the complete checkpoints, oldest first."""
    if not folder.is_dir():
        return []
    return sorted(p for p in folder.iterdir() if p.name.isdigit() and (p / _STATE).is_file())


def read_state(checkpoint: Path) -> CheckpointState:
    """Read what a checkpoint says besides tensors.

    Raises:
        WeightsError: It is missing, damaged or of another schema.
    """
    content = _read_content(checkpoint)
    if content.get("schema") != _SCHEMA:
        raise WeightsError(
            f"{checkpoint} has schema {content.get('schema')}, {_SCHEMA} was expected: it comes "
            "from another version."
        )
    return CheckpointState(
        tick=content["tick"],
        settings=content["settings"],
        gradient_norms=content["gradient_norms"],
    )


def _read_content(checkpoint: Path) -> dict[str, Any]:
    """Read the JSON of a checkpoint and compare it with its own checksum."""
    path = checkpoint / _STATE
    try:
        content = json.loads(path.read_text())
        expected = content.pop(_CHECKSUM, None)
    except (OSError, ValueError, AttributeError) as error:
        raise WeightsError(
            f"{checkpoint} is no readable checkpoint: {error}. {_remedy(checkpoint)}"
        ) from error
    if expected is not None:
        _compare(path, expected, _content_sha256(content), _remedy(checkpoint))
    return content


def _content_sha256(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _remedy(checkpoint: Path) -> str:
    """Say what to do where a checkpoint cannot be read."""
    older = [p.name for p in list_checkpoints(checkpoint.parent) if p.name < checkpoint.name]
    place = f"from {older[-1]}" if older else "from the start, as no older checkpoint is there"
    return f"Put back a copy of {checkpoint.name}, or delete that folder to go on {place}."


def read_tensors(checkpoint: Path, stem: str) -> dict[str, Tensor]:
    """Read one file of a checkpoint; empty if it was empty when written.

    Raises:
        WeightsError: The file is damaged or missing.
    """
    path = checkpoint / f"{stem}.safetensors"
    expected = _read_content(checkpoint).get("files", {}).get(stem)
    if not path.is_file():
        if expected is None:
            return {}
        raise WeightsError(f"{path} was written and is not there. {_remedy(checkpoint)}")
    if expected is not None:
        _compare(path, expected, file_sha256(path), _remedy(checkpoint))
    try:
        return load_file(path)
    except Exception as error:
        raise WeightsError(f"{path} is damaged: {error}. {_remedy(checkpoint)}") from error
