"""Feature networks whose weights come with packages: for perceptual distances and statistics.

The architectures are written here from the shapes of the published weights, so that neither the
packages' imports nor the network are needed. Packed copies with 8 bits a weight serve machines that
have no packages.
"""

from collections.abc import Iterable, Mapping
from importlib.util import find_spec
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from fvgen_recon.errors import MissingDependencyError, WeightsError
from fvgen_recon.io.file import read_tensors

_SHIFT = (-0.030, -0.088, -0.188)
_SCALE = (0.458, 0.448, 0.450)


class BlurPool(nn.Module):
    """Halve an image behind a 1-2-1 blur, reflected by two pixels at the border (Zhang, 2019)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        row = torch.tensor([1.0, 2.0, 1.0]) / 4
        self.register_buffer("filt", (row[:, None] * row).expand(width, 1, 3, 3).clone())

    def forward(self, x: Float[Tensor, "N C h w"]) -> Float[Tensor, "N C i j"]:
        """Blur and subsample."""
        assert isinstance(self.filt, Tensor)
        return F.conv2d(
            F.pad(x, (2, 2, 2, 2), mode="reflect"), self.filt, stride=2, groups=x.shape[1]
        )


def _alex_slices() -> list[nn.Sequential]:
    relu, pool = nn.ReLU(), nn.MaxPool2d(3, 1)
    return [
        nn.Sequential(nn.Conv2d(3, 64, 11, padding=2), BlurPool(64), relu),
        nn.Sequential(pool, BlurPool(64), nn.Conv2d(64, 192, 5, padding=2), relu),
        nn.Sequential(pool, BlurPool(192), nn.Conv2d(192, 384, 3, padding=1), relu),
        nn.Sequential(nn.Conv2d(384, 256, 3, padding=1), relu),
        nn.Sequential(nn.Conv2d(256, 256, 3, padding=1), relu),
    ]


def _vgg_slices() -> list[nn.Sequential]:
    slices, channels = [], 3
    for depth, width in ((2, 64), (2, 128), (3, 256), (3, 512), (3, 512)):
        layers: list[nn.Module] = [] if channels == 3 else [nn.MaxPool2d(2, 1), BlurPool(channels)]
        for _ in range(depth):
            layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU()]
            channels = width
        slices.append(nn.Sequential(*layers))
    return slices


NUM_SLICES = 5
"""Slices of a whole network."""
_SLICES = {"alex": _alex_slices, "vgg": _vgg_slices}


class ShiftTolerantLpips(nn.Module):
    """ST-LPIPS (Ghildyal and Liu, "Shift-tolerant Perceptual Similarity Metric", ECCV 2022).

    Not the same numbers as LPIPS: its backbone has blur pooling and its own heads.
    """

    def __init__(self, net: str, num_slices: int = NUM_SLICES) -> None:
        super().__init__()
        self.slices = nn.ModuleList(_SLICES[net]()[:num_slices])
        widths = [
            [m for m in part.modules() if isinstance(m, nn.Conv2d)][-1].out_channels
            for part in self.slices
        ]
        self.heads = nn.ParameterList([nn.Parameter(torch.zeros(1, w, 1, 1)) for w in widths])
        self.register_buffer("shift", torch.tensor(_SHIFT).view(1, 3, 1, 1))
        self.register_buffer("scale", torch.tensor(_SCALE).view(1, 3, 1, 1))
        self.requires_grad_(False)

    def features(self, image: Float[Tensor, "N 3 H W"]) -> list[Tensor]:
        """Unit-length features of every slice for images in [0, 1]."""
        assert isinstance(self.shift, Tensor)
        assert isinstance(self.scale, Tensor)
        x = (image * 2 - 1 - self.shift) / self.scale
        out = []
        for part in self.slices:
            x = part(x)
            out.append(x / ((x * x).sum(dim=1, keepdim=True).sqrt() + 1e-10))
        return out

    def forward(
        self, image: Float[Tensor, "N 3 H W"], truth: Float[Tensor, "N 3 H W"]
    ) -> Float[Tensor, "N"]:
        """Distance of each image to its truth, both in [0, 1]."""
        with torch.no_grad():
            wanted = self.features(truth)
        total = image.new_zeros(image.shape[0])
        for head, ours, theirs in zip(self.heads, self.features(image), wanted, strict=True):
            total = total + (head * (ours - theirs) ** 2).sum(dim=1).mean(dim=(1, 2)).float()
        return total


def package_file(package: str, inside: str, extra: str) -> Path:
    """Return a file inside an installed package, without importing it.

    Args:
        package: Name under which it is imported.
        inside: The file.
        extra: Name under which it is installed.

    Raises:
        MissingDependencyError: The package is not installed.
    """
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise MissingDependencyError(
            f"This metric needs the package '{extra}': install fvgen-recon[metrics]."
        )
    return Path(next(iter(spec.submodule_search_locations))) / inside


def _stlpips_state(net: str, keys: Iterable[str]) -> dict[str, Tensor]:
    path = package_file(
        "stlpips_pytorch", f"weights/vST0.0/{net}_shift_tolerant.pth", "stlpips-pytorch"
    )
    source = torch.load(path, map_location="cpu", weights_only=True)
    trunk = [k for k in source if k.startswith("net.") and not k.endswith("filt")]
    ours = [k for k in keys if k.startswith("slices.") and not k.endswith("filt")]
    state = {o: source[t] for o, t in zip(ours, trunk, strict=False)}
    heads = [k for k in keys if k.startswith("heads.")]
    return state | {k: source[f"lin{i}.model.1.weight"] for i, k in enumerate(heads)}


def load_stlpips(
    net: str, *, num_slices: int = NUM_SLICES, path: Path | None = None
) -> ShiftTolerantLpips:
    """Return ST-LPIPS with the backbone `alex` or `vgg`.

    Args:
        net: The backbone.
        num_slices: How many of its five slices to use; fewer is another distance.
        path: A file of packed features; the installed package where none is given.

    Raises:
        MissingDependencyError: The package is not installed and no file was given.
        WeightsError: The file does not hold this network.
    """
    model = ShiftTolerantLpips(net, num_slices)
    keys = list(model.state_dict())
    if path is None:
        state = _stlpips_state(net, keys)
    else:
        state = unpack_network(path, f"stlpips_{net}")
        if not state:
            raise WeightsError(
                f"{path} holds no ST-LPIPS network '{net}': pack the features again."
            )
    missing, _ = model.load_state_dict({k: v for k, v in state.items() if k in keys}, strict=False)
    missing = [k for k in missing if not k.endswith(("filt", "shift", "scale"))]
    if missing:
        raise WeightsError(f"The ST-LPIPS weights miss {len(missing)} tensors, first {missing[0]}.")
    return model.eval()


def pack_network(name: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a network's weights with 8 bits for each of a kernel's numbers, 32 for the rest."""
    tensors: dict[str, Tensor] = {}
    for key, value in state.items():
        if value.dim() < 4 or key.startswith("heads"):
            tensors[f"{name}.{key}"] = value.contiguous()
            continue
        step = value.abs().amax(dim=(1, 2, 3), keepdim=True).clamp_min(1e-12) / 127
        tensors[f"{name}.{key}"] = (value / step).round().to(torch.int8)
        tensors[f"{name}.{key}.step"] = step
    return tensors


def unpack_network(path: Path, name: str) -> dict[str, Tensor]:
    """Read one network of a file of packed features; empty where the file has none.

    Raises:
        InputError: The file is missing or damaged.
    """
    prefix = f"{name}."
    found = read_tensors(path)
    stored = {k.removeprefix(prefix): v for k, v in found.items() if k.startswith(prefix)}
    return {
        key: value.float() * stored[f"{key}.step"] if f"{key}.step" in stored else value
        for key, value in stored.items()
        if not key.endswith(".step")
    }


def packed_slices(path: Path, net: str) -> int:
    """Return how many slices of ST-LPIPS's `alex` or `vgg` are in a file of packed features.

    Raises:
        InputError: The file is missing or damaged.
    """
    return sum(name.startswith(f"stlpips_{net}.heads.") for name in read_tensors(path))


def pack_stlpips(net: str, num_slices: int) -> dict[str, Tensor]:
    """Return the weights of an ST-LPIPS network, packed; its name is `stlpips_` and the net's."""
    state = load_stlpips(net, num_slices=num_slices).state_dict()
    fixed = ("filt", "shift", "scale")
    return pack_network(f"stlpips_{net}", {k: v for k, v in state.items() if not k.endswith(fixed)})
