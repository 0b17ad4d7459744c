"""Independent tasks on threads of this process or as Ray tasks: one loop, two engines."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from itertools import islice
from typing import Any, TypeVar

from scvi_dist.errors import ConfigError, ScviDistError, did_you_mean

T = TypeVar("T")
R = TypeVar("R")

_TRIES = 3
"""Times that Ray starts a task whose worker died."""


def run_tasks(
    work: Callable[[T], R],
    tasks: Sequence[T],
    on_done: Callable[[T, R], object],
    *,
    engine: str,
    workers: int,
) -> None:
    """Do every task once, at most ``workers`` at a time, in any order.

    Parameters
    ----------
    work
        For Ray, picklable.
    on_done
        Called in this thread with each task and what came of it.
    engine
        ``threads`` or ``ray``.

    Raises
    ------
    Exception
        What the first failing task raised; tasks that have not begun are dropped.
    """
    if engine not in ENGINES:
        raise ConfigError(f"engine {engine!r} does not exist; {did_you_mean(engine, ENGINES)}")
    if tasks:
        for task, outcome in ENGINES[engine](work, tasks, workers):
            on_done(task, outcome)


def _in_threads(work: Callable[[T], R], tasks: Iterable[T], workers: int) -> Iterator[tuple[T, R]]:
    left = iter(tasks)
    with ThreadPoolExecutor(workers) as pool:
        running: dict[Future[R], T] = {pool.submit(work, t): t for t in islice(left, workers)}
        try:
            while running:
                done, _ = wait(running, return_when=FIRST_COMPLETED)
                for future in done:
                    task = running.pop(future)
                    for after in islice(left, 1):
                        running[pool.submit(work, after)] = after
                    yield task, future.result()
        finally:
            for future in running:
                future.cancel()


def _by_ray(work: Callable[[T], R], tasks: Iterable[T], workers: int) -> Iterator[tuple[T, R]]:
    import ray

    left = iter(tasks)
    with _ray_running(workers):
        remote = ray.remote(num_cpus=1, max_retries=_TRIES)(_call)
        shared = ray.put(work)
        running: dict[Any, T] = {remote.remote(shared, t): t for t in islice(left, workers)}
        try:
            while running:
                done, _ = ray.wait(list(running), num_returns=1)
                task = running.pop(done[0])
                for after in islice(left, 1):
                    running[remote.remote(shared, after)] = after
                yield task, _result(done[0])
        finally:
            for reference in running:
                ray.cancel(reference)


def _call(work: Callable[[T], R], task: T) -> R:
    return work(task)


def _result(reference: Any) -> Any:
    import ray

    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        # What the task raised says more than that a task failed.
        if isinstance(error.cause, ScviDistError):
            raise error.cause from error
        raise


@contextmanager
def _ray_running(workers: int) -> Iterator[None]:
    """A Ray on this machine, if none is there yet; it ends with the tasks."""
    import ray

    if ray.is_initialized():
        yield
        return
    ray.init(num_cpus=workers, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    try:
        yield
    finally:
        ray.shutdown()


ENGINES: dict[str, Callable[[Callable[[Any], Any], Sequence[Any], int], Iterator[Any]]] = {
    "threads": _in_threads,
    "ray": _by_ray,
}
"""Engine -> what does the tasks."""
