"""Batches made ahead of their use, in a thread of their own and on a stream of their own."""

import queue
import threading
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, nullcontext

import torch

from fvgen_recon.distill.stereo.batch import StereoBatch

_POLL = 0.2


def draw_ahead(
    draw: Callable[[], StereoBatch],
    device: torch.device,
    depth: int = 2,
    *,
    quiet: AbstractContextManager[object] | None = None,
) -> Generator[StereoBatch, None, None]:
    """Yield what `draw` returns, call after call; the next ones are drawn meanwhile.

    Drawing looks at its results, for which a GPU has to catch up; on a stream of its own it
    waits for nothing but itself. One thread draws, so that the order of the draws stays.

    Args:
        draw: Makes a batch; called in one other thread only. What it raises is raised here.
        device: Where the batches lie.
        depth: Batches that wait at most.
        quiet: A lock; nothing is drawn while another thread holds it.
    """
    ready: queue.Queue[StereoBatch | BaseException] = queue.Queue(maxsize=depth)
    stop = threading.Event()
    worker = threading.Thread(
        target=_fill,
        args=(draw, device, ready, stop, quiet or nullcontext()),
        daemon=True,
    )
    worker.start()
    try:
        while True:
            item = ready.get()
            if isinstance(item, BaseException):
                raise item
            if device.type == "cuda":
                for tensor in item.tensors():
                    # Else the memory might be drawn into while it is still read here.
                    tensor.record_stream(torch.cuda.current_stream(device))
            yield item
    finally:
        stop.set()
        worker.join()


def _fill(
    draw: Callable[[], StereoBatch],
    device: torch.device,
    ready: "queue.Queue[StereoBatch | BaseException]",
    stop: threading.Event,
    quiet: AbstractContextManager[object],
) -> None:
    on_cuda = device.type == "cuda"
    # Of high priority: many small kernels beside the large ones of the training.
    stream = torch.cuda.Stream(device, priority=-1) if on_cuda else None
    if stream is not None:  # what is drawn from was put there on the usual stream
        stream.wait_stream(torch.cuda.default_stream(device))
    while not stop.is_set():
        item: StereoBatch | BaseException
        try:
            with quiet:
                with torch.cuda.stream(stream) if stream is not None else nullcontext():
                    item = draw()
                if stream is not None:
                    stream.synchronize()
        except BaseException as error:  # raised again where the batches are used
            item = error
        while not stop.is_set():
            try:
                ready.put(item, timeout=_POLL)
                break
            except queue.Full:
                continue
        if isinstance(item, BaseException):
            return
