"""Large arrays in memory of their own, which the next ones take over or the system gets back.

What a reader holds comes and goes by tens of megabytes beside the network's own arrays. From the C
library's heap, which several threads share in pieces, such memory returns late or never: it lies
between arrays that are still in use. A mapping of its own has no neighbours. But the system hands
out each page of a new mapping by itself and fills it with zeros, which takes longer than to copy
counts there. So the memory of an array that nobody uses any more waits for the next one, as long as
no more of it waits than is in use: a reader that goes on reads into what it has read from, and one
that has ended keeps nothing.
"""

import mmap
import threading
import weakref
from collections.abc import Sequence
from math import prod
from typing import Any

import numpy as np

LARGE_BYTES = 1 << 20
"""Smaller arrays come from the heap: a mapping costs a few system calls and whole pages."""

MOST_WAITING_BYTES = 512 << 20
"""Of memory that waits, whatever is in use."""

_STEPS = 8
"""Sizes between a power of two and the next: arrays of nearly one size share mappings."""


def new_array(shape: int | Sequence[int], dtype: Any) -> np.ndarray:
    """An array to be filled, like ``np.empty``; a large one has a mapping of its own."""
    dtype = np.dtype(dtype)
    count = shape if isinstance(shape, int) else prod(shape)
    n_bytes = count * dtype.itemsize
    if n_bytes < LARGE_BYTES or dtype.hasobject:
        return np.empty(shape, dtype)
    memory = _MAPPINGS.take(n_bytes)
    array = np.frombuffer(memory, dtype=dtype, count=count)
    # Views of any kind keep this one alive, and it the mapping.
    weakref.finalize(array, _MAPPINGS.give_back, memory).atexit = False
    return array.reshape(shape)


def keep_waiting(n_bytes: int) -> None:
    """Let so much memory wait even where nothing is in use: for processes that read on and off."""
    _MAPPINGS.least_bytes = max(_MAPPINGS.least_bytes, n_bytes)


def waiting_bytes() -> int:
    """What is kept for arrays to come."""
    return _MAPPINGS.waiting_bytes


class _Mappings:
    """Those in use are counted, those that wait are kept."""

    def __init__(self) -> None:
        # Garbage may be collected, and so memory given back, while this thread holds it.
        self._lock = threading.RLock()
        self._waiting: list[mmap.mmap] = []
        self._used_bytes = 0
        self.least_bytes = 0
        """May wait whatever is in use."""

    @property
    def waiting_bytes(self) -> int:
        return sum(map(len, self._waiting))

    def take(self, n_bytes: int) -> mmap.mmap:
        """One of this size or somewhat more."""
        size = _rounded(n_bytes)
        with self._lock:
            self._used_bytes += size
            for i in range(len(self._waiting) - 1, -1, -1):
                if len(self._waiting[i]) == size:
                    return self._waiting.pop(i)
        return _new_mapping(size)

    def give_back(self, memory: mmap.mmap) -> None:
        with self._lock:
            self._used_bytes -= len(memory)
            self._waiting.append(memory)
            allowed = min(max(self._used_bytes, self.least_bytes), MOST_WAITING_BYTES)
            # The oldest first: sizes that nobody asks for any more are among them.
            while self._waiting and self.waiting_bytes > allowed:
                del self._waiting[0]


_MAPPINGS = _Mappings()


def _rounded(n_bytes: int) -> int:
    step = max(1, (1 << (n_bytes.bit_length() - 1)) // _STEPS)
    return -(-n_bytes // step) * step


def _new_mapping(n_bytes: int) -> mmap.mmap:
    if not hasattr(mmap, "MAP_PRIVATE"):
        return mmap.mmap(-1, n_bytes)
    # Shared memory, which is the default, never comes in large pages on most systems.
    memory = mmap.mmap(-1, n_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        memory.madvise(mmap.MADV_HUGEPAGE)
    return memory
