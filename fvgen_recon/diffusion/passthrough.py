"""The honest lower bound: the render itself, with nothing filled in."""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from fvgen_recon.types import Guidance


@dataclass(frozen=True, kw_only=True, slots=True)
class RenderGenerator:
    """Returns the guidance's own frames; what they do not show stays unknown."""

    num_frames: int = 16
    name: str = "render"
    num_steps: int = 0
    size_multiple: int = 1
    is_raw: bool = False
    weights_hash: str = ""

    def generate(self, guidance: Guidance, *, seed: int) -> Float[Tensor, "T 3 H W"]:
        """Return the render; `seed` has no effect."""
        del seed
        return guidance.frames
