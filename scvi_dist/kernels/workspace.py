"""Arrays that a thread keeps from one call to the next."""

import math
import threading
from collections.abc import Callable
from typing import Any

import numpy as np

LINE_BYTES = 64
"""Of the processor's cache."""
_MOST_GIVEN = 256
"""Shapes that are remembered: those of sparse minibatches are many."""
_MOST_KEPT = 16
"""Of what is made from arrays: it holds them, also where larger ones took their places."""


def aligned(n: int, dtype: Any) -> np.ndarray:
    """An uninitialised array ``[n]`` that begins where a line of the cache does."""
    n_bytes = n * np.dtype(dtype).itemsize
    room = np.empty(n_bytes + LINE_BYTES, np.uint8)
    first = -room.ctypes.data % LINE_BYTES
    return room[first : first + n_bytes].view(dtype)


class Workspace(threading.local):
    """Uninitialised arrays by name, each as large as it ever had to be.

    They begin where a line of the cache does: else each vector that is read or written lies in two.

    Fresh memory is handed out by the system page by page, which costs as much as filling it.
    """

    def __init__(self) -> None:
        self._arrays: dict[tuple[str, np.dtype], np.ndarray] = {}
        self._given: dict[tuple[str, tuple[int, ...], Any], np.ndarray] = {}
        self._kept: dict[Any, Any] = {}

    def array(self, name: str, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
        """An array whose former content may still be in it, and which the next call gets too."""
        given = self._given.get((name, shape, dtype))
        if given is not None:
            return given
        key, n = (name, np.dtype(dtype)), math.prod(shape)
        held = self._arrays.get(key)
        if held is None or held.size < n or len(self._given) == _MOST_GIVEN:
            # What was given before may be of the array that is replaced.
            self._given.clear()
        if held is None or held.size < n:
            held = self._arrays[key] = aligned(n, dtype)
        given = self._given[name, shape, dtype] = held[:n].reshape(shape)
        return given

    def kept(self, key: Any, make: Callable[[], Any]) -> Any:
        """What was made for this key from such arrays, so that they need not be asked for."""
        found = self._kept.get(key)
        if found is None:
            if len(self._kept) == _MOST_KEPT:
                self._kept.clear()
            found = self._kept[key] = make()
        return found
