"""The one rule that all kernels share."""

import torch
from torch import Tensor

from fvgen_recon.errors import InputError


def refuse_gradients(x: Tensor) -> None:
    """Refuse to lose a gradient silently.

    Raises:
        InputError: A gradient through the kernel is asked for.
    """
    if torch.is_grad_enabled() and x.requires_grad:
        raise InputError(
            "The video model's GPU kernels make no gradients: call it under torch.no_grad(), or "
            "load it again and train it without enable_kernels."
        )
