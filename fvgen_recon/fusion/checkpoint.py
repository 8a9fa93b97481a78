"""Fusion networks on disk: a folder of safetensors, a JSON config and a checksum."""

from collections.abc import Mapping
from pathlib import Path

from fvgen_recon.fusion.config import FusionConfig
from fvgen_recon.fusion.network import FusionNetwork
from fvgen_recon.io.card import WeightsCard, WeightsKind
from fvgen_recon.io.weights import Storage

SHIPPED_FUSION = Path(__file__).resolve().parent.parent / "weights" / "fusion"
"""Folder of the weights that the package brings."""
FusionCard = WeightsCard[FusionConfig]
_KIND = WeightsKind(
    name="fusion network",
    config=FusionConfig,
    advice="train one with scripts/train_fusion.py, or choose the rule `mean`, which needs no "
    "weights",
)


def save_fusion(
    folder: Path,
    network: FusionNetwork,
    training: Mapping[str, object],
    storage: Storage = "bfloat16",
) -> FusionCard:
    """Write a network; the config, written last, makes the folder complete."""
    return _KIND.write(folder, network, network.config, training, storage)


def read_fusion_card(folder: Path) -> FusionCard:
    """Read what a folder says about itself.

    Raises:
        WeightsError: There is no config, or it is of another version.
    """
    return _KIND.read_card(folder)


def load_fusion(folder: Path) -> FusionNetwork:
    """Read a network and check its checksum and shapes; it comes on the CPU, in float32.

    Raises:
        WeightsError: A file is missing, damaged or does not fit the config.
    """
    card = read_fusion_card(folder)
    network = FusionNetwork(card.config)
    _KIND.fill(folder, card.sha256, network)
    return network.eval().requires_grad_(False)
