"""Many stores of which few are open at a time."""

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

from scvi_dist.data.store import Store, StoreLocator
from scvi_dist.errors import StoreError

_KEPT_OPEN = 256  # an open HDF5 file takes about a MB; opening it again takes milliseconds
_SHARE_OF_FILES = 4
_THREADS = 4  # most of the work holds a lock; what is left is waiting
_T = TypeVar("_T")


def open_limit() -> int:
    """How many stores a collection keeps open: 256, or a quarter of the files allowed."""
    try:
        import resource
    except ImportError:  # not on this platform; its limit is far above ours
        return _KEPT_OPEN
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return _KEPT_OPEN if soft < 0 else max(2, min(_KEPT_OPEN, soft // _SHARE_OF_FILES))


@dataclass
class _Handle:
    """A store that is open or being opened, and how many are using it."""

    opening: "Future[Store]"
    users: int = 0


class LazyParts:
    """Stores by number; each is opened when it is needed, the least recently used is closed.

    Parameters
    ----------
    locators
        Where they are.
    given
        Stores that are open already, by number; they stay open.
    check
        Called with the number and the store whenever one was opened; raises if it is not the
        store that was meant, and says whether it has read so much of it that the store should be
        opened anew (an HDF5 file keeps in memory what was read of its text until it is closed).
    max_open
        Stores that are kept open, beside those given and those in use.
    """

    def __init__(
        self,
        locators: Sequence[StoreLocator],
        given: Mapping[int, Store] | None = None,
        check: Callable[[int, Store], bool] | None = None,
        max_open: int | None = None,
    ) -> None:
        self.locators = tuple(locators)
        self.check = check
        self._given = dict(given or {})
        self._max_open = max_open or open_limit()
        self._handles: OrderedDict[int, _Handle] = OrderedDict()
        self._lock = threading.Lock()
        self._closed = False

    def __len__(self) -> int:
        return len(self.locators)

    def where(self, part: int) -> str:
        """URL of a store without secrets."""
        return self.locators[part].redacted_url

    @property
    def n_open(self) -> int:
        """Stores that were opened here and not closed yet."""
        return len(self._handles)

    @contextmanager
    def lease(self, part: int) -> Iterator[Store]:
        """The store, open until the block ends at least."""
        if part in self._given:
            yield self._given[part]
            return
        handle, is_new = self._take(part)
        try:
            if is_new:
                self._open(part, handle)
            yield handle.opening.result()
        finally:
            self._give_back(handle)

    def _take(self, part: int) -> tuple[_Handle, bool]:
        with self._lock:
            if self._closed:
                raise StoreError(f"{self.where(part)} was closed; open it again with its locator.")
            handle = self._handles.get(part)
            is_new = handle is None
            if handle is None:
                handle = self._handles[part] = _Handle(Future())
            self._handles.move_to_end(part)
            handle.users += 1
            return handle, is_new

    def _open(self, part: int, handle: _Handle) -> None:
        """Open outside the lock: others may open other stores meanwhile, or wait for this one."""
        try:
            store = self.locators[part].open()
            try:
                is_full = self.check is not None and self.check(part, store)
            except BaseException:
                store.close()
                raise
            if is_full:
                store.close()
                store = self.locators[part].open()
        except BaseException as error:
            with self._lock:
                self._handles.pop(part, None)  # the next one may have better luck
            handle.opening.set_exception(error)
        else:
            handle.opening.set_result(store)

    def _give_back(self, handle: _Handle) -> None:
        with self._lock:
            handle.users -= 1
            surplus = len(self._handles) - self._max_open
            idle = [part for part, known in self._handles.items() if known.users == 0]
            limit = len(idle) if self._closed else max(0, surplus)
            dropped = [self._handles.pop(part) for part in idle[:limit]]
        for old in dropped:
            old.opening.result().close()

    def visit(self, look: Callable[[int, Store], _T], keep: bool = True) -> list[_T]:
        """``look(number, store)`` of every store, by several threads; ``keep`` them open."""

        def visit_one(part: int) -> _T:
            if keep or part in self._given:
                with self.lease(part) as store:
                    return look(part, store)
            with self.locators[part].open() as store:
                return look(part, store)

        if len(self) == 1:
            return [visit_one(0)]
        with ThreadPoolExecutor(min(_THREADS, len(self))) as pool:
            futures = [pool.submit(visit_one, part) for part in range(len(self))]
            try:
                return [future.result() for future in futures]
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise

    def close(self) -> None:
        """Close every store, those given too. What is in use is closed when it is given back."""
        with self._lock:
            self._closed = True
            idle = [part for part, known in self._handles.items() if known.users == 0]
            dropped = [self._handles.pop(part) for part in idle]
        for handle in dropped:
            handle.opening.result().close()
        for store in self._given.values():
            store.close()
