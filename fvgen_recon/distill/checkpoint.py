"""Checkpoints: safetensors and JSON in one folder each, written whole or not at all."""

import json
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

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
from fvgen_recon.io.file import atomic_path, sync_file, sync_folder

_SCHEMA = 1
_STATE = "state.json"
_OPTIMIZER = "optimizer/"


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
    with atomic_path(path, is_durable=True) as target:
        save_file(flat, target, {"step": str(spent[0]), "seconds": str(spent[1])})


def resume_training(
    path: Path,
    networks: Mapping[str, nn.Module],
    optimizer: torch.optim.Optimizer,
    names: list[str],
) -> tuple[int, float]:
    """Load what `save_training` wrote; returns steps and seconds so far.

    Raises:
        WeightsError: It is no such file, or does not fit these networks.
    """
    try:
        with safe_open(path, "pt") as file:
            header = file.metadata()
            tensors = {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118
        step, seconds = int(header["step"]), float(header["seconds"])
    except Exception as error:
        raise WeightsError(f"{path} is no state of a training: {error}.") from error
    for part, network in networks.items():
        load_tensors(network.state_dict(), _under(f"{part}/", tensors), str(path))
    load_optimizer(optimizer, names, _under(_OPTIMIZER, tensors))
    return step, seconds


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
    for stem, tensors in files.items():
        gathered = {name: whole(value.detach()) for name, value in tensors.items()}
        if processes.is_main and gathered:
            flat = {k: v.to("cpu", copy=True).contiguous() for k, v in gathered.items()}
            save_file(flat, part / f"{stem}.safetensors")
    if processes.is_main:
        content = {
            "schema": _SCHEMA,
            "version": fvgen_recon.__version__,
            "tick": state.tick,
            "settings": state.settings,
            "gradient_norms": state.gradient_norms,
        }
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
    try:
        content = json.loads((checkpoint / _STATE).read_text())
    except (OSError, json.JSONDecodeError) as error:
        raise WeightsError(f"{checkpoint} is no readable checkpoint: {error}.") from error
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


def read_tensors(checkpoint: Path, stem: str) -> dict[str, Tensor]:
    """Read one file of a checkpoint; empty if it was empty when written.

    Raises:
        WeightsError: The file is damaged.
    """
    path = checkpoint / f"{stem}.safetensors"
    if not path.is_file():
        return {}
    try:
        return load_file(path)
    except Exception as error:
        raise WeightsError(f"{path} is damaged: {error}.") from error
