"""Several processes: who is who, copies (DDP) and shards (FSDP2) of networks, averages.

Start with `torchrun` or `accelerate launch`, on one machine or many; both are understood.
"""

import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Literal, NoReturn

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from fvgen_recon.diffusion.backbone import FeatureBackbone, PartedBackbone
from fvgen_recon.errors import MissingDependencyError

_MOST_SHAPES = 256
"""Shapes and modes that a kind of part is compiled for before PyTorch stops compiling it."""
_PATIENCE = timedelta(hours=1)
"""How long processes wait for each other. The others wait while the main one writes a checkpoint of
30 GB or the student; NCCL's ten minutes would end a run on a slow shared disk."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Processes:
    """The processes that train together."""

    rank: int
    """Number of this one."""
    count: int
    """How many there are."""
    device: torch.device
    """What this one computes on."""

    @property
    def is_main(self) -> bool:
        """True for the process that writes files and logs."""
        return self.rank == 0


def start_processes(*, cpu: bool = False) -> Processes:
    """Join the group that the launcher set up; a plain `python` is a group of one."""
    from accelerate import PartialState

    state = PartialState(cpu=cpu, timeout=_PATIENCE)
    device = torch.device(state.device or "cpu")
    return Processes(rank=state.process_index, count=state.num_processes, device=device)


def blocks(module: nn.Module) -> list[nn.Module]:
    """Return the parts of a network that are sharded, recomputed and compiled one by one.

    They are the elements of its outermost `nn.ModuleList`s, which is how UNets and transformers
    hold their layers. Elements that are containers themselves are not split further.
    """
    found: list[nn.Module] = []
    for child in module.children():
        if isinstance(child, nn.ModuleList):
            found.extend(child)
        else:
            found.extend(blocks(child))
    return [b for b in found if any(True for _ in b.parameters())]


def checkpoint_activations(module: nn.Module) -> None:
    """Recompute the blocks of a network in the backward pass instead of storing what they did."""
    for block in blocks(module):
        plain = block.forward

        def recomputed(*args: object, _plain=plain, **kwargs: object) -> object:
            if not torch.is_grad_enabled():
                return _plain(*args, **kwargs)
            return checkpoint(_plain, *args, use_reentrant=False, **kwargs)

        block.forward = recomputed


def compile_parts(module: nn.Module) -> None:
    """Compile the parts of a network one by one: minutes less than the whole network at once."""
    config = torch._dynamo.config
    limit = "recompile_limit" if hasattr(config, "recompile_limit") else "cache_size_limit"
    setattr(config, limit, max(getattr(config, limit), _MOST_SHAPES))
    if isinstance(module, PartedBackbone):
        module.compile_parts()
        return
    for block in blocks(module):
        block.compile(dynamic=False)


def replicate(module: nn.Module, processes: Processes) -> nn.Module:
    """Wrap a network that trains in every process; its gradients are averaged."""
    if processes.count == 1:
        return module
    devices = [processes.device.index] if processes.device.type == "cuda" else None
    return DistributedDataParallel(
        module, device_ids=devices, broadcast_buffers=False, gradient_as_bucket_view=True
    )


def shard(module: nn.Module, processes: Processes, precision: Literal["fp32", "bf16"]) -> None:
    """Spread the weights of a network over the processes, in place (FSDP2).

    Accelerate's own FSDP2 takes one model a program; distillation has four, hence PyTorch's here.

    Raises:
        MissingDependencyError: This PyTorch has no FSDP2.
    """
    try:
        from torch.distributed.fsdp import (
            MixedPrecisionPolicy,
            fully_shard,
            register_fsdp_forward_method,
        )
    except ImportError as error:
        raise MissingDependencyError(
            "parallel 'fsdp' needs PyTorch 2.6 or newer: update it, or use 'ddp'."
        ) from error
    # Newer versions warn of views that are then changed in place; no network here does that.
    warnings.filterwarnings("ignore", message=r"FSDP2-wrapped module .* returned a view tensor")
    mesh = dist.init_device_mesh(processes.device.type, (processes.count,))
    # Inputs are left alone: a time such as 999 has no bfloat16, and autocast does the rest.
    policy = MixedPrecisionPolicy(
        param_dtype=torch.bfloat16 if precision == "bf16" else None,
        reduce_dtype=torch.float32,
        cast_forward_inputs=False,
    )
    for parameter in module.parameters():
        # Shards have plain strides; convolutions follow the layout of their input.
        parameter.data = parameter.data.contiguous()
    # Gathered weights stay until the next backward or `release`: backward simulation runs many
    # forwards of the same weights, and gathering them costs the host more than the network itself.
    for part in (*blocks(module), module):
        fully_shard(part, mesh=mesh, mp_policy=policy, reshard_after_forward=False)
    if isinstance(module, FeatureBackbone):
        register_fsdp_forward_method(module, "features")


def release(module: nn.Module) -> None:
    """Let a network hold its shards again; nothing happens where it does, or has none.

    While weights are gathered, a network's parameters are copies: an optimizer or a checkpoint made
    of them would be of the wrong tensors.
    """
    from torch.distributed.fsdp import FSDPModule

    for part in module.modules():
        if isinstance(part, FSDPModule):
            part.reshard()


@contextmanager
def gradient_sync(modules: list[nn.Module], enabled: bool) -> Iterator[None]:
    """Average gradients over the processes in this backward pass, or only add them up locally."""
    from torch.distributed.fsdp import FSDPModule

    for module in modules:
        if isinstance(module, DistributedDataParallel):
            module.require_backward_grad_sync = enabled
        elif isinstance(module, FSDPModule):
            module.set_requires_gradient_sync(enabled)
    yield


def local(tensor: Tensor) -> Tensor:
    """Return this process' shard of a tensor, or the tensor."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


