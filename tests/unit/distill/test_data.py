"""Sources give the same clips for the same numbers, however they are asked; noise does too."""

from pathlib import Path

import pytest
import torch
from unit.distill.tiny import tiny_batch

from fvgen_recon.distill.data import (
    MemoryClips,
    PackedClips,
    Prefetched,
    TrainingBatch,
    open_packed,
    shuffled,
    write_packed,
)
from fvgen_recon.distill.randomness import batch_rng, step_rng
from fvgen_recon.errors import InputError

CPU = torch.device("cpu")


def packed(folder: Path) -> PackedClips:
    clips = tiny_batch(7)
    write_packed(folder, [clips[:4], clips[4:]])
    return open_packed(folder, seed=3, device=CPU)


def test_every_epoch_shows_every_clip_once_in_another_order() -> None:
    first, second = (shuffled(range(i * 50, i * 50 + 50), 50, seed=1) for i in range(2))
    assert sorted(first) == sorted(second) == list(range(50))
    assert first != second != list(range(50))
    assert shuffled(range(40, 60), 50, seed=1) == first[40:] + second[:10]
    assert shuffled(range(50), 50, seed=2) != first


def test_packed_and_memory_sources_agree(tmp_path: Path) -> None:
    disk = packed(tmp_path)
    memory = MemoryClips(clips=tiny_batch(7), seed=3, device=CPU)
    ahead = Prefetched(disk, 2, torch.device("cpu"))
    for start in (0, 2, 4, 6, 20):
        numbers = range(start, start + 2)
        want = memory.batch(numbers)
        for source in (disk, ahead):
            got = source.batch(numbers)
            assert torch.equal(want.x0, got.x0)
            assert torch.equal(want.condition.concat, got.condition.concat)
            assert torch.equal(want.condition.context, got.condition.context)
    ahead.close()
    assert torch.equal(disk.load().x0, tiny_batch(7).x0)


def test_stored_paths_come_back(tmp_path: Path) -> None:
    clips = tiny_batch(3)
    states = torch.randn(3, 5, *clips.x0.shape[1:])
    full = TrainingBatch(x0=clips.x0, condition=clips.condition, ode_states=states)
    write_packed(tmp_path, [full])
    got = open_packed(tmp_path, seed=0, device=CPU).load()
    assert got.ode_states is not None
    assert torch.equal(got.ode_states, states)


def test_a_torn_or_foreign_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no packed clips"):
        open_packed(tmp_path, seed=0, device=CPU)
    (tmp_path / "index.json").write_text('{"schema": 99, "shards": []}')
    with pytest.raises(InputError, match="schema 99"):
        open_packed(tmp_path, seed=0, device=CPU)
    with pytest.raises(InputError, match="at least one clip"):
        MemoryClips(clips=tiny_batch(2)[:0], seed=0, device=CPU)


def test_noise_depends_on_sample_numbers_only() -> None:
    like = torch.zeros(4, 2, 3)
    together = step_rng(5, 9, range(8, 12), CPU).normal(like)
    parts = [step_rng(5, 9, range(i, i + 2), CPU).normal(like[:2]) for i in (8, 10)]
    assert torch.equal(together, torch.cat(parts))
    assert len({float(x.flatten()[0]) for x in together}) == 4
    assert not torch.equal(together, step_rng(6, 9, range(8, 12), CPU).normal(like))


def test_shared_decisions_are_the_same_everywhere_and_change_with_the_step() -> None:
    draws = [
        [step_rng(5, tick, range(r, r + 1), CPU).shared_integer(1000) for r in (0, 7)]
        for tick in range(5)
    ]
    assert all(a == b for a, b in draws)
    assert len({a for a, _ in draws}) > 2


def test_drawn_numbers_have_their_distribution() -> None:
    rng = batch_rng(torch.Generator().manual_seed(0))
    like = torch.zeros(20_000, 1)
    assert abs(float(rng.normal(like).mean())) < 0.03
    assert abs(float(rng.normal(like).std()) - 1) < 0.03
    assert abs(float(rng.uniform(like).mean()) - 0.5) < 0.02
    integers = rng.integer(3, 6, like)
    assert integers.unique().tolist() == [3, 4, 5]
