"""Threads for compiled loops and the matrix products between them, as many as torch has.

Each computes on one core. Torch's own threads wait for the next operation by spinning, in the way
of these and of whatever else runs on the machine: where compiled loops do most of the work, torch
computes the small rest on one thread, see :func:`for_loops`.
"""

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import pairwise

import torch

_POOLS: dict[tuple[int, int], ThreadPoolExecutor] = {}
_LOCK = threading.Lock()


class _Kept(threading.local):
    count = 0
    """Threads that torch had before it was left with one; 0 where it has them still."""


_KEPT = _Kept()


def n_threads() -> int:
    """Threads that a call uses, the caller's among them."""
    return _KEPT.count or torch.get_num_threads()


@contextmanager
def for_loops(wanted: bool = True) -> Iterator[None]:
    """Within it torch's operations have one thread, and compiled loops those that torch had.

    Parameters
    ----------
    wanted
        Nothing is changed where it is False.
    """
    before, count = torch.get_num_threads(), n_threads()
    if not wanted or before == 1:
        yield
        return
    kept, _KEPT.count = _KEPT.count, count
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
        _KEPT.count = kept


def n_parts(work: int, least: int) -> int:
    """Parts of a piece of work, one for each thread, but none of less than ``least``.

    To hand a part to a thread takes some 20 microseconds; those of a large machine would spend a
    minibatch on that.
    """
    return max(1, min(n_threads(), work // least))


def cuts(start: int, stop: int, n_parts: int) -> list[tuple[int, int]]:
    """The stretch ``start … stop`` in at most ``n_parts`` parts of nearly equal length."""
    n = stop - start
    n_parts = max(1, min(n_parts, n))
    bounds = [start + n * k // n_parts for k in range(n_parts + 1)]
    return list(pairwise(bounds))


def run(tasks: Sequence[Callable[[], None]]) -> None:
    """Do all tasks, the first in this thread; each has one core."""
    if len(tasks) == 1 and torch.get_num_threads() == 1:
        tasks[0]()
        return
    pool = _pool(n_threads())
    # Whether gradients are recorded is a thread's own affair; here nobody records any.
    is_inference = torch.is_inference_mode_enabled()
    running = [pool.submit(_without_graph, task, is_inference) for task in tasks[1:]]
    try:
        with for_loops():
            _without_graph(tasks[0], is_inference)
    finally:
        for future in running:
            future.result()


def _without_graph(task: Callable[[], None], is_inference: bool) -> None:
    # What was made in inference mode can only be written to in inference mode.
    with torch.inference_mode(is_inference), torch.no_grad():
        task()


def _have_one_thread() -> None:
    # Torch gives a thread its number when that is first asked for, whatever was set before.
    torch.get_num_threads()
    torch.set_num_threads(1)


def _pool(count: int) -> ThreadPoolExecutor:
    """The pool of this process; a forked one has none of its parent's threads."""
    key = (os.getpid(), count)
    with _LOCK:
        if key not in _POOLS:
            _POOLS[key] = ThreadPoolExecutor(
                count - 1 or 1, "kernels", initializer=_have_one_thread
            )
        return _POOLS[key]
