"""Random numbers that depend on the place in training only, never on how work is spread.

A clip's noise is drawn from a generator seeded by (seed, sample number), so one process with a
batch of four, four processes with one clip each, and a resumed run all draw the same.
"""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor


class StepRng:
    """The generators of one training step.

    Args:
        shared: A CPU generator seeded alike in all processes, for decisions taken together.
        clips: One generator a clip on the training device; a single one draws whole batches.
    """

    def __init__(self, shared: torch.Generator, clips: Sequence[torch.Generator]) -> None:
        self.shared = shared
        self.clips = tuple(clips)

    def shared_integer(self, end: int) -> int:
        """Draw an integer in [0, end), the same in all processes."""
        return int(torch.randint(end, (1,), generator=self.shared))

    def shared_uniform(self) -> float:
        """Draw a number in [0, 1), the same in all processes."""
        return float(torch.rand(1, generator=self.shared))

    def normal(self, like: Float[Tensor, "B *S"]) -> Float[Tensor, "B *S"]:
        """Draw standard normal noise in float32."""
        return torch.cat(
            [torch.randn(size, generator=g, device=g.device) for g, size in self._parts(like)]
        )

    def uniform(self, like: Float[Tensor, "B *S"]) -> Float[Tensor, "B"]:
        """Draw one number in [0, 1) a clip."""
        return torch.cat(
            [torch.rand(size[0], generator=g, device=g.device) for g, size in self._parts(like)]
        )

    def integer(self, low: int, end: int, like: Float[Tensor, "B *S"]) -> Int[Tensor, "B"]:
        """Draw one integer in [low, end) a clip."""
        return torch.cat(
            [
                torch.randint(low, end, size[:1], generator=g, device=g.device)
                for g, size in self._parts(like)
            ]
        )

    def _parts(self, like: Tensor) -> list[tuple[torch.Generator, tuple[int, ...]]]:
        count = len(self.clips)
        if count == 1:
            return [(self.clips[0], tuple(like.shape))]
        assert count == like.shape[0], "one generator a clip"
        return [(g, (1, *like.shape[1:])) for g in self.clips]


def step_rng(seed: int, tick: int, numbers: range, device: torch.device | str) -> StepRng:
    """Return the generators of one step.

    Args:
        seed: Seed of the run.
        tick: Number of the update; seeds the shared generator.
        numbers: Sample numbers of this process' clips; each seeds one generator.
        device: Where noise is needed.
    """
    shared = torch.Generator().manual_seed(_mix(seed, 0, tick))
    clips = [torch.Generator(device).manual_seed(_mix(seed, 1, n)) for n in numbers]
    return StepRng(shared, clips)


def batch_rng(generator: torch.Generator) -> StepRng:
    """Return a source that draws everything from one generator (a CPU one)."""
    return StepRng(generator, [generator])


def _mix(*entropy: int) -> int:
    return int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0])
