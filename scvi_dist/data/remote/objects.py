"""Objects behind a URL: many requests at a time, each tried again while the service is busy."""

import asyncio
import gc
import io
import threading
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

from scvi_dist.data.filesystem import FileFacts, facts_of_info, reading_filesystem
from scvi_dist.data.on_disk.chunks import (
    REMOTE_BATCH_BYTES,
    REMOTE_GAP_BYTES,
    Piece,
    fetch_joined,
)
from scvi_dist.data.remote.remote_config import split_options
from scvi_dist.data.remote.retries import Attempts, ShortAnswer, persist

_FILE_BLOCK_BYTES = 1 << 20
_FILE_BLOCKS = 64
_T = TypeVar("_T")


class RemoteObjects:
    """Objects below a URL (or the one object, if all keys are empty), through fsspec.

    Throttled, reset, timed out and shortened answers are asked for again with growing waits, as
    :class:`RemoteConfig` says. What is not there is known at once.
    """

    batch_bytes = REMOTE_BATCH_BYTES

    def __init__(self, url: str, storage_options: Mapping[str, Any] | None = None) -> None:
        self.config, _ = split_options(storage_options)
        self._fs, root = reading_filesystem(url, storage_options)
        self._root = root.rstrip("/")
        # s3fs asks for the size before it reads a whole object, but not before it reads a range.
        self._first = 0 if "s3" in self._fs.protocol else None

    def fetch(self, pieces: Sequence[Piece]) -> list[memoryview | None]:
        """The bytes of each piece; ``None`` where there is no such object.

        Raises
        ------
        ConnectionError
            All attempts failed; the message has their number.
        """
        return fetch_joined(pieces, self._read, REMOTE_GAP_BYTES)

    def facts(self, keys: Sequence[str]) -> list[FileFacts | None]:
        """Size and version of objects; ``None`` for those that are not there."""
        return self._each(keys, self._info, self._info_plainly)

    def names(self, key: str) -> list[str]:
        """What lies directly below a key, without the folders above it."""
        found = self._each(
            [key],
            lambda key: self._fs._ls(self._path(key), detail=False),
            lambda key: self._fs.ls(self._path(key), detail=False),
        )[0]
        below = self._path(key).rstrip("/")
        members = [str(path).rstrip("/") for path in found or []]
        return [path.rpartition("/")[2] for path in members if path != below]

    def keys(self, key: str) -> list[str]:
        """All objects below a key, as keys of their own."""
        found = self._each(
            [key],
            lambda key: self._fs._find(self._path(key)),
            lambda key: self._fs.find(self._path(key)),
        )[0]
        return [str(path).removeprefix(f"{self._root}/") for path in found or []]

    def _path(self, key: str) -> str:
        return f"{self._root}/{key}" if key else self._root

    def _read(self, pieces: Sequence[Piece]) -> list[bytes | None]:
        return self._each(pieces, self._cat, lambda piece: self._fs.cat_file(*self._range(piece)))

    def _range(self, piece: Piece) -> tuple[str, int | None, int | None]:
        start = self._first if piece.start is None and piece.stop is None else piece.start
        return self._path(piece.key), start, piece.stop

    async def _cat(self, piece: Piece) -> bytes:
        path, start, stop = self._range(piece)
        try:
            content = await self._fs._cat_file(path, start=start, end=stop)
        except OSError as error:
            if "not satisfiable" in str(error):
                return b""  # The range lies behind the end, or the object is empty.
            raise
        if piece.is_bounded and len(content) < (stop or 0) - (start or 0):
            size = int((await self._fs._info(path)).get("size") or 0)
            if len(content) < min(stop or 0, size) - (start or 0):
                raise ShortAnswer(
                    f"{len(content)} bytes came of {min(stop or 0, size) - (start or 0)}"
                )
        return content

    def _info_plainly(self, key: str) -> FileFacts:
        return facts_of_info(self._fs.info(self._path(key)))

    async def _info(self, key: str) -> FileFacts:
        return facts_of_info(await self._fs._info(self._path(key)))

    def _each(
        self,
        wanted: Sequence[Any],
        ask: Callable[[Any], Awaitable[_T]],
        ask_plainly: Callable[[Any], Any],
    ) -> list[_T | None]:
        """The answer for each thing that is wanted, ``None`` where it is not there.

        Parameters
        ----------
        ask, ask_plainly
            How to ask a file system with coroutines, and one without.
        """
        if self._fs.async_impl:
            from fsspec.asyn import sync

            return sync(self._fs.loop, self._gather, wanted, ask)
        return [self._ask_plainly(ask_plainly, thing) for thing in wanted]

    def _ask_plainly(self, ask: Callable[[Any], _T], thing: Any) -> _T | None:
        try:
            return persist(lambda: ask(thing), self.config)
        except FileNotFoundError:
            return None

    async def _gather(
        self, wanted: Sequence[Any], ask: Callable[[Any], Awaitable[_T]]
    ) -> list[_T | None]:
        limit = asyncio.Semaphore(self.config.concurrency)

        async def one(thing: Any) -> _T | None:
            async with limit:
                return await self._persist(lambda: ask(thing))

        tasks = [asyncio.ensure_future(one(thing)) for thing in wanted]
        try:
            return list(await asyncio.gather(*tasks))
        finally:
            # After a failure the other requests have nobody to answer to.
            for task in tasks:
                task.cancel()

    async def _persist(self, ask: Callable[[], Awaitable[_T]]) -> _T | None:
        tries = Attempts(self.config)
        while True:
            try:
                return await asyncio.wait_for(_run(ask), self.config.timeout_s)
            except FileNotFoundError:
                return None
            except Exception as error:  # judged by Attempts, which raises what is final
                await asyncio.sleep(tries.wait_after(error))


