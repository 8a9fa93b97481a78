"""CUDA graphs of calls: hundreds of small kernels launched by one call of the host."""

import gc
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn

_log = logging.getLogger(__name__)

WARM_UP = 2
"""Calls before a recording: kernels compile, and algorithms of convolutions are searched."""
_KEPT = 4
"""Shapes whose recordings are kept; each holds the memory of its activations."""

Result = TypeVar("Result")
Step = Callable[[Tensor, Tensor], Tensor]
"""Maps x_t [B C T h w] and t [B] to the network's output [B C T h w]."""
Errors = Literal["global", "thread_local"]


def record_call(
    call: Callable[[], Result], pool: Any, *, strict: bool = False, errors: Errors = "global"
) -> tuple[torch.cuda.CUDAGraph, Result]:
    """Run a call until its kernels are ready, then record it, on streams of its own.

    Args:
        call: Reads and writes tensors that stay where they are.
        pool: Memory that recordings share.
        strict: Refuse a call that waits for the GPU before anything is recorded, since a recording
            that fails half-way leaves traces.
        errors: Whose calls that no recording allows (waiting, for one) fail meanwhile: those of all
            threads, or of this one.

    Returns:
        The recording, and what the call returned, which each replay fills anew.

    Raises:
        RuntimeError: The call cannot be recorded.
    """
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(WARM_UP):
            call()
        if strict:
            with _no_waits():
                call()
            # Cycles that keep a gradient's graph would tie the recording to the stream of that.
            gc.collect()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    recording = torch.cuda.graph(graph, pool=pool, capture_error_mode=errors)
    # The outer one puts back the stream where a recording fails.
    with torch.cuda.stream(torch.cuda.current_stream()), recording:
        outputs = call()
    return graph, outputs


@contextmanager
def _no_waits() -> Iterator[None]:
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class _Recording:
    """One evaluation, and where it reads and writes."""

    replay: Callable[[], None]
    inputs: tuple[Tensor, ...]
    """x_t, t and what the evaluations of a clip share."""
    output: Tensor


class StepRecorder:
    """Replays the evaluations of a sampler, from the second clip of a shape on.

    Recording costs as much as a few evaluations, which a single clip would not get back. On a CPU,
    and with gradients, everything runs as it is. For one thread at a time; the memory goes with
    the recorder.
    """

    def __init__(self, network: nn.Module, evaluate: Callable[..., Tensor]) -> None:
        """Take a network.

        Args:
            network: Whose weights the evaluations read. They may change in place; where they have
                moved, evaluations are recorded again.
            evaluate: Maps x_t, t and the tensors that the evaluations of a clip share to the
                network's output.
        """
        self._network = network
        self._evaluate = evaluate
        self._first: dict[tuple, object] = {}
        """The first clip of each shape."""
        self._made: dict[tuple, _Recording | None] = {}
        """By shape, the one used longest ago first; none where it could not be recorded."""
        self._place: list[int] = []
        self._pool: Any = None
        self._is_told = False

    def for_clip(self, *shared: Tensor) -> Step:
        """Return the evaluation of a clip.

        Args:
            shared: What all evaluations of the clip share.
        """
        self._forget_moved()
        clip = object()

        def step(x_t: Tensor, t: Tensor) -> Tensor:
            inputs = (x_t, t, *shared)
            recording = self._find(inputs, clip) if _is_recordable(inputs) else None
            if recording is None:
                return self._evaluate(*inputs)
            return _replay(recording, inputs)

        return step

    def _forget_moved(self) -> None:
        place = [weight.data_ptr() for weight in self._network.parameters()]
        if place != self._place:
            self._made.clear()
            self._place = place

    def _find(self, inputs: tuple[Tensor, ...], clip: object) -> _Recording | None:
        key = tuple((x.shape, x.dtype, x.device) for x in inputs)
        if self._first.setdefault(key, clip) is clip:
            return None
        if key in self._made:
            recording = self._made.pop(key)
        else:
            while len(self._made) >= _KEPT:
                oldest = next(iter(self._made))
                del self._made[oldest], self._first[oldest]
            recording = self._record(inputs)
        self._made[key] = recording
        return recording

    def _record(self, inputs: tuple[Tensor, ...]) -> _Recording | None:
        try:
            kept = tuple(x.clone() for x in inputs)
            if self._pool is None:
                self._pool = torch.cuda.graph_pool_handle()
            # Other threads, a viewer's for one, may use the GPU as they like meanwhile.
            call = partial(self._evaluate, *kept)
            graph, output = record_call(call, self._pool, errors="thread_local")
        except RuntimeError as error:  # Out of memory, or a layer that cannot be recorded.
            if not self._is_told:
                _log.warning("Frames are made kernel by kernel, which takes longer: %s", error)
            self._is_told = True
            return None
        return _Recording(replay=graph.replay, inputs=kept, output=output)


def _replay(recording: _Recording, inputs: tuple[Tensor, ...]) -> Tensor:
    for place, value in zip(recording.inputs, inputs, strict=True):
        place.copy_(value)
    recording.replay()
    # The next replay overwrites what it returns.
    return recording.output.clone()


def _is_recordable(tensors: tuple[Tensor, ...]) -> bool:
    return not torch.is_grad_enabled() and all(x.is_cuda for x in tensors)
