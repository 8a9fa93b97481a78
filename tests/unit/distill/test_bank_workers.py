"""A worker that fails ends neither the bank nor its other workers."""

from pathlib import Path

import pytest

from fvgen_recon.errors import TrainingError
from scripts import build_bank
from scripts.build_bank import Arguments, build_or_tell, run_workers


@pytest.fixture
def args(tmp_path: Path) -> Arguments:
    return Arguments(train=tmp_path / "nothing.bin", out=tmp_path / "bank", num_workers=2)


def test_a_failure_is_told_in_a_line(args, monkeypatch, capsys):
    def fail(index: int, args: Arguments) -> None:
        raise RuntimeError("CUDA out of memory.\nTried to allocate much.")

    monkeypatch.setattr(build_bank, "build", fail)
    build_or_tell(3, args)
    said = capsys.readouterr().err
    assert said.endswith("worker 3 stopped: RuntimeError: CUDA out of memory.\n")
    assert "Traceback" in said


def test_the_others_count(args, monkeypatch):
    args.out.mkdir()
    (args.out / "worker-0.json").write_text("{}")  # Of an earlier run: tells nothing.

    def run(function, arguments, nprocs, start_method):
        (args.out / "worker-1.json").write_text("{}")

    monkeypatch.setattr(build_bank.mp, "start_processes", run)
    assert run_workers(args) == 1
    assert not (args.out / "worker-0.json").exists()


def test_where_all_fail_there_is_no_bank(args):
    args.out.mkdir()
    with pytest.raises(TrainingError, match="No worker came to its end"):
        run_workers(args)
