"""Background threads that never keep a process from ending."""

from collections.abc import Callable, Iterator
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Any, ParamSpec, TypeVar

from scvi_dist.errors import WaitTimeout

A = ParamSpec("A")
T = TypeVar("T")


class DaemonPool:
    """Some threads that do jobs in the order in which they were given.

    ``ThreadPoolExecutor`` waits for its threads when the process ends: one read that a server
    never answers would keep a failed run alive. These threads end with the process.
    """

    def __init__(self, n_threads: int, name: str) -> None:
        self._jobs: SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None] = SimpleQueue()
        self._threads = [
            Thread(target=_work, args=(self._jobs,), name=f"{name}-{k}", daemon=True)
            for k in range(n_threads)
        ]
        for thread in self._threads:
            thread.start()

    def submit(self, work: Callable[A, T], /, *args: A.args, **kwargs: A.kwargs) -> "Future[T]":
        """Let a thread call ``work``; the future has the outcome."""
        future: Future[T] = Future()
        self._jobs.put((future, lambda: work(*args, **kwargs)))
        return future

    def stop(self, last: Callable[[], object] | None = None) -> None:
        """Cancel what has not begun, and let the threads end after what they do now.

        Parameters
        ----------
        last
            One more job, done when a thread is free.
        """
        try:
            while (job := self._jobs.get_nowait()) is not None:
                job[0].cancel()
                job[0].set_running_or_notify_cancel()
        except Empty:
            pass
        if last is not None:
            self.submit(last)
        for _ in self._threads:
            self._jobs.put(None)


def _work(jobs: "SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None]") -> None:
    while (job := jobs.get()) is not None:
        future, call = job
        if future.set_running_or_notify_cancel():
            try:
                future.set_result(call())
            except BaseException as error:
                future.set_exception(error)
        # A waiting thread must not hold the last result, nor what its job refers to.
        del job, future, call


def one_ahead(
    items: Iterator[T],
    *,
    limit_s: float,
    timed_out: Callable[[], str],
    interrupt: Callable[[], object] | None = None,
) -> Iterator[T]:
    """The items of an iterator, each of them computed in a thread while the last is in use.

    Parameters
    ----------
    items
        If it has ``close``, it is closed at the end, also when the consumer leaves early.
    limit_s
        Longest wait for an item, in seconds.
    timed_out
        The message when an item does not come in time.
    interrupt
        Called at the end: lets a call of ``next(items)`` that is still running return.

    Raises
    ------
    WaitTimeout
        When an item does not come in time.
    """
    done = object()
    pool = DaemonPool(1, "scvi_dist-ahead")
    try:
        coming = pool.submit(next, items, done)
        while True:
            try:
                item = coming.result(timeout=limit_s)
            except FutureTimeout as error:
                if coming.done():
                    raise error
                raise WaitTimeout(timed_out()) from None
            if item is done:
                return
            coming = pool.submit(next, items, done)
            yield item  # type: ignore[misc]
            del item
    finally:
        if interrupt is not None:
            interrupt()
        # In the same thread: a generator cannot be closed while it is running in another.
        pool.stop(last=getattr(items, "close", None))
