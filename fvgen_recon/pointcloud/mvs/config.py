"""Sizes of the stereo network."""

from dataclasses import dataclass

from fvgen_recon.errors import InputError


@dataclass(frozen=True, kw_only=True, slots=True)
class MvsConfig:
    """Everything that decides the shapes of the weights, and the hypotheses."""

    widths: tuple[int, int, int] = (32, 64, 128)
    """Channels of the photo encoder at 1/2, 1/4 and 1/8 of the image size."""
    matched: tuple[int, int] = (16, 32)
    """Channels that are compared at 1/2 and 1/4."""
    groups: tuple[int, int] = (4, 8)
    """Groups that these are correlated in."""
    volume: tuple[int, int] = (12, 20)
    """Channels of the volumes' networks at 1/2 and 1/4."""
    num_attention: int = 2
    """Blocks of attention within and between views at 1/8; 0 for none."""
    head_dim: int = 32
    """Channels of a head of attention."""
    num_completion: int = 0
    """Blocks of attention that complete what the planes' matching left open; 0 leaves that out."""
    completion_width: int = 192
    """Channels of these."""
    is_semantic: bool = False
    """Whether these see features that were learned on ImageNet."""
    num_planes: int = 64
    """Hypotheses of the first stage, evenly spaced in inverse depth."""
    num_offsets: int = 16
    """Hypotheses of the second stage, around what the first one found."""
    spacing: float = 0.25
    """Spacing of these over that of the planes."""

    def __post_init__(self) -> None:
        """Check what depends on each other."""
        if self.is_semantic and self.num_completion == 0:
            raise InputError(
                "Features of ImageNet are seen by the completion alone, and it has no blocks: set "
                "num_completion, 6 for instance."
            )
