"""Memory that is freed while a worker computes is used again, and given back afterwards.

Dask's nannies start workers with ``MALLOC_TRIM_THRESHOLD_=65536``, by which the C library gives
each freed block of 128 KiB or more back to the system at once. Every minibatch then has its arrays
mapped, faulted in and zeroed anew: a third of the time of a pass.
"""

import ctypes
import os
import platform
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from threading import Lock

_TRIM, _MMAP = "MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_"
# Source: malloc.h of the GNU C library.
_PARAMETER = {_TRIM: -1, _MMAP: -3}
_WITHIN = {_TRIM: 512 << 20, _MMAP: 32 << 20}
"""Bytes that may lie free at the end of a heap, and from which on a block is mapped by itself;
32 MiB is the most that the library takes."""
_MAPPED_BY_DEFAULT = 128 << 10


class FreedMemory:
    """Settings of the C library's memory of this process.

    Nothing happens where the environment does not set the threshold: the library then adapts it,
    which it never does again once it was set.
    """

    def __init__(self, environment: Mapping[str, str]) -> None:
        given = environment.get(_TRIM, "")
        self._before: dict[str, int] = {}
        if given.isdigit() and platform.libc_ver()[0] == "glibc":
            mapped = environment.get(_MMAP, "")
            self._before = {
                _TRIM: int(given),
                _MMAP: int(mapped) if mapped.isdigit() else _MAPPED_BY_DEFAULT,
            }
        self._lock = Lock()
        self._n_within = 0

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Within it, in any thread, freed memory is kept; afterwards it belongs to the system."""
        self._count(1)
        try:
            yield
        finally:
            self._count(-1)

    def _count(self, step: int) -> None:
        with self._lock:
            self._n_within += step
            if self._n_within == 1 and step == 1:
                self._set(_WITHIN)
            elif self._n_within == 0:
                self._set(self._before)
                if self._before:
                    ctypes.CDLL(None).malloc_trim(0)

    def _set(self, bytes_of: Mapping[str, int]) -> None:
        if self._before:
            library = ctypes.CDLL(None)
            for name, n_bytes in bytes_of.items():
                library.mallopt(_PARAMETER[name], n_bytes)


FREED_MEMORY = FreedMemory(os.environ)
