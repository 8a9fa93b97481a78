"""Means over a stretch of steps without waiting for the device, and guards that stop a bad run."""

import math
import statistics
from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

from fvgen_recon.distill.calibration import BinnedAccuracy
from fvgen_recon.distill.parallel import Processes, extreme_over_processes, mean_over_processes
from fvgen_recon.errors import TrainingError

_HISTORY = 20
_USUAL_AFTER = 5


_EXTREMES: dict[str, Literal["min", "max"]] = {"min": "min", "max": "max"}


class Window:
    """Running sums of what steps report; they stay on the device until `read`."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, int] = {}
        self._accuracy: BinnedAccuracy | None = None

    def add(self, scalars: Mapping[str, Tensor], accuracy: BinnedAccuracy | None = None) -> None:
        """Take in one step."""
        for name, scalar in scalars.items():
            value = scalar.detach().float()
            before = self._sums.get(name)
            self._sums[name] = value if before is None else _joined(name, before, value)
            self._counts[name] = self._counts.get(name, 0) + 1
        if accuracy is not None:
            self._accuracy = accuracy if self._accuracy is None else self._accuracy + accuracy

    def read(self, processes: Processes) -> dict[str, float]:
        """Return the means over steps and processes, and start anew. Waits for the device.

        Names that end in /min and /max are joined as extremes, not as means.
        """
        names = list(self._sums)
        values = []
        for name in names:
            extreme = _EXTREMES.get(name.rsplit("/", 1)[-1])
            value = self._sums[name] / (1 if extreme else self._counts[name])
            values.append(extreme_over_processes(value, extreme, processes) if extreme else value)
        if self._accuracy is not None:
            values.extend([*self._accuracy.correct, *self._accuracy.count])
        if not values:
            return {}
        means = mean_over_processes(torch.stack(values), processes).tolist()
        result = dict(zip(names, means, strict=False))
        if "weight/mean_square" in result:
            square = result.pop("weight/mean_square")
            result["weight/effective_share"] = result["weight/mean"] ** 2 / square
        if self._accuracy is not None:
            result |= _accuracies(means[len(names) :])
        self._sums, self._counts, self._accuracy = {}, {}, None
        return result


def _joined(name: str, before: Tensor, value: Tensor) -> Tensor:
    if name.endswith("/min"):
        return torch.minimum(before, value)
    return torch.maximum(before, value) if name.endswith("/max") else before + value


def _accuracies(numbers: list[float]) -> dict[str, float]:
    """Shares of right decisions from counts of right ones, then of all."""
    half = len(numbers) // 2
    correct, count = numbers[:half], numbers[half:]
    shares = {"accuracy/all": sum(correct) / max(sum(count), 1e-9)}
    for index, (right, decided) in enumerate(zip(correct, count, strict=True)):
        if decided > 0:
            shares[f"accuracy/t{index}"] = right / decided
    return shares


class Guard:
    """Stops a run whose numbers are no longer finite or whose gradients explode."""

    def __init__(self, factor: float, history: Mapping[str, list[float]]) -> None:
        """Start with what an earlier part of the run has seen."""
        self._factor = factor
        self.history: dict[str, list[float]] = {k: list(v) for k, v in history.items()}

    def check(self, phase: str, step: int, scalars: Mapping[str, float]) -> None:
        """Look at the means of a stretch of steps.

        Raises:
            TrainingError: Something is not finite, or a gradient norm is far above its usual size.
        """
        for name, value in scalars.items():
            if not math.isfinite(value):
                raise TrainingError(
                    f"{name} is not finite in phase {phase} at step {step}: resume from the last "
                    "checkpoint with lower learning rates."
                )
        for name, value in scalars.items():
            if name.startswith("gradient_norm/"):
                self._compare(f"{phase}/{name}", phase, step, value)

    def _compare(self, key: str, phase: str, step: int, value: float) -> None:
        seen = self.history.setdefault(key, [])
        usual = statistics.median(seen) if len(seen) >= _USUAL_AFTER else math.inf
        if value > self._factor * usual > 0:
            raise TrainingError(
                f"The {key.rsplit('/', 1)[1]}'s gradient norm is {value:.3g} in phase {phase} at "
                f"step {step}, over {self._factor:g} times its usual {usual:.3g}: the run is "
                "diverging. Resume from the last checkpoint with a lower learning rate."
            )
        seen.append(value)
        del seen[:-_HISTORY]
