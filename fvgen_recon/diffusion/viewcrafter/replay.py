"""A network's evaluation kept as one CUDA graph, so that the host queues it in one call."""

import warnings
from collections.abc import Callable
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
    output: Tensor


class ReplayedForward:
    """A forward that is recorded once for each size of input and replayed afterwards.

    It stands for forwards of the form `(tensors) -> (output, features)`. Calls that want features
    or gradients, or are not on a GPU, run as before. Weights may change in place; where they have
    moved, the forward is recorded again. What cannot be recorded runs as before, with a warning.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.plain: Callable[..., Any] = module.forward
        self._recordings: dict[tuple[Any, ...], _Recording] = {}
        self._refused: set[tuple[Any, ...]] = set()
        self._place: tuple[int, ...] = ()

    def __call__(
        self, *inputs: Tensor | None, return_mid: bool = False
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Evaluate."""
        tensors = [x for x in inputs if x is not None]
        if return_mid or torch.is_grad_enabled() or not all(x.is_cuda for x in tensors):
            return self.plain(*inputs, return_mid=return_mid)
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
        return recording.output.clone(), ()

    def forget(self) -> None:
        """Give the memory of all recordings back."""
        self._recordings.clear()

    def _forget_moved(self) -> None:
        place = tuple(x.data_ptr() for x in self.module.parameters())
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
        with torch.cuda.graph(graph):
            output = self.plain(*kept)[0]
        return _Recording(graph=graph, inputs=kept, output=output)


def replay_forward(module: nn.Module) -> None:
    """Let a module replay its evaluations."""
    if not isinstance(module.forward, ReplayedForward):
        module.forward = ReplayedForward(module)
