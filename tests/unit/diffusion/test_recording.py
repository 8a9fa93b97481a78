"""When evaluations are recorded, and what happens where that fails; the GPU is played by a CPU."""

import logging
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fvgen_recon.diffusion import recording
from fvgen_recon.diffusion.recording import StepRecorder, _Room


class Gpu:
    """Counts recordings and replays; a replay computes anew where the recording writes."""

    def __init__(self) -> None:
        self.num_recorded = self.num_replayed = 0
        self.is_full = False
        self.pools: list[object] = []

    def record_call(self, call: Callable[[], tuple[Tensor, ...]], pool: Any, **options: Any) -> Any:
        self.pools.append(pool)
        if self.is_full:
            raise RuntimeError("out of memory")
        self.num_recorded += 1
        outputs = call()
        gpu = self

        class Graph:
            def replay(self) -> None:
                gpu.num_replayed += 1
                for place, value in zip(outputs, call(), strict=True):
                    place.copy_(value)

        return Graph(), outputs


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(2.0))
        self.num_plain = 0

    def evaluate(self, x_t: Tensor, t: Tensor, *shared: Tensor) -> tuple[Tensor, Tensor]:
        self.num_plain += 1
        output = self.weight * x_t + t + sum(shared)
        return output, -output


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Gpu:
    fake = Gpu()
    monkeypatch.setattr(recording, "record_call", fake.record_call)
    monkeypatch.setattr(recording, "_is_recordable", lambda tensors: not torch.is_grad_enabled())
    monkeypatch.setattr(recording, "_make_room", lambda _: _Room(pool=object(), stream=None))
    return fake


@torch.no_grad()
def make_clip(recorder: StepRecorder, value: float, size: int = 3) -> list[list[float]]:
    """Two steps of a clip."""
    step = recorder.for_clip(torch.full((size,), value))
    inputs = [(torch.full((size,), 1.0 + i), torch.tensor(10 * i)) for i in range(2)]
    outputs = [step(*both) for both in inputs]
    assert all(torch.equal(second, -first) for first, second in outputs)
    return [first.tolist() for first, _ in outputs]


def expected(value: float, size: int = 3) -> list[list[float]]:
    return [[2 + value] * size, [14 + value] * size]


def test_a_second_clip_is_recorded_and_every_clip_gets_its_own_answer(gpu: Gpu):
    network = Network()
    recorder = StepRecorder(network, network.evaluate)
    assert make_clip(recorder, 0.5) == expected(0.5)
    assert (gpu.num_recorded, gpu.num_replayed) == (0, 0)
    for value in (0.25, 0.75, 0.5):
        assert make_clip(recorder, value) == expected(value)
    assert (gpu.num_recorded, gpu.num_replayed) == (1, 6)


def test_outputs_outlive_the_next_replay(gpu: Gpu):
    network = Network()
    recorder = StepRecorder(network, network.evaluate)
    make_clip(recorder, 0.0)
    with torch.no_grad():
        step = recorder.for_clip(torch.zeros(3))
        first, _ = step(torch.ones(3), torch.tensor(0))
        step(torch.full((3,), 5.0), torch.tensor(0))
    assert first.tolist() == [2, 2, 2]
    assert gpu.num_replayed == 2


def test_each_shape_and_type_has_its_own_recording(gpu: Gpu):
    network = Network()
    recorder = StepRecorder(network, network.evaluate)
    for size in (3, 4, 3, 4):
        assert make_clip(recorder, 1, size) == expected(1, size)
    assert gpu.num_recorded == 2
    with torch.no_grad():
        for _ in range(2):  # A time that is no whole number must not be cut off.
            step = recorder.for_clip(torch.ones(3))
            assert step(torch.ones(3), torch.tensor(0.5))[0].tolist() == [3.5, 3.5, 3.5]
    assert gpu.num_recorded == 3


