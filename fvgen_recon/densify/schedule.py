"""When and how strongly generated views take part in training."""

import math
from dataclasses import dataclass, replace

from fvgen_recon.errors import InputError

_FEW = 6
"""Up to so many photos generated views take their whole share: measured at three, six and nine."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MixingSchedule:
    """Share and weight of generated views over a training run.

    The share rises from 0 at `start` to its maximum, stays, and falls back to 0 at `end`; after
    `end` only photos are trained on, so that the last word is always real.
    """

    start: float = 0.0
    """Progress in [0, 1] at which generated views begin to be drawn."""
    end: float = 0.85
    """Progress in [0, 1] at which they stop."""
    ramp: float = 0.1
    """Length of the rise and of the fall, in progress."""
    share: float = 0.4
    """Largest probability that a training step draws a generated view, for few photos."""
    weight: float = 0.5
    """Factor on the loss of a generated view, on top of its per-pixel confidence."""

    def __post_init__(self) -> None:
        """Check that the schedule ends on real views."""
        inside = 0 <= self.start < self.end < 1 and 0 <= self.share <= 1 and self.weight >= 0
        if not inside or self.ramp < 0:
            raise InputError(
                "A mixing schedule needs 0 <= start < end < 1, a share in [0, 1] and a weight and "
                f"ramp of at least 0: start {self.start:g}, end {self.end:g}, share "
                f"{self.share:g}, weight {self.weight:g} and ramp {self.ramp:g} came."
            )

    def for_inputs(self, num_inputs: int) -> "MixingSchedule":
        """Return the schedule for a number of input photos, at least 1.

        The more photos there are, the less is left for generated views to show: beyond six the
        share falls with the square of their number, as pairs of photos grow.
        """
        return replace(self, share=self.share * min(1.0, _FEW / num_inputs) ** 2)

    def share_at(self, progress: float) -> float:
        """Return the probability of a generated view at a progress in [0, 1]."""
        if not self.start <= progress < self.end:
            return 0.0
        if self.ramp == 0:
            return self.share
        nearest = min(progress - self.start, self.end - progress)
        rise = min(1.0, nearest / self.ramp)
        return self.share * math.sin(rise * math.pi / 2) ** 2
