"""CUDA graphs of calls: hundreds of small kernels launched by one call of the host."""

import gc
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from threading import Lock
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn

_log = logging.getLogger(__name__)

WARM_UP = 2
"""Calls before a recording: kernels compile, and algorithms of convolutions are searched."""
_KEPT = 8
"""Recordings that are kept, two a shape of a student's clips, since they hold memory; a further one
takes their place."""

Result = TypeVar("Result")
Step = Callable[[Tensor, Tensor], tuple[Tensor, ...]]
"""Maps x_t [B C T h w] and t [B] to what the network makes of them."""
Errors = Literal["global", "thread_local"]


def record_call(
    call: Callable[[], Result],
    pool: Any,
    *,
    warm_up: int = WARM_UP,
    stream: torch.cuda.Stream | None = None,
    strict: bool = False,
    errors: Errors = "global",
) -> tuple[torch.cuda.CUDAGraph, Result]:
    """Run a call until its kernels are ready, then record it, on streams of its own.

    Args:
        call: Reads and writes tensors that stay where they are.
        pool: Memory that recordings share.
        warm_up: How often it runs before.
        stream: Where it is recorded; by default PyTorch's own for recordings.
        strict: Refuse a call that waits for the GPU before anything is recorded, since a recording
            that fails half-way leaves traces.
        errors: Whose calls that no recording allows (waiting, for one) fail meanwhile: those of all
            threads, or of this one.

    Returns:
        The recording, and what the call returned, which each replay fills anew.

    Raises:
        RuntimeError: The call cannot be recorded.
    """
    aside = torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        for _ in range(warm_up):
            call()
        if strict:
            with _no_waits():
                call()
            # Cycles that keep a gradient's graph would tie the recording to the stream of that.
            gc.collect()
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    recording = torch.cuda.graph(graph, pool=pool, stream=stream, capture_error_mode=errors)
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
    outputs: tuple[Tensor, ...]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class _Room:
    """Where the recordings of one recorder are made and lie."""

    pool: Any
    stream: Any
    """Of its own, and all of its recordings go at once: one that goes takes along memory of others
    that were made on its stream (pytorch/pytorch#193402, open in 2.14)."""


def _make_room(device: torch.device) -> _Room:
    return _Room(pool=torch.cuda.graph_pool_handle(), stream=torch.cuda.Stream(device))


class StepRecorder:
    """Replays the evaluations of a sampler, from the second clip of a shape on.

    The first clip makes the kernels ready, and a single one would not get back what a recording
    costs. On a CPU, and with gradients, everything runs as it is. Threads of one stream take turns:
    a viewer asks for frames while an evaluation runs. The memory goes with the recorder.
    """

    def __init__(self, network: nn.Module, evaluate: Callable[..., tuple[Tensor, ...]]) -> None:
        """Take a network.

        Args:
            network: Whose weights the evaluations read. They may change in place; where they have
                moved, evaluations are recorded again.
            evaluate: Maps x_t, t and the tensors that evaluations of a clip share to what the
                network makes of them. Evaluations that share another number of tensors are recorded
                on their own.
        """
        self._network = network
        self._evaluate = evaluate
        self._first: dict[tuple, object | None] = {}
        """The first clip of each shape."""
        self._made: dict[tuple, _Recording | None] = {}
        """By shape; none where it could not be recorded."""
        self._place: list[int] = []
        self._room: _Room | None = None
        self._is_told = False
        self._turn = Lock()

    def for_clip(self, *shared: Tensor) -> Step:
        """Return the evaluation of a clip.

        Args:
            shared: What these evaluations of the clip share.
        """
        with self._turn:
            self._forget_moved()
        clip = object()

        def step(x_t: Tensor, t: Tensor) -> tuple[Tensor, ...]:
            inputs = (x_t, t, *shared)
            if _is_recordable(inputs):
                with self._turn:
                    recording = self._find(inputs, clip)
                    if recording is not None:
                        return _replay(recording, inputs)
            return self._evaluate(*inputs)

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
        if key not in self._made:
            if len(self._made) == _KEPT:
                self._made.clear()
                self._first.clear()
                self._first[key] = None  # Not this clip: it goes on from the recording.
            self._made[key] = self._record(inputs)
        return self._made[key]

    def _record(self, inputs: tuple[Tensor, ...]) -> _Recording | None:
        try:
            kept = tuple(x.clone() for x in inputs)
            if self._room is None or not any(self._made.values()):
                self._room = _make_room(kept[0].device)
            graph, outputs = record_call(
                partial(self._evaluate, *kept),
                self._room.pool,
                warm_up=0,
                stream=self._room.stream,
                errors="thread_local",  # Others, a viewer's for one, use the GPU meanwhile.
            )
        except RuntimeError as error:  # Out of memory, or a layer that cannot be recorded.
            if not self._is_told:
                _log.warning("Frames are made kernel by kernel, which takes longer: %s", error)
            self._is_told = True
            return None
        return _Recording(replay=graph.replay, inputs=kept, outputs=outputs)


def _replay(recording: _Recording, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    for place, value in zip(recording.inputs, inputs, strict=True):
        place.copy_(value)
    recording.replay()
    # The next replay overwrites what it returns.
    return tuple(output.clone() for output in recording.outputs)


def _is_recordable(tensors: tuple[Tensor, ...]) -> bool:
    return not torch.is_grad_enabled() and all(x.is_cuda for x in tensors)