def test_steps_that_share_more_have_their_own_recording(gpu: Gpu):
    network = Network()
    recorder = StepRecorder(network, network.evaluate)
    one, ten = torch.ones(3), torch.full((3,), 10.0)
    with torch.no_grad():
        for _ in range(2):
            first = recorder.for_clip(one)(one, torch.tensor(0))
            second = recorder.for_clip(one, ten)(one, torch.tensor(0))
            assert (first[0].tolist(), second[0].tolist()) == ([3.0] * 3, [13.0] * 3)
    assert (gpu.num_recorded, gpu.num_replayed) == (2, 2)


def test_old_shapes_make_room(gpu: Gpu):
    network = Network()
    recorder = StepRecorder(network, network.evaluate)
    sizes = range(1, recording._KEPT + 2)
    for size in sizes:
        for _ in range(2):
            make_clip(recorder, 1, size)
    assert gpu.num_recorded == len(sizes)
    assert gpu.num_replayed == 2 * len(sizes)  # Both steps, where room was made too.
    assert len(recorder._made) == 1
    assert gpu.pools[-1] is not gpu.pools[0]
    replayed = gpu.num_replayed
    make_clip(recorder, 1, sizes[-1])  # is still there
    assert (gpu.num_recorded, gpu.num_replayed) == (len(sizes), replayed + 2)
    make_clip(recorder, 1, sizes[0])  # counts as the first of its shape again
    assert gpu.num_recorded == len(sizes)
    make_clip(recorder, 1, sizes[0])
    assert gpu.num_recorded == len(sizes) + 1


def test_a_failure_is_told_once_and_frames_are_made_all_the_same(gpu: Gpu, caplog):
    network = Network()
    recorder = StepRecorder(network, network.evaluate)
    gpu.is_full = True
    with caplog.at_level(logging.WARNING):
        for size in (3, 3, 3, 4, 4, 4):
            assert make_clip(recorder, 1, size) == expected(1, size)
    assert [r.getMessage() for r in caplog.records] == [
        "Frames are made kernel by kernel, which takes longer: out of memory"
    ]
    assert gpu.num_replayed == 0


def test_weights_that_moved_are_recorded_again(gpu: Gpu):
    network = Network()
    recorder = StepRecorder(network, network.evaluate)
    for _ in range(2):
        make_clip(recorder, 1)
    with torch.no_grad():
        network.weight.mul_(1.0)
    make_clip(recorder, 1)
    assert gpu.num_recorded == 1
    network.weight = nn.Parameter(torch.tensor(2.0))
    assert make_clip(recorder, 1) == expected(1)
    assert gpu.num_recorded == 2
    assert gpu.pools[1] is not gpu.pools[0]  # An empty one is not used again.


def test_recordings_share_their_memory(gpu: Gpu):
    network = Network()
    recorder = StepRecorder(network, network.evaluate)
    for size in (3, 3, 4, 4):
        make_clip(recorder, 1, size)
    assert gpu.pools[1] is gpu.pools[0]


def test_a_cpu_computes_as_it_is():
    network = Network()
    recorder = StepRecorder(network, network.evaluate)
    for _ in range(3):
        assert make_clip(recorder, 0.5) == expected(0.5)
    assert network.num_plain == 6


def test_threads_take_turns(gpu: Gpu, monkeypatch: pytest.MonkeyPatch):
    network = Network()
    recorder = StepRecorder(network, network.evaluate)
    for _ in range(2):
        make_clip(recorder, 0.0)
    replay = recording._replay

    def slow(kept: recording._Recording, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        def wait() -> None:
            time.sleep(0.05)  # Others could overwrite the inputs here.
            kept.replay()

        return replay(replace(kept, replay=wait), inputs)

    monkeypatch.setattr(recording, "_replay", slow)
    values = (0.25, 0.5, 0.75)
    with ThreadPoolExecutor(len(values)) as pool:
        clips = list(pool.map(lambda value: make_clip(recorder, value), values))
    assert clips == [expected(value) for value in values]
