"""Safetensors files, written and read one tensor at a time.

A checkpoint of ten gigabytes passes through here; nothing holds more than one tensor beside what
the operating system maps, and the checksum is taken on the way.
"""

import hashlib
import json
import mmap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from fvgen_recon.errors import WeightsError
from fvgen_recon.io.file import atomic_path

_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "U8": torch.uint8,
}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}


@dataclass(frozen=True, kw_only=True, slots=True)
class TensorEntry:
    """A tensor to write, loaded only when its turn comes."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    load: Callable[[], Tensor]

    @property
    def num_bytes(self) -> int:
        """Size in the file."""
        count = 1
        for length in self.shape:
            count *= length
        return count * self.dtype.itemsize


@dataclass(frozen=True, kw_only=True, slots=True)
class TensorFile:
    """A safetensors file mapped into memory."""

    path: Path
    spans: dict[str, tuple[torch.dtype, tuple[int, ...], int, int]]
    """Type, shape, first and last byte of each tensor."""
    mapping: mmap.mmap

    def load(self, name: str) -> Tensor:
        """Return a tensor that shares the file's pages and owns a storage of just its size."""
        dtype, shape, start, end = self.spans[name]
        if start == end:
            return torch.empty(shape, dtype=dtype)
        count = (end - start) // dtype.itemsize
        return torch.frombuffer(self.mapping, dtype=dtype, count=count, offset=start).view(shape)


def write_tensors(path: Path, entries: Sequence[TensorEntry]) -> str:
    """Write a safetensors file atomically.

    Returns:
        The file's SHA-256, in hexadecimal.
    """
    ordered = sorted(entries, key=lambda entry: (-entry.dtype.itemsize, entry.name))
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for entry in ordered:
        end = offset + entry.num_bytes
        header[entry.name] = {
            "dtype": _NAMES[entry.dtype],
            "shape": list(entry.shape),
            "data_offsets": [offset, end],
        }
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    digest = hashlib.sha256()
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        for block in (len(text).to_bytes(8, "little"), text):
            file.write(block)
            digest.update(block)
        for entry in ordered:
            block = _bytes(entry.load(), entry)
            file.write(block)
            digest.update(block)
    return digest.hexdigest()


def open_tensors(path: Path) -> TensorFile:
    """Map a safetensors file.

    Raises:
        WeightsError: The file is missing or damaged.
    """
    try:
        with path.open("rb") as file:
            # Copy-on-write, because torch wants buffers that it could write to.
            mapping = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        length = int.from_bytes(mapping[:8], "little")
        header = json.loads(mapping[8 : 8 + length])
        start = 8 + length
        spans = {}
        for name, facts in header.items():
            if name != "__metadata__":
                first, last = facts["data_offsets"]
                shape = tuple(facts["shape"])
                spans[name] = (_DTYPES[facts["dtype"]], shape, start + first, start + last)
    except (OSError, ValueError, KeyError) as error:
        raise WeightsError(
            f"{path} is not a readable safetensors file: convert the checkpoint again."
        ) from error
    if max((span[3] for span in spans.values()), default=start) != len(mapping):
        raise WeightsError(f"{path} is cut short or padded: convert the checkpoint again.")
    return TensorFile(path=path, spans=spans, mapping=mapping)


def _bytes(tensor: Tensor, entry: TensorEntry) -> memoryview:
    assert tuple(tensor.shape) == entry.shape
    assert tensor.dtype == entry.dtype
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().data
