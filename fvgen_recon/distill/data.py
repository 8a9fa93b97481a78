"""Where training clips come from: batches, and sources that are pure functions of a number."""

import json
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from fvgen_recon.diffusion.backbone import Condition
from fvgen_recon.errors import InputError

_SCHEMA = 1
_TENSORS = ("x0", "concat", "context", "null_context")


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingBatch:
    """Real clips as latents, with what they are conditioned on."""

    x0: Float[Tensor, "B C T h w"]
    """Clean latents of the real clips."""
    condition: Condition
    """Their renders and tokens."""
    ode_states: Float[Tensor, "B S C T h w"] | None = None
    """The teacher's deterministic path at the student's times, then its end; for `ode_step`."""
    unseen: Bool[Tensor, "B C T h w"] | None = None
    """Latent values that the renders say nothing about: nobody judges them; none where all are."""

    def __len__(self) -> int:
        """Number of clips."""
        return self.x0.shape[0]

    def __getitem__(self, index: slice | Tensor) -> "TrainingBatch":
        """Select clips."""
        return TrainingBatch(
            x0=self.x0[index],
            condition=self.condition[index],
            ode_states=None if self.ode_states is None else self.ode_states[index],
            unseen=None if self.unseen is None else self.unseen[index],
        )

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> "TrainingBatch":
        """Move and cast the tensors."""
        states = None if self.ode_states is None else self.ode_states.to(device, dtype)
        return TrainingBatch(
            x0=self.x0.to(device, dtype),
            condition=self.condition.to(device, dtype),
            ode_states=states,
            unseen=None if self.unseen is None else self.unseen.to(device),
        )

    def judged(self, fake: Float[Tensor, "B C T h w"]) -> Float[Tensor, "B C T h w"]:
        """Return generated clips with the real ones where nothing was seen: no gradient there."""
        return fake if self.unseen is None else torch.where(self.unseen, self.x0, fake)


@runtime_checkable
class ClipSource(Protocol):
    """Gives the same clips for the same sample numbers, in any process and after any restart."""

    def batch(self, numbers: range) -> TrainingBatch:
        """Return the clips with these numbers, counted over the whole training, on the device."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class MemoryClips:
    """Clips held in one place, in a new random order each epoch.

    Held on the GPU it costs no transfer; held elsewhere each batch is moved to `device`.
    """

    clips: TrainingBatch
    """All clips."""
    seed: int
    """Decides the order."""
    device: torch.device
    """Where batches are wanted."""

    def __post_init__(self) -> None:
        """Refuse an empty set."""
        if len(self.clips) == 0:
            raise InputError("Training needs at least one clip: none came.")

    def batch(self, numbers: range) -> TrainingBatch:
        """Return the clips with these numbers."""
        index = torch.tensor(shuffled(numbers, len(self.clips), self.seed))
        return self.clips[index.to(self.clips.x0.device)].to(self.device, torch.float32)


def shuffled(numbers: range, count: int, seed: int) -> list[int]:
    """Map sample numbers to indices below `count`: each epoch a permutation of its own."""
    orders: dict[int, list[int]] = {}
    for epoch in {n // count for n in numbers}:
        generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
        orders[epoch] = torch.randperm(count, generator=generator).tolist()
    return [orders[n // count][n % count] for n in numbers]


@dataclass(frozen=True, kw_only=True, slots=True)
class PackedClips:
    """Clips in a folder of safetensors shards, read a clip at a time."""

    folder: Path
    """Written by `write_packed`."""
    shards: tuple[int, ...]
    """Number of clips in each shard."""
    seed: int
    """Decides the order."""
    device: torch.device
    """Where batches are wanted."""

    def batch(self, numbers: range) -> TrainingBatch:
        """Return the clips with these numbers."""
        indices = shuffled(numbers, sum(self.shards), self.seed)
        parts = [self._read(i) for i in indices]
        return _join(parts).to(self.device, torch.float32)

    def load(self) -> TrainingBatch:
        """Read everything, for `MemoryClips`."""
        return _join([self._read(i) for i in range(sum(self.shards))])

    def _read(self, index: int) -> TrainingBatch:
        shard = 0
        while index >= self.shards[shard]:
            index -= self.shards[shard]
            shard += 1
        with safe_open(_shard_path(self.folder, shard), framework="pt") as file:
            names = set(file.keys())
            tensors = {
                n: file.get_slice(n)[index : index + 1]
                for n in (*_TENSORS, "ode_states")
                if n in names
            }
        return TrainingBatch(
            x0=tensors["x0"],
            condition=Condition(**{n: tensors[n] for n in _TENSORS[1:]}),
            ode_states=tensors.get("ode_states"),
        )


def open_packed(folder: Path, *, seed: int, device: torch.device) -> PackedClips:
    """Open a folder of packed clips.

    Raises:
        InputError: There is no readable index.
    """
    index = folder / "index.json"
    if not index.is_file():
        raise InputError(f"{folder} holds no packed clips (no index.json): prepare the data first.")
    content = json.loads(index.read_text())
    if content.get("schema") != _SCHEMA:
        raise InputError(f"{index} has schema {content.get('schema')}, {_SCHEMA} was expected.")
    return PackedClips(folder=folder, shards=tuple(content["shards"]), seed=seed, device=device)


def write_packed(folder: Path, shards: Sequence[TrainingBatch]) -> None:
    """Write clips as shards with an index; the index comes last, so a torn write is no data set."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, clips in enumerate(shards):
        condition = clips.condition
        values = (clips.x0, condition.concat, condition.context, condition.null_context)
        tensors: dict[str, Tensor] = dict(zip(_TENSORS, values, strict=True))
        if clips.ode_states is not None:
            tensors["ode_states"] = clips.ode_states
        contiguous = {name: value.contiguous().clone() for name, value in tensors.items()}
        path = _shard_path(folder, number)
        save_file(contiguous, path.with_suffix(".part"))
        path.with_suffix(".part").replace(path)
    index = {"schema": _SCHEMA, "shards": [len(clips) for clips in shards]}
    (folder / "index.part").write_text(json.dumps(index))
    (folder / "index.part").replace(folder / "index.json")


