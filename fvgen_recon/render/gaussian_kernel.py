"""How the CPU rasteriser's inner loops are compiled and spread over threads.

Kernels are plain numba functions that release the interpreter lock and work on the items from
`start` to `stop`; Python threads call them on consecutive ranges. No two ranges write the same
memory, and no sum crosses the border of a range in an order that depends on the number of
threads, so results do not depend on it either. Numba's own parallel loops are not used: they
take several times as long to compile, and one of their threading layers ends the process when two
Python threads enter it (a training loop and a viewer, say).
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numba
import numpy as np
import torch
from torch import Tensor

kernel = numba.njit(nogil=True, cache=True, error_model="numpy")
"""Compile a kernel at its first call and keep the machine code on disk.

Arithmetic stays strict: a backward pass must come to the same decisions as its forward pass.
"""


def run_chunks(function: Callable[..., None], total: int, chunk: int, *args: Any) -> None:
    """Call a kernel on `total` items in ranges of `chunk`, on as many threads as torch uses.

    Args:
        function: A kernel with the arguments `start, stop, *args`.
        total: Number of items.
        chunk: Items a call; it alone decides where ranges begin.
        *args: The kernel's other arguments.
    """
    starts = range(0, total, chunk)
    num_threads = min(torch.get_num_threads(), len(starts))
    if num_threads <= 1:
        for start in starts:
            function(start, min(start + chunk, total), *args)
        return
    with ThreadPoolExecutor(num_threads) as pool:
        calls = [pool.submit(function, i, min(i + chunk, total), *args) for i in starts]
    for call in calls:
        call.result()


def to_array(tensor: Tensor) -> np.ndarray:
    """View a CPU tensor as a contiguous NumPy array, without its gradient."""
    return tensor.detach().contiguous().numpy()
