"""What numbers were measured on."""

import os
import platform
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

HERE = Path(__file__).resolve().parent


def describe_machine(commit: str = "") -> dict[str, Any]:
    """Return GPU, CPU, versions, commit, command and date.

    Args:
        commit: The commit, for machines that have the files and no git; also read from
            `FVGEN_COMMIT`.
    """
    has_gpu = torch.cuda.is_available()
    script = Path(sys.argv[0])
    name = script.name if script.parent.resolve() != HERE else f"benchmarks/{script.name}"
    return {
        "gpu": torch.cuda.get_device_name() if has_gpu else None,
        "num_gpus": torch.cuda.device_count() if has_gpu else 0,
        "cpu": platform.machine(),
        "num_cpus": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "commit": commit or os.environ.get("FVGEN_COMMIT") or _git_commit(),
        "command": shlex.join(["python", name, *map(_plain_word, sys.argv[1:])]),
        "date": time.strftime("%Y-%m-%d"),
    }


def plain_path(word: str) -> str:
    """Return a word with absolute paths cut to their last part: they mean nothing elsewhere."""
    head, is_named, path = word.rpartition("=")
    return f"{head}{is_named}{Path(path).name}" if path.startswith("/") else word


def _plain_word(word: str) -> str:
    return ",".join(map(plain_path, word.split(",")))


def _git_commit() -> str | None:
    """Return the short commit, marked where files differ from it; none without git."""
    try:
        answer = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--exclude", "*"],
            capture_output=True,
            text=True,
            cwd=HERE,
            check=False,
        )
    except OSError:
        return None
    return answer.stdout.strip() or None


def visible_gpu(place: int) -> str:
    """Return the name of one of the GPUs that this process may use, for a process of its own.

    Args:
        place: Counts them from 0; beyond the last it begins anew.
    """
    names = list(filter(None, os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")))
    return names[place % len(names)] if names else str(place)
