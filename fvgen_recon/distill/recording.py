"""CUDA graphs of a backbone's calls: thousands of small kernels launched by one call.

A call is recorded once for each shape and replayed from then on. Weights may change in place, but
must stay where they are. Calls whose recording fails run as they would have without.
"""

import copy
import gc
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from fvgen_recon.diffusion.backbone import Condition, mid_features
from fvgen_recon.diffusion.recording import WARM_UP, record_call

_log = logging.getLogger(__name__)

Wanted = Literal["output", "features", "both"]
Call = Callable[..., tuple[Tensor, ...]]


@dataclass
class Recordings:
    """Memory that the recordings of several networks share.

    Without gradients nothing outlives a call, so all of them may use the same memory. With
    gradients the activations live until the backward, so only one network may be between the two.
    """

    plain_pool: Any = field(default_factory=torch.cuda.graph_pool_handle)
    """Memory of calls without gradients."""
    trained_pool: Any = field(default_factory=torch.cuda.graph_pool_handle)
    """Memory of calls with gradients."""
    is_open: bool = False
    """A recorded forward with gradients waits for its backward."""
    recorders: list["_Recorder"] = field(default_factory=list)
    """Who has recordings."""
    warm: set[tuple] = field(default_factory=set)
    """Calls with gradients that some network made before it was recorded."""

    def record(self, backbone: nn.Module, *, fused: bool = False, through: bool = False) -> None:
        """Replay the calls of a backbone from now on, in place.

        Args:
            backbone: The network.
            fused: Run calls without gradients in this project's GPU kernels, where those suit it.
            through: Record calls with gradients to the input too; else they run as they are, which
                leaves room for the activations of those who train.
        """
        recorder = _Recorder(backbone, self, fused=fused, through=through)
        self.recorders.append(recorder)
        backbone.forward = recorder.forward
        if hasattr(backbone, "features"):
            backbone.__dict__["features"] = recorder.features

    def forget(self) -> None:
        """Free all recordings; calls are recorded again when they are next made."""
        for recorder in self.recorders:
            recorder.made.clear()
        self.is_open = False
        # Cores, their graphs and their replaced forwards refer to each other.
        gc.collect()
        torch.cuda.empty_cache()
        # Memory of a pool goes back with its last graph; an empty one is not used again.
        self.plain_pool = torch.cuda.graph_pool_handle()
        self.trained_pool = torch.cuda.graph_pool_handle()

    def close(self, gradient: Tensor) -> None:
        """Note that a backward has begun; a hook on outputs."""
        self.is_open = False


class _Core(nn.Module):
    """A backbone as a function from tensors to tensors."""

    def __init__(self, plain: nn.Module, wanted: Wanted) -> None:
        super().__init__()
        self.plain = plain
        self.wanted = wanted

    def forward(
        self, x_t: Tensor, t: Tensor, concat: Tensor, context: Tensor
    ) -> tuple[Tensor, ...]:
        condition = Condition(concat=concat, context=context, null_context=context)
        if self.wanted == "features":
            return mid_features(self.plain, x_t, t, condition)
        # Not through `__call__`: hooks belong to the network, not to what is recorded of it.
        output, mid = self.plain.forward(x_t, t, condition, return_mid=self.wanted == "both")
        return (output, *mid)


