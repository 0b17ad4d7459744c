"""Background threads: order, errors, limits, and that none outlives its use or its process."""

import subprocess
import sys
import threading
from concurrent.futures import CancelledError, wait

import pytest

from scvi_dist.dataloaders.threads import DaemonPool, one_ahead
from scvi_dist.errors import StoreError, WaitTimeout


class TestDaemonPool:
    def test_jobs_are_done_in_order_and_outcomes_come_back(self):
        done = []
        pool = DaemonPool(1, "scvi_dist-test")
        futures = [pool.submit(done.append, k) for k in range(5)]
        failing = pool.submit(divmod, 1, 0)
        assert [future.result(30) for future in futures] == [None] * 5
        assert done == [0, 1, 2, 3, 4]
        with pytest.raises(ZeroDivisionError):
            failing.result(30)
        pool.stop()

    def test_stopping_cancels_what_waits_and_whoever_waits_for_it_knows(self):
        begun, gate = threading.Event(), threading.Event()

        def hold() -> bool:
            begun.set()
            return gate.wait(30)

        pool = DaemonPool(1, "scvi_dist-test")
        running = pool.submit(hold)
        assert begun.wait(30)
        waiting = [pool.submit(divmod, 4, 2) for _ in range(3)]
        closed = threading.Event()
        pool.stop(last=closed.set)
        assert not wait(waiting, timeout=30).not_done
        for future in waiting:
            with pytest.raises(CancelledError):
                future.result(0)
        assert not closed.is_set()
        gate.set()
        assert running.result(30)
        assert closed.wait(30)
        for thread in pool._threads:
            thread.join(30)
            assert not thread.is_alive()

    def test_a_job_that_never_ends_does_not_keep_the_process(self):
        code = (
            "import threading\n"
            "from scvi_dist.dataloaders.threads import DaemonPool\n"
            "DaemonPool(2, 'test').submit(threading.Event().wait)\n"
        )
        subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


class TestOneAhead:
    def test_items_come_in_order(self):
        items = one_ahead(iter(range(5)), limit_s=30, timed_out=lambda: "late")
        assert list(items) == [0, 1, 2, 3, 4]

    def test_the_next_item_is_made_while_one_is_in_use(self):
        made = threading.Event()

        def items():
            yield 0
            made.set()
            yield 1

        ahead_of = one_ahead(items(), limit_s=30, timed_out=lambda: "late")
        assert next(ahead_of) == 0
        assert made.wait(30)
        ahead_of.close()

    def test_errors_come_in_turn(self):
        def items():
            yield 0
            raise StoreError("gone")

        ahead_of = one_ahead(items(), limit_s=30, timed_out=lambda: "late")
        assert next(ahead_of) == 0
        with pytest.raises(StoreError, match="gone"):
            next(ahead_of)

    def test_waiting_has_a_limit_and_a_message(self):
        release = threading.Event()

        def items():
            assert release.wait(30)
            yield 0

        try:
            with pytest.raises(WaitTimeout, match="no cells in time"):
                next(one_ahead(items(), limit_s=0.02, timed_out=lambda: "no cells in time"))
        finally:
            release.set()

    def test_leaving_early_closes_what_was_iterated(self):
        closed = threading.Event()

        def items():
            try:
                yield from range(100)
            finally:
                closed.set()

        ahead_of = one_ahead(items(), limit_s=30, timed_out=lambda: "late")
        next(ahead_of)
        ahead_of.close()
        assert closed.wait(30)

    def test_what_runs_is_interrupted_first(self):
        gate, closed = threading.Event(), threading.Event()

        def items():
            try:
                yield 0
                assert gate.wait(30)
            finally:
                closed.set()

        ahead_of = one_ahead(items(), limit_s=30, timed_out=lambda: "late", interrupt=gate.set)
        assert next(ahead_of) == 0
        ahead_of.close()
        assert closed.wait(30)
