"""The shape of a compact backbone."""

from dataclasses import dataclass, replace

NUM_SOURCES = 4
"""Renders to copy from: trusted points, first layer, second layer, push-pull fill."""
NUM_ALTERNATIVES = 5
"""Renders of further guesses that `stereo` gives: the other views, then both ends at the depths of
the stereo network and of the plane sweep."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CompactConfig:
    """Everything that decides the shapes of the weights, and the meaning of time.

    Frames are unshuffled by `patch`; the three levels work at 1/patch, 1/(2 patch), 1/(4 patch).
    """

    patch: int = 4
    """Pixels folded into channels along each side."""
    widths: tuple[int, int, int] = (112, 176, 240)
    """Channels of the three levels."""
    num_blocks: tuple[int, int, int] = (2, 2, 2)
    """Residual blocks of each level, once on the way down and once on the way up."""
    num_attention: int = 3
    """Space-time attention layers at the bottom."""
    head_dim: int = 48
    """Channels of one attention head; a multiple of 16."""
    embedding: int = 256
    """Channels of the time embedding."""
    max_offset_px: float = 8.0
    """How far, in pixels, the head may reach beside a pixel when it copies from a render."""
    detail: int = 8
    """Channels that the head unfolds to every pixel for its work at full resolution."""
    finish: int = 32
    """Channels of the head's convolutions at full resolution."""
    fine_power: float = 1.0
    """To what power the shares of the renders are raised for detail of a pixel or two, at least 1;
    1 mixes all scales alike."""
    fine_nearest: bool = False
    """Whether that detail is read at the nearest pixel of a render instead of between four, which
    blurs it; coarse colour is always read between."""
    gate: bool = False
    """Whether the output keeps what the noisy frame shows already, each pixel as far as the network
    knows less (`WienerGate`)."""
    num_alternatives: int = 0
    """Further renders to copy from (`Guidance.alternatives`); those that are missing count as not
    hit anywhere."""
    hints: bool = False
    """Whether confidence and depth of every render are seen (`Guidance.hints`); those that are
    missing count as 0."""
    num_timesteps: int = 1000
    """Noise times run from 0 to num_timesteps - 1."""

    def blended_as(self, other: "CompactConfig") -> "CompactConfig":
        """Return the same shape with the way that another mixes renders, which no weight has."""
        return replace(self, fine_power=other.fine_power, fine_nearest=other.fine_nearest)

    @property
    def latent_channels(self) -> int:
        """Channels of a latent frame."""
        return 3 * self.patch**2

    @property
    def condition_channels(self) -> int:
        """Channels of the condition.

        Colours and masks of the sources, position, anchor flag, and behind them, so that a network
        without them reads what comes before, those of the alternatives and then hints.
        """
        more = 4 * self.num_alternatives * self.patch**2
        return self.base_channels + more + self.hints * self.hint_channels

    @property
    def hint_channels(self) -> int:
        """Channels of hints, where there are any: two a render, the fill left out."""
        return 2 * (NUM_SOURCES - 1 + self.num_alternatives)

    @property
    def base_channels(self) -> int:
        """Channels of the condition without alternatives."""
        return 4 * NUM_SOURCES * self.patch**2 + 2

    @property
    def size_multiple(self) -> int:
        """Heights and widths that the network accepts are multiples of this many pixels."""
        return 4 * self.patch
