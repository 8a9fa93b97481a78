"""Fusion networks on disk: a folder of safetensors, a JSON config and a checksum."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from safetensors.torch import load, save

from fvgen_recon.errors import WeightsError
from fvgen_recon.fusion.config import FusionConfig
from fvgen_recon.fusion.network import FusionNetwork
from fvgen_recon.io.file import atomic_path, write_json
from fvgen_recon.io.weights import Storage, pack_state, unpack_state

_SCHEMA = 1
_CONFIG = "config.json"
_WEIGHTS = "weights.safetensors"
SHIPPED_FUSION = Path(__file__).resolve().parent.parent / "weights" / "fusion"
"""Folder of the weights that the package brings."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FusionCard:
    """What a folder of weights says about itself."""

    config: FusionConfig
    sha256: str
    """Over the bytes of the weights."""
    training: Mapping[str, object]
    """How it was trained, as JSON."""


def save_fusion(
    folder: Path,
    network: FusionNetwork,
    training: Mapping[str, object],
    storage: Storage = "bfloat16",
) -> FusionCard:
    """Write a network; the config, written last, makes the folder complete."""
    data = save(pack_state(network.state_dict(), storage))
    with atomic_path(folder / _WEIGHTS) as path:
        path.write_bytes(data)
    card = FusionCard(
        config=network.config, sha256=hashlib.sha256(data).hexdigest(), training=training
    )
    write_json(folder / _CONFIG, {"schema": _SCHEMA, **asdict(card)})
    return card


def read_fusion_card(folder: Path) -> FusionCard:
    """Read what a folder says about itself.

    Raises:
        WeightsError: There is no config, or it is of another version.
    """
    path = folder / _CONFIG
    if not path.is_file():
        raise WeightsError(
            f"No fusion network at {folder}: train one with scripts/train_fusion.py, or choose the "
            "rule `mean`, which needs no weights."
        )
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        schema = content["schema"]
        shape = {name: tuple(value) for name, value in content["config"].items()}
        card = FusionCard(
            config=FusionConfig(**shape), sha256=content["sha256"], training=content["training"]
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise WeightsError(
            f"{path} is not the config of a fusion network of this version: {error}."
        ) from error
    if schema != _SCHEMA:
        raise WeightsError(f"{path} has schema {schema}, {_SCHEMA} was expected: train it again.")
    return card


def load_fusion(folder: Path) -> FusionNetwork:
    """Read a network and check its checksum and shapes; it comes on the CPU, in float32.

    Raises:
        WeightsError: A file is missing, damaged or does not fit the config.
    """
    card = read_fusion_card(folder)
    path = folder / _WEIGHTS
    if not path.is_file():
        raise WeightsError(f"The weights {path} are missing: copy the whole folder.")
    data = path.read_bytes()
    if hashlib.sha256(data).hexdigest() != card.sha256:
        raise WeightsError(f"The weights in {folder} are damaged: their checksum does not fit.")
    try:
        state = unpack_state(load(data))
    except KeyError as error:
        raise WeightsError(
            f"The weights in {folder} lack the tensor {error}: fetch them again."
        ) from error
    network = FusionNetwork(card.config)
    wanted = {k: tuple(v.shape) for k, v in network.state_dict().items()}
    if wanted != {k: tuple(v.shape) for k, v in state.items()}:
        raise WeightsError(f"The weights in {folder} do not fit their config: fetch them again.")
    network.load_state_dict(state)
    return network.eval().requires_grad_(False)
