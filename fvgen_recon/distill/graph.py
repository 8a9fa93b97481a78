"""CUDA graphs of a compact backbone: its many small kernels launched by one call.

A backbone of a few million weights keeps a GPU busy for less time than a host takes to launch its
kernels. Recorded once a shape and replayed, a call costs the host almost nothing. Where nothing can
be recorded, the call runs as it would have without.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from fvgen_recon.diffusion.backbone import Condition
from fvgen_recon.diffusion.compact.backbone import CompactBackbone

_log = logging.getLogger(__name__)

_WARM_UP = 3

Wanted = Literal["output", "features", "both"]
"""What a call asks for."""


class _Core(nn.Module):
    """The backbone as a function from tensors to tensors."""

    def __init__(self, backbone: CompactBackbone, wanted: Wanted) -> None:
        super().__init__()
        self.backbone = backbone
        self.wanted: Wanted = wanted

    def forward(self, x_t: Tensor, t: Tensor, concat: Tensor) -> tuple[Tensor, ...]:
        nothing = concat.new_zeros(concat.shape[0], 0, 1)
        condition = Condition(concat=concat, context=nothing, null_context=nothing)
        if self.wanted == "features":
            return CompactBackbone.features(self.backbone, x_t, t, condition)
        x0, mid = CompactBackbone.forward(
            self.backbone, x_t, t, condition, return_mid=self.wanted == "both"
        )
        return (x0, *mid)


@dataclass
class _Trainable:
    """A recorded forward and backward. Its activations are overwritten by the next forward."""

    run: Callable[..., tuple[Tensor, ...]]
    is_open: bool = False
    """A forward waits for its backward."""

    def __call__(self, *args: Tensor) -> tuple[Tensor, ...]:
        outputs = self.run(*args)
        self.is_open = True
        for output in outputs:
            if output.requires_grad:
                output.register_hook(self._close)
        return outputs

    def _close(self, gradient: Tensor) -> None:
        self.is_open = False


class _Recorder:
    """Stands in for a backbone's calls; keeps one graph for each shape and purpose."""

    def __init__(self, backbone: CompactBackbone) -> None:
        self.backbone = backbone
        self.cores: dict[Wanted, _Core] = {}
        self.made: dict[tuple, Callable[..., tuple[Tensor, ...]]] = {}

    def forward(
        self, x_t: Tensor, t: Tensor, condition: Condition, *, return_mid: bool = False
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Return what the backbone's own `forward` returns."""
        wanted: Wanted = "both" if return_mid else "output"
        output, *mid = self._call(wanted, x_t, t, condition)
        return output, tuple(mid)

    def features(self, x_t: Tensor, t: Tensor, condition: Condition) -> tuple[Tensor, ...]:
        """Return what the backbone's own `features` returns."""
        return self._call("features", x_t, t, condition)

    def _call(
        self, wanted: Wanted, x_t: Tensor, t: Tensor, condition: Condition
    ) -> tuple[Tensor, ...]:
        core = self.cores.setdefault(wanted, _Core(self.backbone, wanted))
        args = (x_t, t.float(), condition.concat)
        trains = torch.is_grad_enabled() and (
            x_t.requires_grad or next(self.backbone.parameters()).requires_grad
        )
        key = (wanted, trains, x_t.requires_grad, *((a.shape, a.dtype) for a in args))
        if key not in self.made:
            self.made[key] = _record(core, args, trains=trains)
        graph = self.made[key]
        if isinstance(graph, _Trainable) and graph.is_open:
            return core(*args)
        return graph(*args)


def _record(
    core: _Core, args: tuple[Tensor, ...], *, trains: bool
) -> Callable[..., tuple[Tensor, ...]]:
    """Record a call; the plain one where that fails."""
    enabled = torch.is_autocast_enabled("cuda")
    try:
        # Weights cast once a context, as autocast does, would be those of the recording for ever.
        with torch.autocast("cuda", torch.bfloat16, enabled=enabled, cache_enabled=False):
            return _record_trainable(core, args) if trains else _record_plain(core, args)
    except RuntimeError as error:
        _log.warning("A call could not be recorded and stays as it is: %s", error)
        return core


def _record_trainable(core: _Core, args: tuple[Tensor, ...]) -> _Trainable:
    sample = tuple(a.detach().clone().requires_grad_(a.requires_grad) for a in args)
    # What is recorded gets another `forward`, so it is given a core of its own.
    own = _Core(core.backbone, core.wanted)
    torch.cuda.make_graphed_callables(
        own, sample, num_warmup_iters=_WARM_UP, allow_unused_input=True
    )
    return _Trainable(run=own)


@torch.no_grad()
def _record_plain(core: _Core, args: tuple[Tensor, ...]) -> Callable[..., tuple[Tensor, ...]]:
    static = tuple(a.detach().clone() for a in args)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(_WARM_UP):
            core(*static)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outputs = core(*static)

    @torch.no_grad()
    def run(*args: Tensor) -> tuple[Tensor, ...]:
        for place, value in zip(static, args, strict=True):
            place.copy_(value)
        graph.replay()
        return tuple(output.clone() for output in outputs)

    return run


def record_calls(backbone: CompactBackbone) -> None:
    """Make calls of a backbone on a GPU replay recorded graphs, in place.

    Shapes, what is asked for and who requires gradients decide which graph is replayed; a new
    combination is recorded at its first call. Weights may change in place at any time. A second
    forward with gradients before the first one's backward runs plainly.
    """
    recorder = _Recorder(backbone)
    backbone.forward = recorder.forward
    backbone.features = recorder.features
