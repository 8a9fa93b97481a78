"""The preparation as a user runs it: the command line, and Ray with a worker that dies."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest
from room_folder import write_room

from fvgen_recon.distill.shard_build import build_shards, settle_plan
from fvgen_recon.distill.shard_file import ShardRecord, find_faults, tar_path
from fvgen_recon.distill.shard_plan import ShardSettings, make_plan
from fvgen_recon.distill.shard_ray import TASK, RaySettings, build_shards_on_ray
from fvgen_recon.io.file import file_sha256

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "scripts" / "prepare_dl3dv.py"


@pytest.fixture(scope="module")
def rooms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("rooms")
    for seed in range(3):
        write_room(root / "1K" / f"room{seed}", seed=seed, num_photos=8)
    return root


def command(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(SCRIPT), "--cpu", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )


def test_command_prepares_does_nothing_again_verifies_and_repairs(
    rooms: Path, tmp_path: Path
) -> None:
    (tmp_path / "validation.txt").write_text("room1\n")
    place = ("--data", rooms, "--output", tmp_path / "out")
    size = ("--num-frames", 4, "--height", 32, "--width", 48, "--clips-per-shard", 2)
    everything = (*place, *size, "--exclude", tmp_path / "validation.txt")
    first = command(*everything)
    assert first.returncode == 0, first.stderr
    assert "4 clips in 2 shards, 0 skipped" in first.stderr
    assert "20000 clips would take" in first.stderr
    tar_path(tmp_path / "out", 1).write_bytes(b"damage" * 2000)
    broken = command(*place, "--verify")
    assert broken.returncode == 1
    assert "clips-000001.tar is damaged" in broken.stderr
    again = command(*everything, "--repair")
    assert "1 damaged shards" in again.stderr
    assert "1 to be made" in again.stderr
    sound = command(*place, "--verify")
    assert sound.returncode == 0
    assert "all as planned" in sound.stderr
    other = command(*place, *size, "--seed", 5)
    assert other.returncode == 2
    assert other.stderr.count("\n") == 1
    assert "other settings" in other.stderr


@pytest.mark.parametrize(
    "options", [("--workers", 4), ("--gpus-per-worker", 1), ("--ray", "local", "--shard", "0/2")]
)
def test_options_that_would_do_nothing_are_told_before_anything_is_written(
    options: tuple[object, ...], rooms: Path, tmp_path: Path
) -> None:
    told = command("--data", rooms, "--output", tmp_path / "out", *options)
    assert told.returncode == 2
    assert told.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()


def kill_a_busy_worker(folder: Path, killed: list[int]) -> None:
    """Wait until a shard is done and a worker is in the middle of another, then kill that one."""
    deadline = time.monotonic() + 500
    while time.monotonic() < deadline and not killed:
        if list(folder.glob("clips-*.json")) and list(folder.glob(".clips-*.tar")):
            for process in psutil.Process().children(recursive=True):
                if TASK in process.name() or TASK in " ".join(process.cmdline()):
                    os.kill(process.pid, signal.SIGKILL)
                    killed.append(process.pid)
                    return
        time.sleep(0.01)


def test_nothing_is_lost_and_nothing_is_double_when_a_ray_worker_is_killed(
    rooms: Path, tmp_path: Path
) -> None:
    pytest.importorskip("ray", reason="needs fvgen-recon[ray]")
    settings = ShardSettings(num_frames=4, height=64, width=96, clips_per_shard=1)
    plan = make_plan(rooms, settings)[0]
    folder, alone = tmp_path / "ray", tmp_path / "alone"
    settle_plan(folder, plan)
    settle_plan(alone, plan)
    killed: list[int] = []
    records: list[ShardRecord] = []
    killer = threading.Thread(target=kill_a_busy_worker, args=(folder, killed), daemon=True)
    killer.start()
    made = build_shards_on_ray(
        rooms, folder, plan, RaySettings(num_workers=2), report=records.append
    )
    killer.join(timeout=1)
    assert killed, "no worker was caught at work"
    assert made == len(plan.shards) == 6
    assert sorted(record.number for record in records) == list(range(6))
    assert find_faults(folder, plan) == []
    build_shards(rooms, alone, plan, report=lambda record: None)
    for number in range(6):
        assert file_sha256(tar_path(folder, number)) == file_sha256(tar_path(alone, number))
    assert build_shards_on_ray(rooms, folder, plan, RaySettings(), report=records.append) == 0
