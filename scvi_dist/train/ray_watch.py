"""The driver's side of a run: news of the workers, and requests to stop."""

import logging
import signal
import threading
from typing import Any

import ray
from ray.exceptions import RayError

from scvi_dist.train.callbacks import handler_restored
from scvi_dist.train.progress import OnProgress
from scvi_dist.train.ray_controller import ANSWER_S, ask

POLL_S = 0.25
"""Between two looks for news of the workers."""

log = logging.getLogger(__name__)


class Watch:
    """The driver's side: a thread that fetches news and passes on SIGTERM."""

    def __init__(self, collector: Any, on_progress: OnProgress | None) -> None:
        self._collector, self._on_progress = collector, on_progress
        self._done, self._stop = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._loop, name="scvi_dist-news", daemon=True)
        self._signals = handler_restored(signal.SIGTERM)

    def __enter__(self) -> "Watch":
        self._signals.__enter__()
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, lambda *_: self._stop.set())
        self._thread.start()
        return self

    def __exit__(self, *error: Any) -> None:
        self._done.set()
        self._thread.join(ANSWER_S)
        self._signals.__exit__(None, None, None)

    def _loop(self) -> None:
        try:
            while not self._done.wait(POLL_S):
                self._fetch()
            self._fetch()
        except RayError as error:
            log.warning("no more news from the workers: %s", error)

    def _fetch(self) -> None:
        if self._stop.is_set():
            ray.get(self._collector.ask_stop.remote(), timeout=ANSWER_S)
        for progress in ask(self._collector.news):
            if progress.recovery_s is not None:
                log.warning(
                    "training goes on at step %d with %d worker(s), %.1f s after others ended",
                    progress.step,
                    progress.workers,
                    progress.recovery_s,
                )
            if self._on_progress is not None:
                self._on_progress(progress)