class Prefetched:
    """Reads the next batch in a thread while the current one is trained on.

    Args:
        source: Gives the clips, in the CPU's memory at best.
        stride: How far the next request's numbers lie from this one's.
        device: Where batches are wanted; the caller's thread moves them.
        encodes: Whether the source's thread computes on the device itself.
    """

    def __init__(
        self, source: ClipSource, stride: int, device: torch.device, *, encodes: bool = False
    ) -> None:
        self.encodes = encodes
        self.source = source
        self.stride = stride
        self.device = device
        self._pool = ThreadPoolExecutor(1)
        self._next: tuple[range, Future[TrainingBatch]] | None = None

    def batch(self, numbers: range) -> TrainingBatch:
        """Return the clips with these numbers and start on the next ones."""
        waiting = self._next
        ready = waiting is not None and waiting[0] == numbers
        current = (
            waiting[1].result() if waiting is not None and ready else self.source.batch(numbers)
        )
        after = range(numbers.start + self.stride, numbers.stop + self.stride)
        self._next = (after, self._pool.submit(self.source.batch, after))
        return current.to(self.device)

    def close(self) -> None:
        """Stop the thread."""
        self._pool.shutdown(wait=True, cancel_futures=True)


def _join(parts: Sequence[TrainingBatch]) -> TrainingBatch:
    states = [p.ode_states for p in parts if p.ode_states is not None]
    return TrainingBatch(
        x0=torch.cat([p.x0 for p in parts]),
        condition=join_conditions([p.condition for p in parts]),
        ode_states=torch.cat(states) if states else None,
    )


def join_conditions(parts: Sequence[Condition]) -> Condition:
    """Concatenate conditions along the batch."""
    return Condition(
        concat=torch.cat([p.concat for p in parts]),
        context=torch.cat([p.context for p in parts]),
        null_context=torch.cat([p.null_context for p in parts]),
    )


def _shard_path(folder: Path, number: int) -> Path:
    return folder / f"clips-{number:05d}.safetensors"
