"""Shared fixtures: where the optional fixtures and scenes lie, threads, determinism."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

if sys.version_info < (3, 11):
    # The last jaxtyping for Python 3.10 wraps numba's kernels too, which cannot be compiled then:
    # shapes are checked on later versions.
    sys.meta_path[:] = [f for f in sys.meta_path if not type(f).__module__.startswith("jaxtyping")]

torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", min(2, os.cpu_count() or 1))))

ROOT = Path(__file__).resolve().parent.parent
SHARED = Path(os.environ.get("FVGEN_SHARED", ROOT.parent / "shared"))


@pytest.fixture(scope="session")
def parity() -> Path:
    """Folder of numeric fixtures made with the original teacher."""
    folder = SHARED / "parity"
    if not folder.is_dir():
        pytest.skip("parity fixtures are not here: set FVGEN_SHARED to the folder that holds them")
    return folder


@pytest.fixture(scope="session")
def scenes() -> Path:
    """Folder of real posed validation scenes."""
    folder = SHARED / "data" / "val"
    if not folder.is_dir():
        pytest.skip("real scenes are not here: set FVGEN_SHARED to the folder that holds data/val")
    return folder


@pytest.fixture
def rng() -> torch.Generator:
    """A seeded generator."""
    return torch.Generator().manual_seed(0)


@pytest.fixture(autouse=True)
def same_threads() -> Iterator[None]:
    """Give the threads of torch back: programs that are called here choose their own number.

    Where other tests run beside, more threads than cores wait for each other a hundred times as
    long as they compute.
    """
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip GPU tests, with the reason, where there is no CUDA device."""
    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="needs a CUDA device")
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(skip)
