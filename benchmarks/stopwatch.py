"""Where the seconds of an iteration go, part by part, with the device waited for at each border.

Waiting keeps host and device from working at the same time, so the parts add up to more than an
undisturbed iteration takes.
"""

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn


class Stopwatch:
    """Sums seconds and calls by name while it is on."""

    def __init__(self) -> None:
        self.is_on = False
        self._sums: dict[str, list[float]] = defaultdict(lambda: [0.0, 0])
        self._starts: list[float] = []

    @contextmanager
    def section(self, name: str) -> Iterator[None]:
        """Time what is inside; nothing happens while the watch is off."""
        self._begin()
        yield
        self._end(name)

    def watch(self, name: str, module: nn.Module) -> None:
        """Time the forwards of a network, those with gradient apart from those without."""
        module.register_forward_pre_hook(lambda *_: self._begin(), prepend=True)
        module.register_forward_hook(lambda *_: self._end(f"{name} {_mode()}"))
        features = getattr(module, "features", None)
        if features is not None:
            module.__dict__["features"] = self._timed(f"{name} features", features)

    def read(self) -> dict[str, dict[str, float]]:
        """Return seconds and calls by name, longest first, and start anew."""
        ordered = sorted(self._sums.items(), key=lambda item: -item[1][0])
        self._sums.clear()
        return {name: {"s": round(s, 4), "calls": calls} for name, (s, calls) in ordered}

    def _timed(self, name: str, work: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            with self.section(f"{name} {_mode()}"):
                return work(*args, **kwargs)

        return timed

    def _begin(self) -> None:
        if self.is_on:
            self._starts.append(now())

    def _end(self, name: str) -> None:
        if self.is_on:
            entry = self._sums[name]
            entry[0] += now() - self._starts.pop()
            entry[1] += 1


def now() -> float:
    """Return the time when the device is done."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def _mode() -> str:
    return "with gradient" if torch.is_grad_enabled() else "without gradient"
