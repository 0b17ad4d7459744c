"""Arrays that a thread keeps from one call to the next."""

import math
import threading
from typing import Any

import numpy as np

_MOST_GIVEN = 256
"""Shapes that are remembered: those of sparse minibatches are many."""


class Workspace(threading.local):
    """Uninitialised arrays by name, each as large as it ever had to be.

    Fresh memory is handed out by the system page by page, which costs as much as filling it.
    """

    def __init__(self) -> None:
        self._arrays: dict[tuple[str, np.dtype], np.ndarray] = {}
        self._given: dict[tuple[str, tuple[int, ...], Any], np.ndarray] = {}

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
            held = self._arrays[key] = np.empty(n, dtype=dtype)
        given = self._given[name, shape, dtype] = held[:n].reshape(shape)
        return given
