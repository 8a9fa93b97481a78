"""Training clips straight from shards: the same clips for the same numbers, whoever asks."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from fvgen_recon.diffusion.backbone import Codec
from fvgen_recon.distill.data import TrainingBatch, join_conditions, shuffled
from fvgen_recon.distill.shard_build import encode_latents
from fvgen_recon.distill.shard_clip import ShardClip, decode_clip, decode_latents
from fvgen_recon.distill.shard_file import (
    ClipPlace,
    finished_shards,
    read_members,
    read_record,
    tar_path,
)
from fvgen_recon.distill.shard_plan import read_plan
from fvgen_recon.distill.validation import ValidationClips
from fvgen_recon.errors import InputError

_LATENTS = "latents.safetensors"
_PRIME = 1_000_003


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardSource:
    """Clips of a prepared data set as the trainer's `ClipSource`.

    Which clips a batch holds depends on the seed and the sample numbers alone, and so does the
    codec's posterior: a training that resumes at a step goes on with the clips it would have had.
    """

    folder: Path
    """The data set."""
    places: tuple[tuple[int, ClipPlace], ...]
    """Shard and place of every clip."""
    seed: int
    """Decides the order of each epoch."""
    device: torch.device
    """Where batches are wanted."""
    codec: Codec | None
    """Encodes clips while reading; none to read stored latents."""

    def __len__(self) -> int:
        """Number of clips."""
        return len(self.places)

    def batch(self, numbers: range) -> TrainingBatch:
        """Return the clips with these numbers, counted over the whole training."""
        indices = shuffled(numbers, len(self.places), self.seed)
        return self._join([self._one(i, n) for i, n in zip(indices, numbers, strict=True)])

    def step_batch(self, step: int, *, rank: int, num_ranks: int, batch_size: int) -> TrainingBatch:
        """Return the clips of one process at one step: ranks share each step's clips out."""
        start = (step * num_ranks + rank) * batch_size
        return self.batch(range(start, start + batch_size))

    def clip(self, index: int) -> ShardClip:
        """Return the photos and renders of a clip, by its place in the data set."""
        shard, place = self.places[index]
        with tar_path(self.folder, shard).open("rb") as file:
            return decode_clip(place.key, read_members(file, place))

    @staticmethod
    def _join(parts: Sequence[TrainingBatch]) -> TrainingBatch:
        return TrainingBatch(
            x0=torch.cat([p.x0 for p in parts]),
            condition=join_conditions([p.condition for p in parts]),
        )

    def load(self) -> TrainingBatch:
        """Read and, without stored latents, encode everything, in the order of the data set."""
        return self._join([self._one(i, i) for i in range(len(self))])

    def _one(self, index: int, number: int) -> TrainingBatch:
        if self.codec is not None:
            seed = (self.seed * _PRIME + number) % 2**63
            latents = encode_latents(self.codec, self.clip(index), seed, self.device)
            return latents.to(self.device, torch.float32)
        shard, place = self.places[index]
        stored = ClipPlace(
            key=place.key, members=tuple(m for m in place.members if m.name == _LATENTS)
        )
        with tar_path(self.folder, shard).open("rb") as file:
            (member,) = read_members(file, stored)
        return decode_latents(member.data).to(self.device, torch.float32)


def open_shards(
    folder: Path, *, seed: int, device: torch.device, codec: Codec | None = None
) -> ShardSource:
    """Open a prepared data set; every shard of its plan must be there.

    Args:
        folder: Written by the preparation.
        seed: Decides the order.
        device: Where batches are wanted.
        codec: Encodes clips while reading where no latents are stored.

    Raises:
        InputError: Shards are missing, there are no clips, or neither latents nor a codec came.
    """
    plan = read_plan(folder)
    done = finished_shards(folder, plan)
    if len(done) < len(plan.shards):
        raise InputError(
            f"{folder} has {len(done)} of {len(plan.shards)} shards: let the preparation finish."
        )
    places = tuple((n, clip) for n in done for clip in read_record(folder, n).clips)
    if not places:
        raise InputError(f"{folder} holds no clips: all of its plan were skipped.")
    if codec is None and plan.settings.codec is None:
        raise InputError(
            f"{folder} was prepared without latents: prepare it with a codec, or give one here."
        )
    if plan.settings.codec is not None:
        codec = None
    return ShardSource(folder=folder, places=places, seed=seed, device=device, codec=codec)


def shard_validation(source: ShardSource, codec: Codec, *, max_clips: int) -> ValidationClips:
    """Return a prepared data set's first clips as clips to look at."""
    chosen = replace(source, places=source.places[:max_clips])
    clips = [chosen.clip(i) for i in range(len(chosen))]
    return ValidationClips(
        clips=chosen.load(),
        renders=torch.stack([clip.guidance.frames for clip in clips]),
        truth=torch.stack([clip.frames for clip in clips]),
        codec=codec,
    ).to(source.device)
