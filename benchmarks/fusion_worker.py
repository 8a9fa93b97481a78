"""A process that makes a fusion's samples, seen from the program that starts it."""

import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

from fusion_trial import Answer, Job
from job import HERE, search_path

from fvgen_recon.evaluation.machine import visible_gpu


class Worker:
    """A process that runs one trial after another; started when it is first needed.

    Args:
        log: File for all that it prints.
        gpu: Place of its GPU among those that may be used; none for the CPU.
    """

    def __init__(self, log: Path, gpu: int | None) -> None:
        self.log = log.resolve()
        self.gpu = "" if gpu is None else visible_gpu(gpu)
        self.process: subprocess.Popen[str] | None = None

    def ask(self, job: Job) -> Answer:
        """Have a trial run; a process that dies is told of, and started again at the next one."""
        process = self.process or self._start()
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(json.dumps(asdict(job)) + "\n")
            process.stdin.flush()
            line = process.stdout.readline()
        except (BrokenPipeError, ValueError):
            line = ""
        answer = Answer(**json.loads(line)) if line else self._obituary()
        if answer.is_broken:
            self.stop()
        return answer

    def stop(self) -> None:
        """End the process at once."""
        # Two threads may want it: the worker's own and, when the time is over, the main one.
        process, self.process = self.process, None
        if process is not None:
            process.kill()
            process.wait()

    def _start(self) -> subprocess.Popen[str]:
        threads = {name: "1" for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
        environment = {
            **os.environ,
            **threads,
            "PYTHONPATH": search_path(),
            "CUDA_VISIBLE_DEVICES": self.gpu,
        }
        with self.log.open("a") as log:
            self.process = subprocess.Popen(
                [sys.executable, str(HERE / "fusion_trial.py")],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True,
                env=environment, cwd=self.log.parent,
            )  # fmt: skip
        return self.process

    def _obituary(self) -> Answer:
        lines = self.log.read_text(errors="replace").strip().splitlines()
        return Answer(failure=lines[-1] if lines else "no output", is_broken=True)
