"""Losses and gradients of a batch: kernel by kernel, or replayed as one CUDA graph.

The stereo network is small, so that a host takes longer to launch its two thousand kernels than a
GPU to run them. A graph holds forward, losses and backward of one shape of batch.
"""

import logging
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from fvgen_recon.diffusion.recording import record_call
from fvgen_recon.distill.stereo.batch import StereoBatch
from fvgen_recon.distill.stereo.loss import (
    FIGURES,
    StereoLosses,
    completion_losses,
    stereo_losses,
)
from fvgen_recon.pointcloud.mvs.network import MvsNetwork

_log = logging.getLogger(__name__)


class GradientFinder:
    """Sets the gradients of the weights of a network that learn, batch after batch."""

    def __init__(
        self,
        network: MvsNetwork,
        *,
        is_recorded: bool,
        completion_alone: bool = False,
        quiet: AbstractContextManager[object] | None = None,
    ) -> None:
        """Take a network; its weights may change in place, but must stay where they are.

        Args:
            network: The network.
            is_recorded: Record each shape of batch when it first comes, and replay it from then
                on; for a GPU only. Where that fails, all batches run as they would have without.
            completion_alone: Only the completion learns, from the first stage.
            quiet: Held while a recording is made; a lock of its own by default.
        """
        self.network = network
        self.completion_alone = completion_alone
        named = network.trained_weights(completion_alone=completion_alone)
        self.weights = list(named.values())
        self.is_recorded = is_recorded
        self.quiet: AbstractContextManager[object] = quiet or threading.Lock()
        """Held while a recording is made: nothing else may use the GPU then."""
        self.made: dict[tuple, Callable[[StereoBatch], Tensor]] = {}
        """Replays by shape of batch."""
        self._pool: Any = torch.cuda.graph_pool_handle() if is_recorded else None
        self._slots = [torch.zeros_like(w) for w in self.weights] if is_recorded else []

    def find(self, batch: StereoBatch) -> Float[Tensor, "F"]:
        """Set the gradients for a batch; returns the figures that `FIGURES` names."""
        if not self.is_recorded:
            return self._plain(batch)
        key = tuple(tuple(t.shape) for t in batch.tensors())
        if key not in self.made:
            try:
                with self.quiet:
                    self.made[key] = self._record(batch)
            except RuntimeError as error:
                self._give_up(error)
                return self._plain(batch)
        return self.made[key](batch)

    def _losses(self, batch: StereoBatch) -> StereoLosses:
        seen = batch.images, batch.cameras, batch.sources, batch.span
        if self.completion_alone:
            return completion_losses(self.network.complete_planes(*seen), batch.truth)
        return stereo_losses(self.network(*seen), batch.truth)

    def _plain(self, batch: StereoBatch) -> Tensor:
        for weight in self.weights:
            weight.grad = None
        losses = self._losses(batch)
        losses.total.backward()
        return _figures(losses)

    def _record(self, batch: StereoBatch) -> Callable[[StereoBatch], Tensor]:
        static = batch.copy()

        def call() -> Tensor:
            losses = self._losses(static)
            # Not `backward`: its sums into `grad` would wait for streams outside the recording.
            torch._foreach_copy_(self._slots, torch.autograd.grad(losses.total, self.weights))
            return _figures(losses)

        graph, figures = record_call(call, self._pool, strict=True)

        def replay(batch: StereoBatch) -> Tensor:
            for place, value in zip(static.tensors(), batch.tensors(), strict=True):
                place.copy_(value)
            graph.replay()
            for weight, slot in zip(self.weights, self._slots, strict=True):
                weight.grad = slot
            return figures.clone()

        return replay

    def _give_up(self, error: RuntimeError) -> None:
        _log.warning(
            "THE STEREO TRAINING IS NOT RECORDED: it goes on kernel by kernel, which is slow. %s",
            error,
        )
        self.is_recorded = False
        self.made.clear()
        self._slots.clear()


def _figures(losses: StereoLosses) -> Tensor:
    return torch.stack([losses.figures[name] for name in FIGURES])
