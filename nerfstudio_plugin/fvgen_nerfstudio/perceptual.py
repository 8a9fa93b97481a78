"""Perceptual metrics that never touch the network.

`lpips` is reported only where torchvision's AlexNet weights already lie in the user's torch cache;
`st_lpips` (shift-tolerant LPIPS, Ghildyal and Liu, ECCV 2022) under its own name where its package,
which carries its weights, is installed. What is missing is said once.
"""

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor

Metric = Callable[[Tensor, Tensor], Tensor]
"""Takes two images `1 3 H W` in [0, 1] and returns a distance."""

ALEXNET_FILE = "alexnet-owt-7be5be79.pth"
MIN_SIDE = 64
"""The networks halve images five times: smaller images have no features left."""


def lpips_backbone() -> Path:
    """Return where torchvision keeps AlexNet's weights, whether or not they are there."""
    return Path(torch.hub.get_dir()) / "checkpoints" / ALEXNET_FILE


def load_metrics(device: torch.device) -> dict[str, Metric]:
    """Load what can be had without a network, by the name that it is reported under."""
    metrics: dict[str, Metric] = {}
    if lpips_backbone().exists():
        metrics["lpips"] = _load_lpips(device)
    if find_spec("stlpips_pytorch"):
        metrics["st_lpips"] = _load_st_lpips(device)
    return metrics


def _load_lpips(device: torch.device) -> Metric:
    from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity

    network = LearnedPerceptualImagePatchSimilarity(net_type="alex", normalize=True)
    return network.to(device).eval()


def _load_st_lpips(device: torch.device) -> Metric:
    from fvgen_recon.evaluation.feature import load_stlpips

    network = load_stlpips("alex").to(device)
    return lambda first, second: network(first, second).mean()


class PerceptualMetrics:
    """Loads metrics on first use and says once which are missing.

    A plain object, so that a model may hold it without its networks entering checkpoints.
    """

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._metrics: dict[str, Metric] | None = None

    @torch.no_grad()
    def measure(self, prediction: Tensor, target: Tensor) -> dict[str, float]:
        """Return distances between two images `1 3 H W` in [0, 1], by metric name."""
        if self._metrics is None:
            self._metrics = load_metrics(prediction.device)
            if "lpips" not in self._metrics:
                self._say(
                    f"LPIPS is not reported: its AlexNet weights are not in {lpips_backbone()}."
                    + (" ST-LPIPS is reported as st_lpips." if self._metrics else "")
                )
        if min(prediction.shape[-2:]) < MIN_SIDE:
            return {}
        return {name: float(run(prediction, target)) for name, run in self._metrics.items()}
