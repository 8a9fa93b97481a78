"""How long the rest of a run takes, by what was made in it: what was finished before costs nothing.

Scores that lie in the work folder are read in no time, so counting them would promise an end that
is far too near when a run goes on.
"""

import time
from collections.abc import Callable, Sequence


class Progress:
    """Counts jobs in their order.

    Args:
        finished: Which jobs were finished before the run.
        clock: Seconds of a clock that never goes back.
    """

    def __init__(
        self, finished: Sequence[bool], clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self._finished = tuple(finished)
        self._clock = clock
        self._start = clock()
        self._count = 0

    def step(self, what: str) -> str:
        """Count one job and return the line that says so."""
        self._count += 1
        line = f"{self._count} of {len(self._finished)} done ({what})"
        left = self._seconds_left()
        return line if left is None else f"{line}, about {left:.0f} s left"

    def _seconds_left(self) -> float | None:
        """Return how long the rest takes; none where nothing was made yet to judge it by."""
        made = self._finished[: self._count].count(False)
        waiting = self._finished[self._count :].count(False)
        if waiting == 0:
            return 0.0
        return (self._clock() - self._start) / made * waiting if made else None
