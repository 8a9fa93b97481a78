"""A compact generator that replays its evaluations makes the frames of one that does not."""

import gc
import time
from pathlib import Path

import pytest
import torch
from factories import make_guidance
from unit.diffusion.compact.miniature import make_backbone

from fvgen_recon.densify.generators import SHIPPED_WEIGHTS
from fvgen_recon.diffusion.compact.backbone import CompactBackbone
from fvgen_recon.diffusion.compact.checkpoint import save_compact
from fvgen_recon.diffusion.compact.generator import CompactGenerator, load_generator
from fvgen_recon.types import Guidance

pytestmark = pytest.mark.gpu


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("student")
    save_compact(path, make_backbone(), role="student", num_steps=4)
    return path


def seconds_of(generator: CompactGenerator, guidance: Guidance, seed: int) -> float:
    torch.cuda.synchronize()
    start = time.perf_counter()
    generator.generate(guidance, seed=seed)
    torch.cuda.synchronize()
    return time.perf_counter() - start


@pytest.mark.parametrize("fast", [False, True])
def test_frames_are_the_same(folder, fast, caplog):
    plain, recorded = (
        load_generator(folder, device="cuda", fast=fast, record=r) for r in (False, True)
    )
    assert recorded.recorder is not None
    for seed, size in enumerate([(32, 48), (32, 48), (40, 24), (32, 48), (40, 24), (40, 24)]):
        guidance = make_guidance(6, *size, seed=seed).to("cuda")
        pair = [g.generate(guidance, seed=seed) for g in (plain, recorded)]
        torch.testing.assert_close(pair[1], pair[0], atol=2e-4, rtol=2e-3)
        # From the second clip on: its first step, and those that go on from that.
        assert len(recorded.recorder._made) == 2 * ((seed > 0) + (seed > 3))
    assert all(recorded.recorder._made.values())
    assert caplog.records == []


def test_memory_goes_with_the_generator(folder):
    guidance = make_guidance(16, 160, 256).to("cuda")

    def reserved() -> float:
        """MiB."""
        torch.cuda.synchronize()
        gc.collect()
        torch.cuda.empty_cache()
        return torch.cuda.memory_reserved() / 2**20

    load_generator(folder, device="cuda", record=False).generate(guidance, seed=0)
    before = reserved()
    generator = load_generator(folder, device="cuda")
    for seed in range(3):
        generator.generate(guidance, seed=seed)
    assert reserved() > before + 100
    del generator
    assert reserved() < before + 50  # Workspaces of libraries stay, in some versions.


def test_what_cannot_be_recorded_is_told_and_made(folder, caplog, monkeypatch):
    generator = load_generator(folder, device="cuda", fast=False)
    guidance = make_guidance(6, 32, 48).to("cuda")
    wanted = [generator.generate(guidance, seed=0)]
    take_step = CompactBackbone.take_step

    def full(self, *inputs):
        output = take_step(self, *inputs)
        if torch.cuda.is_current_stream_capturing():
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return output

    monkeypatch.setattr(CompactBackbone, "take_step", full)
    wanted += [generator.generate(guidance, seed=0) for _ in range(3)]
    for frames in wanted[1:]:
        torch.testing.assert_close(frames, wanted[0], atol=2e-4, rtol=2e-3)
    assert [r.getMessage() for r in caplog.records] == [
        "Frames are made kernel by kernel, which takes longer: CUDA out of memory"
    ]


def test_replaying_is_faster(capsys):
    guidance = make_guidance(16, 160, 256).to("cuda")
    medians = []
    for record in (False, True):
        generator = load_generator(SHIPPED_WEIGHTS / "student", device="cuda", record=record)
        times = [seconds_of(generator, guidance, seed) for seed in range(9)]
        medians.append(sorted(times[2:])[3])
        with capsys.disabled():
            print(f"\nrecord={record}: {[round(1000 * s, 1) for s in times]} ms a clip")
    assert medians[1] < medians[0]