async def _run(ask: Callable[[], Awaitable[_T]]) -> _T:
    return await ask()


class _Pauses:
    """How many waits there are at the moment during which no garbage may be collected."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._n = 0
        self._was_on = False

    def begin(self) -> None:
        with self._lock:
            if self._n == 0:
                self._was_on = gc.isenabled()
                gc.disable()
            self._n += 1

    def end(self) -> None:
        with self._lock:
            self._n -= 1
            if self._n == 0 and self._was_on:
                gc.enable()


_PAUSES = _Pauses()


@contextmanager
def no_garbage_collection() -> Iterator[None]:
    """Collect no garbage meanwhile, in no thread.

    While HDF5 reads through a file of ours its one lock is taken, and what it waits for comes from
    the thread of the network. Should that thread be the one in which Python collects garbage, and
    there be an old object of h5py in it, it would wait for the lock: for ever.
    """
    _PAUSES.begin()
    try:
        yield
    finally:
        _PAUSES.end()


class RemoteFile(io.RawIOBase):
    """One object as a file for libraries that want one; keeps the blocks it read last.

    ``failure`` is what a read ended with: HDF5 reports no more than that one failed.
    """

    def __init__(self, objects: Any, size: int) -> None:
        super().__init__()
        self.failure: Exception | None = None
        self._objects, self._size = objects, size
        self._at = 0
        self._blocks: OrderedDict[int, memoryview] = OrderedDict()
        self._lock = threading.Lock()

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        self._at = max(0, base + offset)
        return self._at

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        start, stop = self._at, min(self._at + len(view), self._size)
        if stop <= start:
            return 0
        try:
            with self._lock:
                self._copy(start, stop, view)
        except Exception as error:
            self.failure = error
            raise
        self._at = stop
        return stop - start

    def _copy(self, start: int, stop: int, view: memoryview) -> None:
        first, last = start // _FILE_BLOCK_BYTES, (stop - 1) // _FILE_BLOCK_BYTES
        self._load([n for n in range(first, last + 1) if n not in self._blocks])
        for number in range(first, last + 1):
            base = number * _FILE_BLOCK_BYTES
            low, high = max(start, base), min(stop, base + _FILE_BLOCK_BYTES)
            view[low - start : high - start] = self._blocks[number][low - base : high - base]
            self._blocks.move_to_end(number)
        while len(self._blocks) > _FILE_BLOCKS:
            self._blocks.popitem(last=False)

    def _load(self, numbers: list[int]) -> None:
        pieces = [
            Piece("", n * _FILE_BLOCK_BYTES, min((n + 1) * _FILE_BLOCK_BYTES, self._size))
            for n in numbers
        ]
        with no_garbage_collection():
            fetched = self._objects.fetch(pieces)
        for number, block in zip(numbers, fetched, strict=True):
            if block is None:
                raise FileNotFoundError("the object is no longer there")
            self._blocks[number] = block
