"""How near a render is to a photo."""

from collections.abc import Callable

import torch
from jaxtyping import Float
from nerfstudio.model_components.lib_bilagrid import color_correct
from pytorch_msssim import ssim
from torch import Tensor

from fvgen_nerfstudio.perceptual import PerceptualMetrics


class ImageMetrics:
    """PSNR, SSIM and what perceptual metrics can be had without a network.

    A plain object, so that a model may hold it without its networks entering checkpoints.

    Args:
        say: Told once which metrics are missing.
    """

    def __init__(self, say: Callable[[str], None]) -> None:
        self._perceptual = PerceptualMetrics(say)

    def measure(
        self,
        image: Float[Tensor, "H W 3"],
        target: Float[Tensor, "H W 3"],
        *,
        color_corrected: bool,
    ) -> dict[str, float]:
        """Return metrics of an image in [0, 1] by name.

        Args:
            image: The render.
            target: The photo.
            color_corrected: Whether there are those of the render in the photo's colours as well,
                under names that begin with `cc_`.
        """
        metrics = self._compare(image, target)
        if color_corrected:
            found = self._compare(color_correct(image, target), target)
            metrics.update({f"cc_{name}": value for name, value in found.items()})
        return metrics

    @torch.no_grad()
    def _compare(self, image: Tensor, target: Tensor) -> dict[str, float]:
        from torchmetrics.functional.image import peak_signal_noise_ratio

        first, second = (x.permute(2, 0, 1)[None] for x in (image, target))
        return {
            "psnr": float(peak_signal_noise_ratio(first, second, data_range=1.0)),
            "ssim": float(ssim(second, first, data_range=1.0)),
            **self._perceptual.measure(first, second),
        }
