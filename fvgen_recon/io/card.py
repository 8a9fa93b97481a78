"""A network in a folder: safetensors, and a JSON card with its shape, checksum and training."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from safetensors.torch import load, save
from torch import Tensor, nn

from fvgen_recon.errors import WeightsError
from fvgen_recon.io.file import atomic_path, write_json
from fvgen_recon.io.weights import Storage, pack_state, unpack_state

_SCHEMA = 1
_CARD = "config.json"
_WEIGHTS = "weights.safetensors"
Config = TypeVar("Config")


@dataclass(frozen=True, kw_only=True, slots=True)
class WeightsCard(Generic[Config]):
    """What a folder of weights says about itself."""

    config: Config
    sha256: str
    """Over the bytes of the weights."""
    training: Mapping[str, object]
    """How it was trained, as JSON."""


@dataclass(frozen=True, kw_only=True, slots=True)
class WeightsKind(Generic[Config]):
    """A kind of network that is kept so."""

    name: str
    """What messages call it."""
    config: type[Config]
    """Dataclass of its shape."""
    advice: str
    """What to do where there is none, for messages."""

    def write(
        self,
        folder: Path,
        network: nn.Module,
        config: Config,
        training: Mapping[str, object],
        storage: Storage = "bfloat16",
    ) -> WeightsCard[Config]:
        """Write a network; the card, written last, makes the folder complete."""
        data = save(pack_state(network.state_dict(), storage))
        with atomic_path(folder / _WEIGHTS) as path:
            path.write_bytes(data)
        digest = hashlib.sha256(data).hexdigest()
        card = WeightsCard(config=config, sha256=digest, training=training)
        write_json(folder / _CARD, {"schema": _SCHEMA, **asdict(card)})
        return card

    def read_card(self, folder: Path) -> WeightsCard[Config]:
        """Read what a folder says about itself.

        Raises:
            WeightsError: There is no card, or it is of another version.
        """
        path = folder / _CARD
        if not path.is_file():
            raise WeightsError(f"No {self.name} at {folder}: {self.advice}.")
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            schema = content["schema"]
            shape: dict[str, Any] = {
                k: tuple(v) if isinstance(v, list) else v for k, v in content["config"].items()
            }
            card = WeightsCard(
                config=self.config(**shape), sha256=content["sha256"], training=content["training"]
            )
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise WeightsError(
                f"{path} is not the config of a {self.name} of this version: {error}."
            ) from error
        if schema != _SCHEMA:
            raise WeightsError(
                f"{path} has schema {schema}, {_SCHEMA} was expected: train it again."
            )
        return card

    def fill(self, folder: Path, sha256: str, network: nn.Module) -> None:
        """Load the weights into a network of the card's shape, in float32.

        Raises:
            WeightsError: A file is missing, damaged or does not fit the network.
        """
        path = folder / _WEIGHTS
        if not path.is_file():
            raise WeightsError(f"The weights {path} are missing: copy the whole folder.")
        data = path.read_bytes()
        if hashlib.sha256(data).hexdigest() != sha256:
            raise WeightsError(f"The weights in {folder} are damaged: their checksum does not fit.")
        try:
            state = unpack_state(load(data))
        except KeyError as error:
            raise WeightsError(
                f"The weights in {folder} lack the tensor {error}: fetch them again."
            ) from error
        if _shapes(network.state_dict()) != _shapes(state):
            raise WeightsError(
                f"The weights in {folder} do not fit their config: fetch them again."
            )
        network.load_state_dict(state)


def _shapes(state: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in state.items()}
