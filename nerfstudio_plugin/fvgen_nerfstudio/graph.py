"""Functions of tensors whose many small kernels are launched all at once on a GPU."""

import logging
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor

_LOG = logging.getLogger(__name__)
Loss = Callable[..., tuple[Tensor, ...]]
"""A function of tensors that returns tensors."""
_MAX_GRAPHS = 16
"""Sizes that are kept: a run has one for photos, one for generated frames, each at some scales."""


class Replayed:
    """A function that a CUDA device records once for each size of its tensors and then replays.

    A small splat trains as fast as the host launches kernels, and hundreds of them are there for
    the losses alone. On the CPU and without gradients the function is called as it is.

    The function must be one of tensors alone, return a tuple of tensors, draw no random numbers and
    never look at values. What it returns is overwritten by its next call.
    """

    def __init__(self, function: Loss) -> None:
        self._function = function
        self._graphs: dict[Any, Loss] = {}

    def __call__(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Return what the function returns."""
        needs_gradients = torch.is_grad_enabled() and any(t.requires_grad for t in tensors)
        if not needs_gradients or not all(t.is_cuda for t in tensors):
            return self._function(*tensors)
        key = tuple((t.shape, t.dtype, t.requires_grad) for t in tensors)
        if key not in self._graphs and len(self._graphs) == _MAX_GRAPHS:
            return self._function(*tensors)
        if key not in self._graphs:
            self._graphs[key] = self._record(tensors)
        return self._graphs[key](*tensors)

    def _record(self, tensors: tuple[Tensor, ...]) -> Loss:
        """Return a recording for tensors of these sizes; the function where that goes wrong."""
        samples = tuple(t.detach().clone().requires_grad_(t.requires_grad) for t in tensors)
        expected = [output.detach() for output in self._function(*samples)]
        try:
            recorded = cast("Loss", torch.cuda.make_graphed_callables(self._function, samples))
            found = recorded(*samples)
        except RuntimeError as error:
            _LOG.warning("A loss could not be recorded, training is slower: %s", error)
            return self._function
        pairs = zip(found, expected, strict=True)
        if all(torch.allclose(ours, plain, rtol=1e-3, atol=1e-4) for ours, plain in pairs):
            return recorded
        _LOG.warning("A recorded loss differs from the loss itself: it is not used.")
        return self._function
