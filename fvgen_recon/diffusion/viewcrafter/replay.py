"""A network's evaluation kept as one CUDA graph, so that the host queues it in one call."""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

_KEPT = 2
"""Sizes of input whose graphs are kept; each holds the memory of its activations."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Recording:
    graph: torch.cuda.CUDAGraph
    inputs: tuple[Any, ...]
    output: Any


class ReplayedForward:
    """A forward that is recorded once for each size of input and replayed afterwards.

    It stands for forwards that return a tensor, or a tensor and features that options ask for.
    Calls with options or gradients, or not on a GPU, run as before. Weights may change in place;
    where they have moved, the forward is recorded again. What cannot be recorded runs as before,
    with a warning.
    """

    def __init__(self, module: nn.Module, pool: Any = None) -> None:
        """Bind a module.

        Args:
            module: The module.
            pool: Memory that several recordings take turns to use.
        """
        self.plain: Callable[..., Any] = module.forward
        self._pool = pool
        self._weights = [(m, name) for m in module.modules() for name in m._parameters]
        self._recordings: dict[tuple[Any, ...], _Recording] = {}
        self._refused: set[tuple[Any, ...]] = set()
        self._place: list[int] = []

    def __call__(self, *inputs: Tensor | None, **options: Any) -> Any:
        """Evaluate."""
        tensors = [x for x in inputs if x is not None]
        on_gpu = all(x.is_cuda for x in tensors)
        if any(options.values()) or torch.is_grad_enabled() or not on_gpu:
            return self.plain(*inputs, **options)
        self._forget_moved()
        key = tuple(x if x is None else (x.shape, x.stride(), x.dtype, x.device) for x in inputs)
        if key in self._refused:
            return self.plain(*inputs)
        recording = self._recordings.pop(key, None)
        if recording is None:
            while len(self._recordings) >= _KEPT:
                del self._recordings[next(iter(self._recordings))]
            try:
                recording = self._record(inputs)
            except RuntimeError as error:  # Out of memory, or a layer that cannot be recorded.
                warnings.warn(f"An evaluation was not recorded: {error}", stacklevel=2)
                self._refused.add(key)
                return self.plain(*inputs)
        self._recordings[key] = recording
        for kept, x in zip(recording.inputs, inputs, strict=True):
            if x is not None:
                kept.copy_(x)
        recording.graph.replay()
        # The next recording that is replayed may overwrite what this one holds.
        output = recording.output
        return output.clone() if isinstance(output, Tensor) else (output[0].clone(), ())

    def _forget_moved(self) -> None:
        weights = (module._parameters[name] for module, name in self._weights)
        place = [0 if x is None else x.data_ptr() for x in weights]
        if place != self._place:
            self._recordings.clear()
            self._refused.clear()
            self._place = place

    def _record(self, inputs: tuple[Tensor | None, ...]) -> _Recording:
        kept = tuple(x if x is None else x.clone() for x in inputs)
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            # Kernels compile, and algorithms of convolutions are searched, before the recording.
            for _ in range(2):
                self.plain(*kept)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            output = self.plain(*kept)
        return _Recording(graph=graph, inputs=kept, output=output)


def replay_forwards(modules: Sequence[nn.Module]) -> None:
    """Let modules that run one after the other replay their evaluations."""
    pool = torch.cuda.graph_pool_handle() if torch.cuda.is_available() else None
    for module in modules:
        if not isinstance(module.forward, ReplayedForward):
            module.forward = ReplayedForward(module, pool)