@torch.no_grad()
def clip_gradients(weights: Sequence[Tensor], limit: float) -> Tensor:
    """Scale gradients down to a largest norm over all of them, and return what it was.

    PyTorch's own does the same on sharded weights, but asks for each tensor's placement anew.
    """
    gradients = [weight.grad for weight in weights if weight.grad is not None]
    parts = [local(gradient) for gradient in gradients]
    square = torch.stack(torch._foreach_norm(parts)).square().sum()
    if any(isinstance(gradient, DTensor) for gradient in gradients):
        dist.all_reduce(square)
    norm = square.sqrt()
    torch._foreach_mul_(parts, (limit / (norm + 1e-6)).clamp(max=1.0))
    return norm


def local_weight(weight: nn.Parameter) -> nn.Parameter:
    """Return this process' shard as a weight of its own that shares its memory, or the weight.

    Optimizers take a fraction of the time for plain tensors that they take for sharded ones.
    """
    return nn.Parameter(local(weight.detach())) if isinstance(weight, DTensor) else weight


def placed_like(value: Tensor, like: Tensor) -> Tensor:
    """Say of a shard which part of a whole tensor it is, given another tensor that is alike."""
    if not isinstance(like, DTensor) or value.ndim == 0:
        return value
    return DTensor.from_local(
        value,
        like.device_mesh,
        like.placements,
        run_check=False,
        shape=like.shape,
        stride=like.stride(),
    )


def whole(tensor: Tensor) -> Tensor:
    """Gather a sharded tensor; every process must ask."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def spread_like(value: Tensor, like: Tensor) -> Tensor:
    """Shard a whole tensor as another one is, or just move it to the same device."""
    value = value.to(like.device)
    if not isinstance(like, DTensor):
        return value
    return distribute_tensor(value, like.device_mesh, like.placements)


def mean_over_processes(values: Tensor, processes: Processes) -> Tensor:
    """Average a tensor over all processes."""
    if processes.count > 1:
        dist.all_reduce(values)
        values = values / processes.count
    return values


def extreme_over_processes(
    values: Tensor, which: Literal["min", "max"], processes: Processes
) -> Tensor:
    """Take the smallest or the largest over all processes."""
    if processes.count > 1:
        values = values.clone()
        dist.all_reduce(values, dist.ReduceOp.MIN if which == "min" else dist.ReduceOp.MAX)
    return values


def gather(values: Tensor, processes: Processes) -> Tensor:
    """Concatenate tensors of equal shape from all processes."""
    if processes.count == 1:
        return values
    parts = [torch.empty_like(values) for _ in range(processes.count)]
    dist.all_gather(parts, values.contiguous())
    return torch.cat(parts)


def wait_for_all(processes: Processes) -> None:
    """Let all processes come to this point."""
    if processes.count > 1:
        dist.barrier()


def leave_processes(processes: Processes) -> None:
    """Leave the group when all went well; after an error others may wait in a collective."""
    wait_for_all(processes)
    if dist.is_initialized():  # A launcher's single process has a group too.
        dist.destroy_process_group()


def end_program(status: int) -> NoReturn:
    """End a program; one of a launcher's that went well ends without tearing down the interpreter.

    Threads of a group's backend may let go of the last tensors while that goes on, even when the
    group was left, and abort it (PyTorch issue 190489): a finished run would end as a crash does.
    """
    if status or "WORLD_SIZE" not in os.environ:
        sys.exit(status)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
