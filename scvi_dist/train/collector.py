"""What workers tell the driver, and the driver the workers. Ray makes an actor of it.

The actor's process imports this file and nothing large: each run starts one.
"""

import pickle
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from scvi_dist.errors import (
    ScviDistError,
    StoreChanged,
    StoreCorrupt,
    StoreError,
    StoreNotFound,
    TrainingFailed,
    UnsupportedStore,
    WaitTimeout,
)
from scvi_dist.train.progress import TrainProgress

_LOST_PEER = ("gloo", "nccl", "connection closed by peer", "connection reset", "process group")
_PERMANENT_STORE_ERRORS = (StoreNotFound, StoreCorrupt, StoreChanged, UnsupportedStore)
_PERMANENT = (ValueError, TypeError, LookupError, AttributeError, ImportError, AssertionError)


@dataclass(frozen=True, slots=True)
class WorkerFailure:
    """An exception that ended a worker's loop."""

    rank: int
    summary: str
    """Type and message in a line."""
    traceback: str
    pickled: bytes | None
    """The exception; ``None`` where it cannot travel."""
    is_permanent: bool
    """It would happen again: training anew is of no use."""
    lost_peer: bool
    """It came of another rank's end."""

    @classmethod
    def of(cls, error: BaseException, rank: int) -> "WorkerFailure":
        """The failure that an exception of a rank is."""
        text = f"{type(error).__name__}: {error}"
        lost_peer = not isinstance(error, ScviDistError) and any(
            word in text.lower() for word in _LOST_PEER
        )
        return cls(
            rank=rank,
            summary=text,
            traceback="".join(traceback.format_exception(error)),
            pickled=_pickled(error),
            is_permanent=not lost_peer and _is_permanent(error),
            lost_peer=lost_peer,
        )

    def error(self) -> ScviDistError:
        """What the driver raises: our own errors as they are, others in words.

        The worker's exception comes first, its traceback is a note.
        """
        error: BaseException | None = pickle.loads(self.pickled) if self.pickled else None
        if self.lost_peer:
            error = TrainingFailed(
                f"Rank {self.rank} waited for another rank, which did not answer and has not said "
                f"why ({self.summary}). It may have been ended for want of memory, or its node or "
                "the network between them be gone; look at what ended it, then train on with the "
                "same run_dir."
            )
        elif not isinstance(error, ScviDistError):
            error = TrainingFailed(f"Rank {self.rank} failed: {self.summary}")
        error.add_note(f"Traceback of rank {self.rank}:\n{self.traceback}")
        return error


class Orders(NamedTuple):
    """What a run is asked to do."""

    stop: bool = False
    """Write a checkpoint, then stop."""
    n_saves: int = 0
    """Checkpoints asked for since the start of the run."""


class Collector:
    """Where rank 0 leaves its reports and its result, and all ranks their failures.

    Parameters
    ----------
    clock
        Seconds; only differences count.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lost_s: float | None = None
        self._began = False
        self._n_saves = self._n_saved = 0
        self._news: list[TrainProgress] = []
        self._failures: list[WorkerFailure] = []
        self._result: bytes | None = None
        self._stop = False

    def tell(self, news: list[TrainProgress]) -> Orders:
        """Take reports; what the run is to do."""
        self._news.extend(news)
        if news and self._began:
            self._lost_s = None
        return Orders(self._stop, self._n_saves)

    def fail(self, failure: WorkerFailure) -> None:
        """Take a failure."""
        self._failures.append(failure)
        self.lost()

    def lost(self) -> None:
        """Note that workers have ended; from the first one's end on time is lost."""
        # Until others begin, what is told comes from those that have ended or are about to.
        self._began = False
        if self._lost_s is None:
            self._lost_s = self._clock()

    def begin(self) -> float | None:
        """Rank 0 has started: seconds that were lost since other workers ended, if some did."""
        self._began = True
        return None if self._lost_s is None else self._clock() - self._lost_s

    def ask_save(self) -> None:
        """Let the run write a checkpoint."""
        self._n_saves += 1

    def saved(self) -> None:
        """Take note of a checkpoint."""
        self._n_saved += 1

    def n_saved(self) -> int:
        """Checkpoints that were written."""
        return self._n_saved

    def finish(self, result: bytes) -> None:
        """Take the result, pickled."""
        self._result = result

    def ask_stop(self) -> None:
        """Let the run stop where it can be resumed."""
        self._stop = True

    def is_hopeless(self) -> bool:
        """Whether a worker has failed in a way that would repeat itself."""
        return any(failure.is_permanent for failure in self._failures)

    def news(self) -> list[TrainProgress]:
        """The reports since the last call."""
        news, self._news = self._news, []
        return news

    def result(self) -> bytes | None:
        """The pickled result, once there is one."""
        return self._result

    def culprit(self) -> WorkerFailure | None:
        """The failure to show: one that would repeat itself, else the first true one."""
        for wanted in (
            [f for f in self._failures if f.is_permanent],
            [f for f in self._failures if not f.lost_peer],
            self._failures,
        ):
            if wanted:
                return wanted[0]
        return None


def _is_permanent(error: BaseException) -> bool:
    if isinstance(error, WaitTimeout):
        return False
    if isinstance(error, StoreError):
        return isinstance(error, _PERMANENT_STORE_ERRORS)
    return isinstance(error, (ScviDistError, *_PERMANENT))


def _pickled(error: BaseException) -> bytes | None:
    try:
        data = pickle.dumps(error)
        pickle.loads(data)
    except Exception:
        # An exception may hold anything; its words and traceback travel in any case.
        return None
    return data
