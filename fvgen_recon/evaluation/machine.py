"""What numbers were measured on, as result files say it."""

import os
import platform
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

_CHECKOUT = Path(__file__).resolve().parents[2]


def describe_machine(commit: str = "") -> dict[str, Any]:
    """Return GPU, CPU, versions, commit, command and date.

    Args:
        commit: The commit, for machines that have the files and no git; also read from
            `FVGEN_COMMIT`.
    """
    has_gpu = torch.cuda.is_available()
    return {
        "gpu": torch.cuda.get_device_name() if has_gpu else None,
        "num_gpus": torch.cuda.device_count() if has_gpu else 0,
        "cpu": platform.machine(),
        "num_cpus": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "commit": commit or os.environ.get("FVGEN_COMMIT") or _git_commit(),
        "command": shlex.join(["python", _program(), *map(plain_words, sys.argv[1:])]),
        "date": time.strftime("%Y-%m-%d"),
    }


def plain_path(word: str) -> str:
    """Return a word with absolute paths cut to their last part: they mean nothing elsewhere."""
    head, is_named, path = word.rpartition("=")
    return f"{head}{is_named}{Path(path).name}" if path.startswith("/") else word


def plain_words(text: str) -> str:
    """Return words, separated by commas, without the absolute paths of this machine."""
    return ",".join(map(plain_path, text.split(",")))


def plain_settings(value: Any) -> Any:
    """Return settings as JSON holds them, without the absolute paths of this machine."""
    if isinstance(value, dict):
        return {key: plain_settings(part) for key, part in value.items()}
    if isinstance(value, tuple):
        return [plain_settings(part) for part in value]
    if isinstance(value, (str, Path)):
        return plain_words(str(value))
    return value


def _program() -> str:
    """Return the running script, with its folder where it belongs to this checkout."""
    script = Path(sys.argv[0])
    folder = script.resolve().parent
    return f"{folder.name}/{script.name}" if folder.parent == _CHECKOUT else script.name


def _git_commit() -> str | None:
    """Return the short commit, marked where files differ from it; none without git."""
    if not (_CHECKOUT / ".git").exists():  # A repository further up knows nothing of this code.
        return None
    try:
        answer = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--exclude", "*"],
            capture_output=True,
            text=True,
            cwd=_CHECKOUT,
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
