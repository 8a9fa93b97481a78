"""A numeric fixture: tensors, weights under the original's names, and facts in JSON beside it."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fvgen_recon.errors import InputError
from fvgen_recon.io.file import read_json, read_tensors
from fvgen_recon.types import Difference


@dataclass(frozen=True, kw_only=True, slots=True)
class Fixture:
    """What a fixture holds."""

    path: Path
    """The file of tensors."""
    tensors: Mapping[str, Tensor]
    """Inputs and outputs by name; half precision is only a way to store them, so never half."""
    weights: Mapping[str, Tensor]
    """Weights in float32 under the original's names."""
    facts: Mapping[str, Any]
    """The JSON beside the file."""

    def tensor(self, name: str) -> Tensor:
        """Return a tensor, or say that it is missing."""
        if name not in self.tensors:
            raise InputError(f"{self.path} lacks the tensor '{name}': use a fixture of this kind.")
        return self.tensors[name]

    def fact(self, name: str) -> Any:
        """Return an entry of the JSON, or say that it is missing."""
        if name not in self.facts:
            where = self.path.with_suffix(".json")
            raise InputError(f"{where} lacks the entry '{name}': use a fixture of this kind.")
        return self.facts[name]


def read_fixture(path: Path) -> Fixture:
    """Read a fixture.

    Args:
        path: Its `.safetensors` or its `.json`; the other lies beside it.

    Raises:
        InputError: A file is missing or damaged.
    """
    path = Path(path).with_suffix(".safetensors")
    if not path.is_file():
        raise InputError(f"A fixture was expected at {path} and is not there.")
    tensors = read_tensors(path)
    facts = read_json(path.with_suffix(".json"))
    if not isinstance(facts, dict):
        raise InputError(f"{path.with_suffix('.json')} should hold a JSON object.")
    return Fixture(
        path=path,
        tensors={k: _widened(v) for k, v in tensors.items() if not k.startswith("w.")},
        weights={k[2:]: v.float() for k, v in tensors.items() if k.startswith("w.")},
        facts=facts,
    )


def _widened(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


def difference(name: str, ours: Tensor, expected: Tensor, tolerance: float) -> Difference:
    """Return the largest absolute difference of two tensors.

    Where the original gave NaN or infinity ours must be finite, and only the rest is compared.
    Another shape counts as infinitely far.
    """
    if ours.shape != expected.shape:
        return Difference(name=name, value=float("inf"), tolerance=tolerance)
    if not bool(torch.isfinite(ours).all()):
        return Difference(name=name, value=float("nan"), tolerance=tolerance)
    finite = torch.isfinite(expected)
    gap = (ours.double() - expected.double()).abs()[finite]
    value = float(gap.max()) if gap.numel() else 0.0
    return Difference(name=name, value=value, tolerance=tolerance)
