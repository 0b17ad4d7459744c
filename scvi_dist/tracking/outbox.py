"""Carries records to their sink from a background thread, so that nobody waits for a server."""

import atexit
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from scvi_dist.tracking.last_steps import LastSteps
from scvi_dist.tracking.records import Record, Refused, Sink, Unreachable, joined, merged
from scvi_dist.tracking.spool import Spool

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class OutboxConfig:
    """How long records may wait, and how many."""

    interval_s: float = 1.0
    """Records are sent at least this often."""
    send_at_points: int = 500
    """… and as soon as so many metric values wait."""
    max_points: int = 20_000
    """Beyond this many waiting values the spool on disk takes them."""
    first_retry_s: float = 1.0
    """Wait after a server did not answer; doubles each time …"""
    last_retry_s: float = 30.0
    """… up to this."""


@dataclass(frozen=True, slots=True)
class _Entry:
    record: Record
    answer: "Future[Any] | None" = None

    def resolve(self, answer: Any) -> None:
        if self.answer is not None and not self.answer.done():
            self.answer.set_result(answer)


class Outbox:
    """A queue with one sender thread. Nothing here raises into the caller.

    While the sink cannot be reached, records go to ``spool`` and are sent from there, in order,
    once it answers.
    """

    def __init__(
        self,
        sink: Sink,
        spool: Spool,
        last_steps: LastSteps,
        config: OutboxConfig | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._sink = sink
        self._spool = spool
        self._last_steps = last_steps
        self._config = config or OutboxConfig()
        self._clock = clock
        self._wake = threading.Condition()
        self._queue: deque[_Entry] = deque()
        self._in_flight: list[_Entry] = []
        self._n_points = 0
        self._urgent = False
        self._closed = False
        self._offline = False
        self._retry_s = 0.0
        self._retry_at = 0.0
        self._thread = threading.Thread(target=self._run, name="scvi-dist-tracking", daemon=True)
        self._thread.start()
        # Whoever forgets to close keeps what was recorded, if not yet delivered.
        atexit.register(self.secure)

    @property
    def online(self) -> bool:
        """Whether the last attempt reached the sink and nothing waits on disk."""
        return not self._offline and not self._spool.pending

    def put(self, record: Record) -> None:
        """Hand a record over; returns at once."""
        self._enqueue(_Entry(record))

    def call(self, record: Record, timeout_s: float) -> Any:
        """Hand a record over and wait for its answer; None where none came in time."""
        answer: Future[Any] = Future()
        self._enqueue(_Entry(record, answer), urgent=True)
        try:
            return answer.result(timeout_s)
        except FutureTimeout:
            return None

    def secure(self) -> None:
        """Put what is in memory only on the disk; takes milliseconds."""
        with self._wake:
            self._keep(self._queue)
            self._queue.clear()
            self._n_points = 0
            # Values on their way may not arrive. Should they, the second time changes nothing.
            on_the_way = [e.record for e in self._in_flight if e.record.op == "metrics"]
        self._append(on_the_way)

    def flush(self, timeout_s: float) -> bool:
        """Wait until nothing waits in memory; True if all of it was delivered."""
        with self._wake:
            self._urgent = True
            self._wake.notify_all()
            empty = self._wake.wait_for(lambda: not self._queue and not self._in_flight, timeout_s)
        return empty and self.online

    def close(self, timeout_s: float) -> bool:
        """Send what waits, or leave it on disk; True if all of it was delivered."""
        with self._wake:
            # One more attempt now, however recent the last one.
            self._retry_at = 0.0
            self._spool.adopt()
            self._closed = True
            self._wake.notify_all()
        self._thread.join(timeout_s)
        atexit.unregister(self.secure)
        with self._wake:
            left = [*self._in_flight, *self._queue]
            self._queue.clear()
        self._keep(left)
        delivered = self.online
        # A sender that still hangs in a request keeps the lock of its file.
        if not self._thread.is_alive():
            self._spool.close()
        return delivered

    def _enqueue(self, entry: _Entry, urgent: bool = False) -> None:
        with self._wake:
            if self._closed:
                self._spool.append([entry.record])
                entry.resolve(None)
                return
            self._queue.append(entry)
            self._n_points += len(entry.record.points)
            self._urgent |= urgent
            if self._n_points > self._config.max_points:
                self._keep(self._queue)
                self._queue.clear()
                self._n_points = 0
            elif urgent or self._n_points >= self._config.send_at_points:
                self._wake.notify_all()

    def _run(self) -> None:
        while True:
            with self._wake:
                self._wake.wait_for(self._has_to_send, self._config.interval_s)
                self._in_flight = list(self._queue)
                self._queue.clear()
                self._n_points, self._urgent = 0, False
                closing = self._closed
            self._send(self._in_flight)
            with self._wake:
                self._in_flight = []
                self._wake.notify_all()
                if closing and not self._queue:
                    return

    def _has_to_send(self) -> bool:
        return self._closed or self._urgent or self._n_points >= self._config.send_at_points

    def _send(self, entries: list[_Entry]) -> None:
        """Deliver entries, after what waits on disk; whatever cannot be goes to the disk."""
        left = deque(entries)
        try:
            if self._spool.pending:
                if self._clock() < self._retry_at:
                    raise Unreachable("too early to try again")
                self._spool.drain(self._deliver)
            for group in merged([entry.record for entry in entries]):
                if group[0].op == "metrics":
                    self._last_steps.learn(self._sink)
                answer = self._deliver(self._last_steps.admit(joined(group)))
                for _ in group:
                    left.popleft().resolve(answer)
            self._back_online()
        except Unreachable as error:
            if self._clock() >= self._retry_at:
                self._go_offline(error)
            self._keep(left)
        with suppress(OSError):  # without the file, the next process asks the server
            self._last_steps.save()

    def _deliver(self, record: Record) -> Any:
        try:
            return self._sink.deliver(record)
        except Unreachable:
            raise
        except Refused as error:
            logger.warning("MLflow refused to record %s: %s", record.op, error)
        except Exception:
            # The edge of the thread: a defect here must cost neither training nor other records.
            logger.exception("could not record %s", record.op)
        return None

    def _go_offline(self, error: Unreachable) -> None:
        if not self._offline:
            logger.warning(
                "MLflow cannot be reached (%s). The run goes on; values are kept on disk and "
                "delivered later.",
                error,
            )
        self._offline = True
        doubled = min(2 * self._retry_s, self._config.last_retry_s)
        self._retry_s = max(doubled, self._config.first_retry_s)
        self._retry_at = self._clock() + self._retry_s

    def _back_online(self) -> None:
        if self._offline:
            logger.warning("MLflow answers again; what was kept on disk has been delivered.")
        self._offline, self._retry_s = False, 0.0

    def _keep(self, entries: Iterable[_Entry]) -> None:
        """Onto the disk, in order."""
        kept = list(entries)
        self._append([self._last_steps.admit(entry.record) for entry in kept])
        for entry in kept:
            entry.resolve(None)

    def _append(self, records: list[Record]) -> None:
        try:
            self._spool.append(records)
        except OSError as error:
            # A full disk must not end a training that can still write its checkpoints elsewhere.
            logger.error("%d records for MLflow are lost: %s", len(records), error)
