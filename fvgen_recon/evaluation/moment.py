"""What is kept of the features of many images: enough for Frechet and kernel distances.

Moments of parts add up to the moments of the whole, so that trials can be measured one by one and
compared as a set later.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from safetensors.torch import load_file, save_file
from torch import Tensor

from fvgen_recon.evaluation.metric import frechet_from_moments
from fvgen_recon.io.file import atomic_path

_SHRINK = 0.05
"""Share of the mean variance in the covariances of features; steadies them for few frames."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Moments:
    """Count, sums and a sample of feature vectors."""

    count: int
    total: Float[Tensor, "D"]
    """Sum of the vectors."""
    product: Float[Tensor, "D D"]
    """Sum of their outer products."""
    sample: Float[Tensor, "S D"]
    """Evenly spread vectors, for the kernel distance."""

    @property
    def mean(self) -> Float[Tensor, "D"]:
        """Mean vector."""
        return self.total / self.count

    @property
    def covariance(self) -> Float[Tensor, "D D"]:
        """Unbiased covariance."""
        centred = self.product - self.count * self.mean[:, None] * self.mean
        return centred / max(1, self.count - 1)


def measure_moments(features: Float[Tensor, "N D"], *, num_samples: int = 512) -> Moments:
    """Sum up feature vectors in 64 bits."""
    rows = features.double().cpu()
    places = torch.linspace(0, len(rows) - 1, min(num_samples, len(rows))).round().long()
    return Moments(
        count=len(rows), total=rows.sum(dim=0), product=rows.T @ rows, sample=rows[places]
    )


def add_moments(parts: Sequence[Moments]) -> Moments:
    """Return the moments of all parts together."""
    return Moments(
        count=sum(part.count for part in parts),
        total=torch.stack([part.total for part in parts]).sum(dim=0),
        product=torch.stack([part.product for part in parts]).sum(dim=0),
        sample=torch.cat([part.sample for part in parts]),
    )


def frechet_between(first: Moments, second: Moments) -> float:
    """Return the Frechet distance of two sets, with steadied covariances."""
    return frechet_from_moments(
        (first.mean, first.covariance), (second.mean, second.covariance), shrink=_SHRINK
    )


def kernel_between(first: Moments, second: Moments) -> float:
    """Return the unbiased squared maximum mean discrepancy of two samples.

    The kernel is (x.y / D + 1)^3, that of KID (Binkowski et al., "Demystifying MMD GANs", 2018).
    """
    x, y = first.sample, second.sample

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        return (a @ b.T / a.shape[1] + 1) ** 3

    def within(a: Tensor) -> Tensor:
        k = kernel(a, a)
        return (k.sum() - k.diagonal().sum()) / (len(a) * (len(a) - 1))

    return float(within(x) + within(y) - 2 * kernel(x, y).mean())


def save_moments(path: Path, moments: dict[str, Moments]) -> None:
    """Write named moments as safetensors."""
    tensors: dict[str, Tensor] = {}
    for name, part in moments.items():
        tensors[f"{name}.count"] = torch.tensor(part.count)
        tensors[f"{name}.total"], tensors[f"{name}.product"] = part.total, part.product
        tensors[f"{name}.sample"] = part.sample.half()
    with atomic_path(path) as temporary:
        save_file(tensors, temporary)


def load_moments(path: Path) -> dict[str, Moments]:
    """Read what `save_moments` wrote."""
    tensors = load_file(path)
    names = sorted({key.rpartition(".")[0] for key in tensors})
    return {
        name: Moments(
            count=int(tensors[f"{name}.count"]),
            total=tensors[f"{name}.total"],
            product=tensors[f"{name}.product"],
            sample=tensors[f"{name}.sample"].double(),
        )
        for name in names
    }
