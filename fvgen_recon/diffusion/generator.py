"""The seam for generators: anything that turns guidance into frames."""

from typing import Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor

from fvgen_recon.types import Guidance


@runtime_checkable
class VideoGenerator(Protocol):
    """Fills in what a clip's guidance leaves unknown."""

    @property
    def name(self) -> str:
        """Short name for manifests and reports."""
        ...

    @property
    def num_frames(self) -> int:
        """Length of the clips that it makes."""
        ...

    @property
    def num_steps(self) -> int:
        """Network evaluations a clip; 0 where there is no network."""
        ...

    @property
    def size_multiple(self) -> int:
        """Image heights and widths must be multiples of this number of pixels."""
        ...

    @property
    def is_raw(self) -> bool:
        """Whether it was trained on bare renders, as ViewCrafter was (`GuidanceConfig.is_raw`)."""
        ...

    @property
    def weights_hash(self) -> str:
        """SHA-256 of the weights; empty where there are none."""
        ...

    def generate(self, guidance: Guidance, *, seed: int) -> Float[Tensor, "T 3 H W"]:
        """Return frames in [0, 1], the same for the same guidance and seed.

        Raises:
            InputError: The frame count or the image size does not suit this generator.
        """
        ...
