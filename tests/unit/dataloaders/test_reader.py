"""Laws of reading ahead: order, budget, errors that say where, prompt stops, waits with limits."""

import threading
from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scvi_dist.dataloaders.budget import TASKS_RESIDENT
from scvi_dist.dataloaders.ordered_loader import tasks_in_order
from scvi_dist.dataloaders.reader import ReadAhead, ReadLimits
from scvi_dist.errors import StoreError, WaitTimeout

CELLS = 10


@dataclass
class Part:
    """Stands for some cells of 100 bytes."""

    rows: np.ndarray

    @property
    def nbytes(self) -> int:
        return 100 * len(self.rows)


@dataclass
class Store:
    """Hands out parts, and counts the tasks that are read or held at once."""

    begun: list[int] = field(default_factory=list)
    held_bytes: int = 0
    most_bytes: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def read(self, task, part, n_parts):
        n = len(task.rows)
        rows = task.rows[part * n // n_parts : (part + 1) * n // n_parts]
        with self.lock:
            self.begun.append(task.window)
            self.held_bytes += 100 * len(rows)
            self.most_bytes = max(self.most_bytes, self.held_bytes)
        return Part(rows)

    def give_back(self, parts):
        with self.lock:
            self.held_bytes -= sum(part.nbytes for part in parts)


def tasks(n):
    return tasks_in_order(np.arange(CELLS * n), CELLS, CELLS)


def ahead(work, n_tasks, *, n_parts=1, budget=10**9, n_threads=2, limit_s=60.0):
    return ReadAhead(
        tasks(n_tasks),
        work,
        n_parts=lambda task: n_parts,
        cost=lambda task: 100 * len(task.rows),
        limits=ReadLimits(budget_bytes=budget, n_threads=n_threads, limit_s=limit_s),
        where="the store",
    )


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 12), st.integers(1, 4), st.integers(1, 3), st.sampled_from([1, 1_500, 10**6]))
def test_tasks_and_parts_come_in_order_inside_the_budget(n_tasks, n_parts, n_threads, budget):
    store = Store()
    seen = []
    for task, parts in ahead(
        store.read, n_tasks, n_parts=n_parts, budget=budget, n_threads=n_threads
    ):
        assert len(parts) == n_parts
        np.testing.assert_array_equal(np.concatenate([part.rows for part in parts]), task.rows)
        seen.append(task.window)
        store.give_back(parts)
    assert seen == list(range(n_tasks))
    # A task that is larger than the budget is read, but never beside another one.
    allowed = 1 if budget < 2 * CELLS * 100 else TASKS_RESIDENT
    assert store.most_bytes <= allowed * CELLS * 100


def test_the_next_task_is_read_while_one_is_in_use():
    next_is_read = threading.Event()

    def read(task, part, n_parts):
        if task.window == 1:
            next_is_read.set()
        return Part(task.rows)

    reading = iter(ahead(read, 2))
    next(reading)
    assert next_is_read.wait(30)
    reading.close()


def test_parts_of_a_task_are_read_by_several_threads():
    together = threading.Barrier(3, timeout=30)

    def read(task, part, n_parts):
        together.wait()
        return Part(task.rows[part::n_parts])

    assert len(list(ahead(read, 1, n_parts=3, n_threads=3))) == 1


def test_errors_come_to_the_consumer_in_turn_and_name_the_rows():
    def read(task, part, n_parts):
        if task.window == 2:
            raise StoreError("the disk is gone")
        return Part(task.rows)

    seen = []
    with pytest.raises(StoreError, match="the disk is gone") as caught:
        seen.extend(task.window for task, _ in ahead(read, 9))
    assert seen == [0, 1]
    assert "rows 20 … 29" in caught.value.__notes__[0]
    assert "the store" in caught.value.__notes__[0]


def test_a_timeout_of_the_store_is_the_stores_error():
    def read(task, part, n_parts):
        raise TimeoutError("the server sleeps")

    with pytest.raises(TimeoutError, match="the server sleeps"):
        list(ahead(read, 1))


def test_waiting_has_a_limit_and_says_for_what():
    release = threading.Event()

    def read(task, part, n_parts):
        if task.window == 1:
            assert release.wait(30)
        return Part(task.rows)

    reading = iter(ahead(read, 3, limit_s=0.05))
    next(reading)
    try:
        # Both the wait for the task and the wait for its reader's end have the limit.
        with pytest.raises(WaitTimeout, match=r"0 s.*rows 10 … 19|still running"):
            next(reading)
    finally:
        release.set()


def test_stopping_drops_what_has_not_begun():
    store = Store()
    gate = threading.Event()

    def read(task, part, n_parts):
        if task.window == 1:
            assert gate.wait(30)
        return store.read(task, part, n_parts)

    reader = ahead(read, 50, n_parts=4, n_threads=1)
    reading = iter(reader)
    next(reading)
    threading.Timer(0.01, gate.set).start()
    reading.close()
    # Task 1 was begun or about to be; of its four parts only the first can have been read.
    assert store.begun.count(1) <= 1
    assert set(store.begun) <= {0, 1}
    assert not [
        t
        for t in threading.enumerate()
        if t.name.startswith("scvi_dist-read") and (t.join(30) or t.is_alive())
    ]
