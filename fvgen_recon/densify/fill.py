"""A generator without a model: the best that warping, blending and inpainting can do."""

from dataclasses import dataclass

import cv2
import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from fvgen_recon.diffusion.compact.codec import merge_sources, stack_guidance
from fvgen_recon.types import Guidance

_RADIUS_PX = 3


@dataclass(frozen=True, kw_only=True, slots=True)
class FillGenerator:
    """Trusted render, else the dense layers of both ends by the place in the clip, else inpainting.

    It is the yardstick of every network: what needs no training.
    """

    num_frames: int = 16
    """Length of the clips that planners should make; any length is accepted."""
    name: str = "fill"
    num_steps: int = 0
    size_multiple: int = 1
    is_raw: bool = False
    weights_hash: str = ""

    def generate(self, guidance: Guidance, *, seed: int) -> Float[Tensor, "T 3 H W"]:
        """Return frames in [0, 1]; anchors keep their photos and nothing is random."""
        del seed
        blend, known = merge_sources(stack_guidance([guidance]))
        return torch.stack(
            [
                inpaint(frame, mask)
                for frame, mask in zip(blend[0].clamp(0, 1), known[0] > 0, strict=True)
            ]
        )


def inpaint(image: Float[Tensor, "3 H W"], known: Bool[Tensor, "1 H W"]) -> Float[Tensor, "3 H W"]:
    """Fill what is not known from its border; known pixels stay exactly as they are.

    The method is Telea, "An Image Inpainting Technique Based on the Fast Marching Method" (2004).
    Where nothing at all is known the image becomes mid-grey.
    """
    if bool(known.all()):
        return image
    if not bool(known.any()):
        return torch.full_like(image, 0.5)
    pixels = (image * 255).round().byte().permute(1, 2, 0).cpu().numpy()
    hole = (~known[0]).cpu().numpy().astype(np.uint8)
    filled = cv2.inpaint(np.ascontiguousarray(pixels), hole, _RADIUS_PX, cv2.INPAINT_TELEA)
    result = torch.from_numpy(filled).permute(2, 0, 1).to(image) / 255
    return torch.where(known, image, result)
