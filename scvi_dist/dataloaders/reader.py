"""Reading ahead: tasks are read by background threads, in order, inside a byte budget."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, wait
from concurrent.futures import TimeoutError as FutureTimeout
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from scvi_dist.dataloaders.budget import TASKS_RESIDENT
from scvi_dist.dataloaders.read_task import ReadTask
from scvi_dist.dataloaders.threads import DaemonPool, one_ahead
from scvi_dist.errors import WaitTimeout

__all__ = ["ReadAhead", "ReadLimits", "one_ahead"]


class Sized(Protocol):
    """Something that knows its size."""

    @property
    def nbytes(self) -> int: ...


P = TypeVar("P", bound=Sized)


@dataclass(frozen=True, kw_only=True, slots=True)
class ReadLimits:
    """What reading ahead may use."""

    budget_bytes: int
    """Bytes of tasks in memory; one task is always read, whatever its size."""
    n_threads: int = 2
    limit_s: float = 600.0
    """Seconds to wait for a part of a task before giving up."""


class ReadAhead(Generic[P]):
    """Tasks and their parts, in order; the next task is read while one is in use.

    Parameters
    ----------
    tasks
        What to read.
    read_part
        ``read_part(task, part, n_parts)``, called in background threads.
    n_parts
        Parts that a task is read in.
    cost
        Bytes that a task is expected to take; its true size counts once it is there.
    where
        Name of the store, for messages.
    """

    def __init__(
        self,
        tasks: Iterable[ReadTask],
        read_part: Callable[[ReadTask, int, int], P],
        *,
        n_parts: Callable[[ReadTask], int],
        cost: Callable[[ReadTask], int],
        limits: ReadLimits,
        where: str,
    ) -> None:
        self._tasks = iter(tasks)
        self._read_part, self._n_parts, self._cost = read_part, n_parts, cost
        self._limits, self._where = limits, where
        self._next: ReadTask | None = next(self._tasks, None)
        self._started: deque[tuple[ReadTask, list[Future[P]]]] = deque()
        self._in_use_bytes = 0
        self._pool = DaemonPool(limits.n_threads, "scvi_dist-read")

    def __iter__(self) -> Iterator[tuple[ReadTask, list[P]]]:
        """Each task with its parts. A task counts as in use until the next one is asked for."""
        try:
            self._start_what_fits()
            while self._started:
                task, futures = self._started.popleft()
                parts = [self._result(task, future) for future in futures]
                futures.clear()
                self._in_use_bytes = sum(part.nbytes for part in parts)
                self._start_what_fits()
                yield task, parts
                # Nothing may hold the parts while the next ones are waited for.
                del parts
                self._in_use_bytes = 0
                self._start_what_fits()
        finally:
            self.close()

    def close(self) -> None:
        """Stop: what has not begun is dropped, what has begun is waited for."""
        self._next = None
        self._pool.stop()
        running = [future for _, futures in self._started for future in futures]
        self._started.clear()
        if wait(running, timeout=self._limits.limit_s).not_done:
            raise WaitTimeout(
                f"{self._where}: a read is still running {self._limits.limit_s:.0f} s after it "
                f"was told to stop; the store does not answer."
            )

    def _start_what_fits(self) -> None:
        while self._next is not None and self._fits(self._next):
            task, self._next = self._next, None
            n_parts = self._n_parts(task)
            futures = [
                self._pool.submit(self._read_part, task, part, n_parts) for part in range(n_parts)
            ]
            self._started.append((task, futures))
            self._next = next(self._tasks, None)

    def _fits(self, task: ReadTask) -> bool:
        n_held = len(self._started) + (self._in_use_bytes > 0)
        if n_held == 0:
            return True
        expected = sum(self._cost(started) for started, _ in self._started) + self._cost(task)
        budget = self._limits.budget_bytes
        return n_held < TASKS_RESIDENT and self._in_use_bytes + expected <= budget

    def _result(self, task: ReadTask, future: "Future[P]") -> P:
        try:
            return future.result(timeout=self._limits.limit_s)
        except FutureTimeout as error:
            if future.done():  # the read itself timed out
                raise self._named(error, task)  # noqa: B904 - it is the error, not another
            raise WaitTimeout(
                f"{self._where}: nothing came within {self._limits.limit_s:.0f} s while reading "
                f"{task.describe()}. Is the store reachable?"
            ) from None
        except BaseException as error:
            raise self._named(error, task)  # noqa: B904

    def _named(self, error: BaseException, task: ReadTask) -> BaseException:
        error.add_note(f"while reading {task.describe()} of {self._where}")
        return error
