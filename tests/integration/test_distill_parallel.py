"""Two processes give the losses of one: copies (DDP), shards (FSDP2), and a change between them.

Run as a script it is one of the processes: `test_distill_parallel.py MODE FOLDER`.
"""

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from unit.distill.tiny import tiny_batch, tiny_roles

from fvgen_recon.distill.checkpoint import list_checkpoints, read_tensors
from fvgen_recon.distill.config import (
    DmdSettings,
    GanSettings,
    OptimizerSettings,
    PhaseSettings,
    TrainSettings,
)
from fvgen_recon.distill.data import MemoryClips
from fvgen_recon.distill.ensemble import Networks
from fvgen_recon.distill.parallel import Processes, end_program, leave_processes, start_processes
from fvgen_recon.distill.tracker import FileTracker
from fvgen_recon.distill.trainer import Trainer

FAST = OptimizerSettings(learning_rate=1e-3)
NUM_CLIPS = 2
STOP = 7
ALONE = Processes(rank=0, count=1, device=torch.device("cpu"))


def settings(parallel: str, num_processes: int) -> TrainSettings:
    gan = GanSettings()
    joint = DmdSettings(train_disc=True, gan_weight=0.1)
    phases = tuple(
        PhaseSettings(
            name=name,
            stage=stage,
            num_steps=2,
            judge_turns=1,
            student=FAST,
            critic=FAST,
            disc=FAST,
            ema_start=1,
            ema_decay=0.5,
            calibrate=calibrate,
        )
        for name, stage, calibrate in (
            ("gan", gan, 2),
            ("dmd", DmdSettings(), 0),
            ("joint", joint, 0),
            ("dmd2", DmdSettings(train_disc=True, gan_weight=0.1, disc_on="critic"), 0),
        )
    )
    return TrainSettings(
        phases=phases,
        batch_size=NUM_CLIPS // num_processes,
        precision="fp32",
        parallel="fsdp" if parallel == "fsdp" else "ddp",
        log_every=1,
        checkpoint_every=0,
    )


def train(mode: str, folder: Path, processes: Processes) -> None:
    """Train as one of some processes, with a stop and a checkpoint on the way."""
    roles = tiny_roles()
    networks = Networks(
        schedule=roles.schedule,
        student=roles.student,
        teacher=roles.teacher,
        critic=roles.critic,
        disc=roles.plain_disc,
    )
    if mode == "fsdp":
        # As the compact model's weights are laid out; shards must take them.
        for network in (networks.student, networks.teacher, networks.critic):
            assert network is not None
            network.to(memory_format=torch.channels_last_3d)
    source = MemoryClips(clips=tiny_batch(5), seed=1, device=processes.device)
    trackers = [FileTracker(folder)] if processes.is_main else []
    how = settings(mode, processes.count)
    trainer = Trainer(how, networks, source, folder, processes=processes, trackers=trackers)
    if not trainer.resume():
        trainer.run(stop_after=STOP)
        trainer.save()
    trainer.run()


def launch(mode: str, folder: Path, num_processes: int) -> None:
    """Start the processes as torchrun would, and wait for them."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    workers = []
    for rank in range(num_processes):
        names = {
            "RANK": rank,
            "LOCAL_RANK": rank,
            "WORLD_SIZE": num_processes,
            "LOCAL_WORLD_SIZE": num_processes,
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": port,
            "OMP_NUM_THREADS": 1,
        }
        environment = os.environ | {k: str(v) for k, v in names.items()}
        command = [sys.executable, __file__, mode, str(folder)]
        workers.append(
            subprocess.Popen(
                command, env=environment, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL
            )
        )
    for worker in workers:
        _, errors = worker.communicate(timeout=240)
        assert worker.returncode == 0, errors.decode()[-3000:]


def curves(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    newest = list_checkpoints(folder / "checkpoints")[-1]
    stems = sorted(p.stem for p in newest.glob("*.safetensors"))
    return {f"{s}/{k}": v for s in stems for k, v in read_tensors(newest, s).items()}


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("alone")
    train("one", folder, ALONE)
    return folder


@pytest.mark.parametrize("mode", ["ddp", "fsdp"])
def test_two_processes_give_the_losses_of_one(mode: str, alone: Path, tmp_path: Path) -> None:
    launch(mode, tmp_path, 2)
    want, got = curves(alone), curves(tmp_path)
    assert len(want) == len(got) == 8
    for a, b in zip(want, got, strict=True):
        assert a.keys() == b.keys()
        losses = [name for name in a if name.startswith(("loss/", "weight/", "gradient_norm/"))]
        assert len(losses) >= 3
        for name in losses:
            assert b[name] == pytest.approx(a[name], rel=1e-5, abs=1e-5), name
    first, second = weights(alone), weights(tmp_path)
    assert first.keys() == second.keys()
    for name, value in first.items():
        torch.testing.assert_close(second[name], value, rtol=1e-3, atol=2e-4, msg=name)
    if mode == "fsdp":
        going_on_alone(tmp_path)


def going_on_alone(folder: Path) -> None:
    """One process goes on from a checkpoint that two with shards wrote in the middle."""
    end = curves(folder)[-1]
    for later in list_checkpoints(folder / "checkpoints")[1:]:
        shutil.rmtree(later)
    train("one", folder, ALONE)
    assert curves(folder)[-1]["loss/student"] == pytest.approx(end["loss/student"], rel=1e-4)


def test_a_process_that_was_launched_alone_leaves_its_group(tmp_path: Path) -> None:
    launch("none", tmp_path, 1)


if __name__ == "__main__":
    group = start_processes(cpu=True)
    assert torch.distributed.is_initialized()
    # With NCCL's own ten minutes a slow write of the main process would end the others.
    backend = torch.distributed.group.WORLD._get_backend(torch.device("cpu"))
    assert backend.options._timeout.total_seconds() == 3600
    if sys.argv[1] != "none":
        train(sys.argv[1], Path(sys.argv[2]), group)
    leave_processes(group)
    assert not torch.distributed.is_initialized()
    end_program(0)
