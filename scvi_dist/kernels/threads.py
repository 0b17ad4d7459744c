"""Threads for compiled loops and the matrix products between them, as many as torch has.

Each computes on one core: many short parallel regions of OpenMP, whose threads wait by spinning,
would be in the way of each other.
"""

import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import torch

_POOLS: dict[tuple[int, int], ThreadPoolExecutor] = {}
_LOCK = threading.Lock()


def n_threads() -> int:
    """Threads that a call uses, the caller's among them."""
    return torch.get_num_threads()


def cuts(start: int, stop: int, n_parts: int) -> list[tuple[int, int]]:
    """The stretch ``start … stop`` in at most ``n_parts`` parts of nearly equal length."""
    n = stop - start
    n_parts = max(1, min(n_parts, n))
    bounds = [start + n * k // n_parts for k in range(n_parts + 1)]
    return list(pairwise(bounds))


def run(tasks: Sequence[Callable[[], None]]) -> None:
    """Do all tasks, the first in this thread; each has one core."""
    if len(tasks) == 1 and n_threads() == 1:
        tasks[0]()
        return
    count = n_threads()
    pool = _pool(count)
    # Whether gradients are recorded is a thread's own affair; here nobody records any.
    is_inference = torch.is_inference_mode_enabled()
    running = [pool.submit(_without_graph, task, is_inference) for task in tasks[1:]]
    torch.set_num_threads(1)
    try:
        _without_graph(tasks[0], is_inference)
    finally:
        torch.set_num_threads(count)
        for future in running:
            future.result()


def _without_graph(task: Callable[[], None], is_inference: bool) -> None:
    # What was made in inference mode can only be written to in inference mode.
    with torch.inference_mode(is_inference), torch.no_grad():
        task()


def _pool(count: int) -> ThreadPoolExecutor:
    """The pool of this process; a forked one has none of its parent's threads."""
    key = (os.getpid(), count)
    with _LOCK:
        if key not in _POOLS:
            _POOLS[key] = ThreadPoolExecutor(
                count - 1 or 1, "kernels", initializer=torch.set_num_threads, initargs=(1,)
            )
        return _POOLS[key]
