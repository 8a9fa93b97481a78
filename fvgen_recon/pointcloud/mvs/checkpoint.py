"""The stereo network on disk: a folder of bfloat16 safetensors, a JSON config and a checksum."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load, save

from fvgen_recon.errors import WeightsError
from fvgen_recon.io.file import atomic_path, write_json
from fvgen_recon.pointcloud.mvs.config import MvsConfig
from fvgen_recon.pointcloud.mvs.network import MvsNetwork

_SCHEMA = 1
_CONFIG = "config.json"
_WEIGHTS = "weights.safetensors"
SHIPPED = Path(__file__).with_name("weights")
"""Folder of the weights inside the package."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MvsCard:
    """What a folder of weights says about itself."""

    config: MvsConfig
    sha256: str
    """Over the bytes of the weights."""
    training: Mapping[str, object]
    """How it was trained, as JSON."""


def save_mvs(folder: Path, network: MvsNetwork, training: Mapping[str, object]) -> MvsCard:
    """Write a network; the config, written last, makes the folder complete."""
    state = {
        name: value.detach().to("cpu", torch.bfloat16).contiguous()
        for name, value in network.state_dict().items()
    }
    data = save(state)
    with atomic_path(folder / _WEIGHTS) as path:
        path.write_bytes(data)
    card = MvsCard(
        config=network.config, sha256=hashlib.sha256(data).hexdigest(), training=training
    )
    write_json(folder / _CONFIG, {"schema": _SCHEMA, **asdict(card)})
    return card


def read_mvs_card(folder: Path) -> MvsCard:
    """Read what a folder says about itself.

    Raises:
        WeightsError: There is no config, or it is of another version.
    """
    path = folder / _CONFIG
    if not path.is_file():
        raise WeightsError(
            f"No stereo network at {folder}: train one with scripts/train_mvs.py, or choose the "
            "point-cloud estimator `plane-sweep`, which needs no weights."
        )
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        shape: dict[str, Any] = {
            k: tuple(v) if isinstance(v, list) else v for k, v in content["config"].items()
        }
        schema = content["schema"]
        card = MvsCard(
            config=MvsConfig(**shape), sha256=content["sha256"], training=content["training"]
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise WeightsError(
            f"{path} is not the config of a stereo network of this version: {error}."
        ) from error
    if schema != _SCHEMA:
        raise WeightsError(f"{path} has schema {schema}, {_SCHEMA} was expected: train it again.")
    return card


def load_mvs(folder: Path) -> MvsNetwork:
    """Read a network and check its checksum and shapes; it comes on the CPU, in float32.

    Raises:
        WeightsError: A file is missing, damaged or does not fit the config.
    """
    card = read_mvs_card(folder)
    path = folder / _WEIGHTS
    if not path.is_file():
        raise WeightsError(f"The weights {path} are missing: copy the whole folder.")
    data = path.read_bytes()
    if hashlib.sha256(data).hexdigest() != card.sha256:
        raise WeightsError(f"The weights in {folder} are damaged: their checksum does not fit.")
    state = {name: value.float() for name, value in load(data).items()}
    network = MvsNetwork(card.config)
    wanted = {k: tuple(v.shape) for k, v in network.state_dict().items()}
    if wanted != {k: tuple(v.shape) for k, v in state.items()}:
        raise WeightsError(f"The weights in {folder} do not fit their config: fetch them again.")
    network.load_state_dict(state)
    return network.eval().requires_grad_(False)


def keep_mvs(folder: Path, device: str) -> MvsNetwork:
    """Load a network once for a device, and again when the weights in the folder change.

    Raises:
        WeightsError: As for `load_mvs`.
    """
    return _load_once(folder, device, read_mvs_card(folder).sha256)


@lru_cache(maxsize=2)
def _load_once(folder: Path, device: str, sha256: str) -> MvsNetwork:
    network = load_mvs(folder).to(device)
    assert sha256  # part of the key: other weights are loaded anew
    return network
