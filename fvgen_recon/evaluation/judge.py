"""The perceptual networks that can be had offline, by the names of their numbers."""

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import torch
from jaxtyping import Float
from safetensors.torch import save_file
from torch import Tensor

from fvgen_recon.errors import MissingDependencyError
from fvgen_recon.evaluation.comparison import Judge
from fvgen_recon.evaluation.efficientnet import NAME, load_efficientnet
from fvgen_recon.evaluation.feature import (
    NUM_SLICES,
    load_stlpips,
    pack_network,
    pack_stlpips,
    packed_slices,
)
from fvgen_recon.io.file import atomic_path
from fvgen_recon.pointcloud.mvs.semantic import EfficientNetLite0

MIN_SIDE = 64
"""Shorter image side in pixels below which the networks have no features left."""

_BACKBONES = {"alex": "alexnet-owt-7be5be79.pth", "vgg": "vgg16-397923af.pth"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Jury:
    """Distances between an image and its truth, and features of images as a set."""

    judges: Mapping[str, Judge]
    """`st_lpips_alex` always; `st_lpips_vgg`, `lpips_alex`, `lpips_vgg` where they can be had."""
    eyes: EfficientNetLite0 | None
    """Network for distances between sets of images, or none where its weights are not here."""
    device: str
    """Where the networks run."""

    @torch.no_grad()
    def distances(
        self, image: Float[Tensor, "N 3 H W"], truth: Float[Tensor, "N 3 H W"]
    ) -> dict[str, Float[Tensor, "N"]]:
        """Return every distance of each image, by name; none for very small images."""
        if min(image.shape[-2:]) < MIN_SIDE:
            return {}
        return {name: judge(image, truth) for name, judge in self.judges.items()}


def backbone_path(net: str) -> Path:
    """Return where torchvision keeps the weights of LPIPS's backbone, whether or not they exist."""
    return Path(torch.hub.get_dir()) / "checkpoints" / _BACKBONES[net]


def _load_lpips(net: str, device: str) -> Judge:
    import lpips

    network = lpips.LPIPS(net=net, verbose=False).to(device).eval()
    return lambda image, truth: network(image, truth, normalize=True).flatten()


def _has_vgg(features: Path | None) -> bool:
    """Whether all slices of ST-LPIPS's VGG can be had; fewer, as training uses, measure otherwise.

    Args:
        features: The file that networks are read from; the package where none is given.
    """
    if features is None:
        return find_spec("stlpips_pytorch") is not None
    return packed_slices(features, "vgg") == NUM_SLICES


def load_jury(device: str, features: Path | None = None) -> Jury:
    """Load every network that can be had.

    Args:
        device: Where they shall run.
        features: A file of packed features, for machines without the packages.

    Raises:
        MissingDependencyError: Neither ST-LPIPS's package nor a file of it is there.
    """
    judges: dict[str, Judge] = {"st_lpips_alex": load_stlpips("alex", path=features).to(device)}
    if _has_vgg(features):
        judges["st_lpips_vgg"] = load_stlpips("vgg", path=features).to(device)
    for net in _BACKBONES:
        if backbone_path(net).is_file() and find_spec("lpips"):
            judges[f"lpips_{net}"] = _load_lpips(net, device)
    try:
        eyes = load_efficientnet(features=features).to(device)
    except MissingDependencyError:
        eyes = None
    return Jury(judges=judges, eyes=eyes, device=device)


def pack_features(path: Path, stlpips: Mapping[str, int]) -> None:
    """Store feature networks with 8 bits a weight, for machines without their packages.

    Args:
        path: A safetensors file to write.
        stlpips: Number of slices for each of ST-LPIPS's `alex`, `vgg`.

    Raises:
        MissingDependencyError: A package that holds weights is not installed.
    """
    tensors: dict[str, Tensor] = {}
    for net, num_slices in stlpips.items():
        tensors |= pack_stlpips(net, num_slices)
    tensors |= pack_network(NAME, load_efficientnet().state_dict())
    with atomic_path(path) as temporary:
        save_file(tensors, temporary)