class _Recorder:
    """Stands in for a backbone's calls."""

    def __init__(
        self, backbone: nn.Module, shared: Recordings, *, fused: bool, through: bool
    ) -> None:
        self.fused = fused_twin(backbone) if fused else None
        self.through = through
        # A second shell around the same parts, whose own calls stay plain.
        self.plain = backbone.__class__.__new__(backbone.__class__)
        self.plain.__dict__.update(backbone.__dict__)
        self.shared = shared
        self.made: dict[tuple, Call] = {}

    def forward(
        self, x_t: Tensor, t: Tensor, condition: Condition, *, return_mid: bool = False
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Return what the backbone's own `forward` returns."""
        output, *mid = self._call("both" if return_mid else "output", x_t, t, condition)
        return output, tuple(mid)

    def features(self, x_t: Tensor, t: Tensor, condition: Condition) -> tuple[Tensor, ...]:
        """Return what the backbone's own `features` returns."""
        return self._call("features", x_t, t, condition)

    def _call(
        self, wanted: Wanted, x_t: Tensor, t: Tensor, condition: Condition
    ) -> tuple[Tensor, ...]:
        args = (x_t, t, condition.concat, condition.context)
        grad = torch.is_grad_enabled()
        passes = grad and x_t.requires_grad
        trains = passes or (grad and any(p.requires_grad for p in self.plain.parameters()))
        if (passes and not self.through) or (trains and self.shared.is_open):
            return _Core(self.plain, wanted)(*args)
        key = (wanted, trains, passes, *((a.shape, a.dtype) for a in args))
        if key not in self.made:
            # Weights that autocast had cast once a context would stay those of the recording.
            with _uncached_autocast():
                self.made[key] = self._record(wanted, args, trains=trains)
        return self.made[key](*args)

    def _record(self, wanted: Wanted, args: tuple[Tensor, ...], *, trains: bool) -> Call:
        if self.fused is not None and not trains:
            try:
                return self._untrained(_Core(self.fused, wanted), args)
            except Exception as error:
                _log.warning("A call runs without kernels of our own: %s", error)
        core = _Core(self.plain, wanted)
        try:
            return self._trained(core, args) if trains else self._untrained(core, args)
        except RuntimeError as error:
            _log.warning("A call could not be recorded and stays as it is: %s", error)
            return _Core(self.plain, wanted)

    def _trained(self, core: _Core, args: tuple[Tensor, ...]) -> Call:
        sample = tuple(a.detach().clone().requires_grad_(a.requires_grad) for a in args)
        # Libraries are ready for the second network of a kind. Warming up again would take the room
        # of all activations beside those of the first one's recording.
        kind = (core.wanted, *_kind(self.plain), *((a.shape, a.requires_grad) for a in args))
        # In place: from here on the core itself replays.
        torch.cuda.make_graphed_callables(
            core,
            sample,
            num_warmup_iters=0 if kind in self.shared.warm else WARM_UP,
            allow_unused_input=True,
            pool=self.shared.trained_pool,
        )
        self.shared.warm.add(kind)

        def replay(*args: Tensor) -> tuple[Tensor, ...]:
            outputs: tuple[Tensor, ...] = core(*args)
            self.shared.is_open = True
            for output in outputs:
                if output.requires_grad:
                    output.register_hook(self.shared.close)
            return outputs

        return replay

    @torch.no_grad()
    def _untrained(self, core: _Core, args: tuple[Tensor, ...]) -> Call:
        static = tuple(a.detach().clone() for a in args)
        graph, outputs = record_call(lambda: core(*static), self.shared.plain_pool)

        @torch.no_grad()
        def replay(*args: Tensor) -> tuple[Tensor, ...]:
            for place, value in zip(static, args, strict=True):
                place.copy_(value)
            graph.replay()
            return tuple(output.clone() for output in outputs)

        return replay


def _kind(network: nn.Module) -> tuple:
    """Return what networks share that launch the same kernels."""
    return type(network), tuple((p.shape, p.dtype) for p in network.parameters())


def _uncached_autocast() -> torch.autocast:
    enabled = torch.is_autocast_enabled("cuda")
    dtype = torch.get_autocast_dtype("cuda")
    return torch.autocast("cuda", dtype, enabled=enabled, cache_enabled=False)


def fused_twin(backbone: nn.Module) -> nn.Module:
    """Return the same network, on the same weights, in layers that have no gradients."""
    from fvgen_recon.diffusion.viewcrafter.fused import use_fused_layers

    memo = {id(x): x for x in (*backbone.parameters(), *backbone.buffers())}
    twin = copy.deepcopy(backbone, memo)
    use_fused_layers(twin)
    return twin
