"""bfloat16 weights that a network computes with, and the float32 ones that an optimizer changes.

Autocast casts every weight in every forward. Here they are cast once an update, and lie where they
lie for the whole run, so that calls can be recorded as CUDA graphs. Small updates are not lost:
they add up in the float32 weights.
"""

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn

from fvgen_recon.distill.parallel import Processes


class MasterWeights:
    """The float32 weights behind a network whose own weights become bfloat16, in place.

    Args:
        module: The network, in float32.
        names: Its weights that train.
        processes: Who trains; gradients are averaged over them.
    """

    def __init__(self, module: nn.Module, names: Sequence[str], processes: Processes) -> None:
        parameters = dict(module.named_parameters())
        # Plain strides, as their gradients have: fused optimizers want both alike.
        plain = torch.contiguous_format
        weights = [parameters[name].detach() for name in names]
        self.stored = [nn.Parameter(w.clone(memory_format=plain)) for w in weights]
        module.to(torch.bfloat16)
        self._used = [parameters[name] for name in names]
        self._processes = processes
        self._flat: Tensor | None = None

    @torch.no_grad()
    def collect(self, *, last: bool) -> None:
        """Take over the gradients of one backward; after the last one average them."""
        used = [weight.grad for weight in self._used]
        if self._flat is None:
            self._flat = self._empty_gradients(used)
            places = [p.grad for p in self.stored if p.grad is not None]
            torch._foreach_copy_(places, [g for g in used if g is not None])
        else:
            for stored, gradient in zip(self.stored, used, strict=True):
                if gradient is not None:
                    assert stored.grad is not None, "each part reaches the same weights"
                    stored.grad.add_(gradient)
        for weight in self._used:
            weight.grad = None
        if last:
            if self._processes.count > 1:
                dist.all_reduce(self._flat)
                self._flat.div_(self._processes.count)
            self._flat = None

    @torch.no_grad()
    def refresh(self) -> None:
        """Cast the float32 weights anew."""
        used: list[Tensor] = [*self._used]
        stored: list[Tensor] = [*self.stored]
        torch._foreach_copy_(used, stored)

    def _empty_gradients(self, used: Sequence[Tensor | None]) -> Tensor:
        """Give the float32 weights gradients that lie in one piece; weights without keep none."""
        pairs = [(p, g) for p, g in zip(self.stored, used, strict=True) if g is not None]
        flat = torch.empty(sum(p.numel() for p, _ in pairs), device=self._used[0].device)
        parts = flat.split([p.numel() for p, _ in pairs])
        for (stored, _), part in zip(pairs, parts, strict=True):
            stored.grad = part.view_as(stored)
        return flat
