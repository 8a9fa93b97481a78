"""What is known of a view when its render and its frame are put together."""

from dataclasses import astuple, dataclass, fields

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class ViewFacts:
    """Numbers that hold for a whole view."""

    share: float
    """Share of the frame under the plain rule, in (0, 1)."""
    num_inputs: int
    """Number of input photos that the splat has learnt from."""
    num_members: int
    """Number of members whose renders were averaged."""
    angle: float
    """Angle in radians between the viewing directions of the view and of the nearest input."""
    distance: float
    """Distance to the nearest input over the typical distance between inputs."""
    scale: float
    """Pixels of the generator's, along a side, for one of the render."""

    def row(self) -> Float[Tensor, "1 F"]:
        """Return the numbers as a row, in the order of the fields."""
        return torch.tensor([astuple(self)], dtype=torch.float32)

    @classmethod
    def from_row(cls, row: list[float]) -> "ViewFacts":
        """Return the facts that a row holds."""
        share, num_inputs, num_members, angle, distance, scale = row
        return cls(
            share=share,
            num_inputs=round(num_inputs),
            num_members=round(num_members),
            angle=angle,
            distance=distance,
            scale=scale,
        )


NUM_FACTS = len(fields(ViewFacts))
SHARE = 0
"""Place of the plain rule's share in a row of facts."""
SCALE = NUM_FACTS - 1
"""Place of the generator's scale in a row of facts."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FusionView:
    """A batch of views of one size."""

    splat: Float[Tensor, "N 3 H W"]
    """The splat's image in [0, 1]; the mean of its members."""
    spread: Float[Tensor, "N 1 H W"]
    """Standard deviation between members, its root mean square over the channels; 0 with one."""
    opacity: Float[Tensor, "N 1 H W"]
    """Accumulated opacity of the splat, in [0, 1]."""
    frame: Float[Tensor, "N 3 H W"]
    """The generator's frame in [0, 1], at the splat's brightness."""
    trusted: Float[Tensor, "N 1 H W"]
    """1 where a trusted point was rendered; between at other sizes than the generator's."""
    layered: Float[Tensor, "N 1 H W"]
    """1 where a dense layer of an input was rendered."""
    facts: Float[Tensor, "N F"]
    """A row of `ViewFacts` a view."""

    def plain(self) -> Float[Tensor, "N 3 H W"]:
        """Return the mix by the plain rule."""
        return torch.lerp(self.splat, self.frame, self.facts[:, SHARE, None, None, None])
