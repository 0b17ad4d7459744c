"""Arrays that a thread keeps from one call to the next."""

import threading
from typing import Any

import numpy as np


class Workspace(threading.local):
    """Uninitialised arrays by name, each as large as it ever had to be.

    Fresh memory is handed out by the system page by page, which costs as much as filling it.
    """

    def __init__(self) -> None:
        self._arrays: dict[tuple[str, np.dtype], np.ndarray] = {}

    def array(self, name: str, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
        """An array whose former content may still be in it, and which the next call gets too."""
        key = (name, np.dtype(dtype))
        n = int(np.prod(shape))
        held = self._arrays.get(key)
        if held is None or held.size < n:
            held = self._arrays[key] = np.empty(n, dtype=dtype)
        return held[:n].reshape(shape)
