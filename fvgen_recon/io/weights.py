"""Weights of networks as they are kept: in bfloat16, or in eight bits.

With eight bits each row of a matrix or kernel is kept as integers in [-127, 127] times one float16
scale, vectors in bfloat16.
"""

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

_SCALE = ".scale"

Storage = Literal["bfloat16", "int8"]
"""How weights are kept."""


def pack_state(state: Mapping[str, Tensor], storage: Storage) -> dict[str, Tensor]:
    """Return the tensors to keep."""
    packed: dict[str, Tensor] = {}
    for key, tensor in state.items():
        value = tensor.detach().float().cpu()
        if storage == "int8" and value.ndim > 1:
            scale = (value.flatten(1).abs().amax(1) / 127).clamp_min(1e-7).half()
            column = scale.float().view(-1, *[1] * (value.ndim - 1))
            packed[key] = (value / column).round().clamp(-127, 127).to(torch.int8).contiguous()
            packed[key + _SCALE] = scale
        else:
            packed[key] = value.to(torch.bfloat16).contiguous()
    return packed


def unpack_state(packed: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights that were kept, in float32.

    Raises:
        KeyError: The scale of a tensor in eight bits is missing.
    """
    state: dict[str, Tensor] = {}
    for key, value in packed.items():
        if key.endswith(_SCALE):
            continue
        state[key] = value.float()
        if value.dtype == torch.int8:
            scale = packed[key + _SCALE].float()
            state[key] *= scale.view(-1, *[1] * (value.ndim - 1))
    return state
