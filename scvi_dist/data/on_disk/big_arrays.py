"""Large arrays whose memory goes back to the system the moment nobody uses them.

What a reader holds comes and goes by tens of megabytes beside the network's own arrays. From the C
library's heap, which several threads share in pieces, such memory returns late or never: it lies
between arrays that are still in use. A mapping of its own has no neighbours.
"""

import mmap
from collections.abc import Sequence
from math import prod
from typing import Any

import numpy as np

LARGE_BYTES = 1 << 20
"""Smaller arrays come from the heap: a mapping costs a few system calls and whole pages."""


def new_array(shape: int | Sequence[int], dtype: Any) -> np.ndarray:
    """An array to be filled, like ``np.empty``; a large one has a mapping of its own.

    The values of a small one are arbitrary, those of a large one are 0.
    """
    sizes = (shape,) if isinstance(shape, int) else tuple(shape)
    dtype = np.dtype(dtype)
    n_bytes = prod(sizes) * dtype.itemsize
    if n_bytes < LARGE_BYTES or dtype.hasobject:
        return np.empty(sizes, dtype=dtype)
    memory = _new_mapping(n_bytes)
    return np.frombuffer(memory, dtype=dtype).reshape(sizes)


def _new_mapping(n_bytes: int) -> mmap.mmap:
    if not hasattr(mmap, "MAP_PRIVATE"):
        return mmap.mmap(-1, n_bytes)
    # Shared memory, which is the default, never comes in large pages on most systems.
    memory = mmap.mmap(-1, n_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        memory.madvise(mmap.MADV_HUGEPAGE)
    return memory
