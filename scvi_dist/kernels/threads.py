"""Threads for compiled loops and the matrix products between them, as many as torch has.

Each computes on one core. Torch's own threads wait for the next operation by spinning, in the way
of these and of whatever else runs on the machine: where compiled loops do most of the work, torch
computes the small rest on one thread, see :func:`for_loops`.
"""

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from queue import SimpleQueue
from threading import Thread
from typing import TypeAlias

import torch

_Given: TypeAlias = "tuple[Callable[[], None], bool, SimpleQueue[BaseException | None]]"
"""A task, whether it is in inference mode, and where its end is told."""
_POOLS: dict[tuple[int, int], "_Pool"] = {}
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
    # Whether gradients are recorded is a thread's own affair; here nobody records any.
    is_inference = torch.is_inference_mode_enabled()
    ends = _pool(n_threads()).start(tasks[1:], is_inference)
    errors: list[BaseException | None] = []
    try:
        with for_loops():
            _without_graph(tasks[0], is_inference)
    finally:
        # All of them, whatever becomes of one: they write to what others will write to next.
        errors += [ends.get() for _ in tasks[1:]]
    for error in errors:
        if error is not None:
            raise error


class _Pool:
    """Threads that wait for tasks.

    To hand one over takes half of what it takes with the standard library's executors, whose
    futures can do more than is needed here several times a minibatch.
    """

    def __init__(self, count: int) -> None:
        self._tasks: SimpleQueue[_Given] = SimpleQueue()
        for k in range(count):
            name = f"kernels_{k}"
            Thread(target=_serve, args=(self._tasks,), name=name, daemon=True).start()

    def start(
        self, tasks: Sequence[Callable[[], None]], is_inference: bool
    ) -> "SimpleQueue[BaseException | None]":
        """Let the threads do tasks; for each that has ended, its error or None comes out."""
        ends: SimpleQueue[BaseException | None] = SimpleQueue()
        for task in tasks:
            self._tasks.put((task, is_inference, ends))
        return ends


def _serve(tasks: "SimpleQueue[_Given]") -> None:
    # Torch gives a thread its number when that is first asked for, whatever was set before.
    torch.get_num_threads()
    torch.set_num_threads(1)
    while True:
        task, is_inference, ends = tasks.get()
        error = None
        try:
            _without_graph(task, is_inference)
        except BaseException as raised:
            error = raised
        ends.put(error)
        # Nothing is held while the next one is waited for.
        del task, ends, error


def _without_graph(task: Callable[[], None], is_inference: bool) -> None:
    # What was made in inference mode can only be written to in inference mode.
    if is_inference:
        with torch.inference_mode():
            task()
        return
    with torch.no_grad():
        task()


def _pool(count: int) -> _Pool:
    """The threads of this process beside the caller's; a forked one has none of its parent's."""
    key = (os.getpid(), count)
    with _LOCK:
        if key not in _POOLS:
            _POOLS[key] = _Pool(count - 1 or 1)
        return _POOLS[key]
