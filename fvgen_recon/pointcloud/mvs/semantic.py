"""EfficientNet-Lite0 up to its 1/16 level: what a photo shows, learned on ImageNet."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

_STAGES = (
    (1, 3, 1, 16, 1),
    (6, 3, 2, 24, 2),
    (6, 5, 2, 40, 2),
    (6, 3, 2, 80, 3),
    (6, 5, 1, 112, 3),
)
"""Expansion, kernel, stride, width and number of blocks of the stages that are used."""
_NUM_TO_EIGHTH = 8
"""Layers up to the end of the third stage: the stem counts three, each block one."""


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
        self.requires_grad_(False).eval()

    def forward(self, image: Float[Tensor, "N 3 H W"]) -> Float[Tensor, "N 112 h w"]:
        """Return features of images in [0, 1]."""
        return self.levels(image)[1]

    def levels(
        self, image: Float[Tensor, "N 3 H W"]
    ) -> tuple[Float[Tensor, "N 40 h8 w8"], Float[Tensor, "N 112 h w"]]:
        """Return features at 1/8 and at 1/16 of images in [0, 1]."""
        eighth = self.layers[:_NUM_TO_EIGHTH]((image * 255 - 127) / 128)
        return eighth, self.layers[_NUM_TO_EIGHTH:](eighth)

    def train(self, mode: bool = True) -> "EfficientNetLite0":
        """Stay as it is: it only ever computes with the statistics that it came with."""
        del mode
        return super().train(False)

    def local_features(
        self, image: Float[Tensor, "N 3 H W"], *, batch_size: int = 16
    ) -> Float[Tensor, "M 112"]:
        """Return the features of every place of every image as rows.

        Places rather than image means make a covariance possible from a few dozen frames, and they
        tell texture rather than content.
        """
        parts = [self(part) for part in image.split(batch_size)]
        return torch.cat([p.permute(0, 2, 3, 1).flatten(0, 2) for p in parts])
