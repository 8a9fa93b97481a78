"""The stereo network on disk: a folder of bfloat16 safetensors, a JSON config and a checksum."""

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from functools import lru_cache
from pathlib import Path

import torch

from fvgen_recon.errors import WeightsError
from fvgen_recon.io.card import WeightsCard, WeightsKind
from fvgen_recon.pointcloud.mvs.config import MvsConfig
from fvgen_recon.pointcloud.mvs.network import MvsNetwork

SHIPPED = Path(__file__).with_name("weights")
"""Folder of the weights inside the package."""
MvsCard = WeightsCard[MvsConfig]
_KIND = WeightsKind(
    name="stereo network",
    config=MvsConfig,
    advice="train one with scripts/train_mvs.py, or choose the point-cloud estimator "
    "`plane-sweep`, which needs no weights",
)


def save_mvs(folder: Path, network: MvsNetwork, training: Mapping[str, object]) -> MvsCard:
    """Write a network; the config, written last, makes the folder complete."""
    return _KIND.write(folder, network, network.config, training)


def read_mvs_card(folder: Path) -> MvsCard:
    """Read what a folder says about itself.

    Raises:
        WeightsError: There is no config, or it is of another version.
    """
    return _KIND.read_card(folder)


def load_mvs(folder: Path) -> MvsNetwork:
    """Read a network and check its checksum and shapes; it comes on the CPU, in float32.

    Raises:
        WeightsError: A file is missing, damaged or does not fit the config.
    """
    card = read_mvs_card(folder)
    network = MvsNetwork(card.config)
    _KIND.fill(folder, card.sha256, network)
    return network.eval().requires_grad_(False)


def grow_mvs(network: MvsNetwork, config: MvsConfig) -> MvsNetwork:
    """Return a network of a config that adds a completion, or what it sees of ImageNet.

    It computes nearly what the given one does; features of ImageNet have to be loaded still.

    Raises:
        WeightsError: The config differs in more.
    """
    old = network.config
    plain = config
    if network.completion is None:
        width = old.completion_width
        plain = replace(config, is_semantic=False, num_completion=0, completion_width=width)
    elif not old.is_semantic:
        plain = replace(config, is_semantic=False)
    if plain != old:
        odd = [f.name for f in fields(old) if getattr(old, f.name) != getattr(config, f.name)]
        raise WeightsError(
            "Weights to start from must be of the same sizes, but for a completion that is added: "
            f"{', '.join(odd)} differ from those of their config.json."
        )
    grown = MvsNetwork(config)
    grown.load_state_dict(network.state_dict(), strict=False)
    return grown


def average_mvs(networks: Sequence[MvsNetwork]) -> MvsNetwork:
    """Return a network with the mean of the weights of trainings that began at the same weights.

    M. Wortsman et al., "Model soups", ICML 2022.

    Raises:
        WeightsError: The configs differ.
    """
    configs = {network.config for network in networks}
    if len(configs) != 1:
        raise WeightsError(
            f"Networks of one config were expected, to take the mean of their weights: "
            f"{len(configs)} configs came."
        )
    states = [network.state_dict() for network in networks]
    mean = MvsNetwork(networks[0].config)
    mean.load_state_dict(
        {k: torch.stack([s[k].double() for s in states]).mean(dim=0) for k in states[0]}
    )
    return mean


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
