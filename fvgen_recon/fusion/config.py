"""The shape of a fusion network."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class FusionConfig:
    """Everything that decides the shapes of the weights.

    The first level works at every pixel, so it is narrow; each further one at half the size.
    """

    widths: tuple[int, ...] = (16, 24, 40, 64, 96)
    """Channels of the levels; images are split into as many bands."""
    num_blocks: tuple[int, ...] = (1, 1, 1, 1, 2)
    """Residual blocks of each level: once on the way down, and but for the last on the way up."""

    @property
    def size_multiple(self) -> int:
        """Images are padded to multiples of this many pixels."""
        return 2 ** (len(self.widths) - 1)
