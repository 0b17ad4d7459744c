"""Blocks of remote objects on a local disk, the least recently used of them dropped first.

One folder may serve any number of threads and processes. A block is a file of its own, written
under another name and renamed when it is whole, with a checksum in front: what a crash or a bad
disk leaves behind is never handed out. The bytes that all blocks take are kept in one small file
under a lock; a process that dies there leaves it too large, never too small, and the next eviction
counts again.
"""

import contextlib
import os
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import blake2b
from itertools import count
from pathlib import Path

import google_crc32c

try:
    import fcntl
except ImportError:  # Windows: threads of one process are still kept apart.
    fcntl = None  # type: ignore[assignment]

_HEADER = struct.Struct("<4sIQ")
_MAGIC = b"scb1"
_KEEP = 0.9
"""Part of the limit that stays after an eviction, so that not every block causes one."""
_ABANDONED_S = 600.0
_SUFFIX = ".block"


class BlockCache:
    """A folder of blocks that never takes more than ``limit_bytes``.

    Parameters
    ----------
    folder
        On a local disk; made if it is not there. Nothing else may be in it.
    limit_bytes
        Of all blocks together, headers included, whatever number of processes write.
    """

    def __init__(self, folder: str | os.PathLike[str], limit_bytes: int) -> None:
        self._folder = Path(folder).expanduser().absolute()
        self._limit = limit_bytes
        self._threads = threading.Lock()
        self._names = count()
        self._folder.mkdir(parents=True, exist_ok=True)

    def get(self, key: str) -> bytes | None:
        """The block of a key; ``None`` if it is not here, or not what was put."""
        path = self._path(key)
        try:
            raw = path.read_bytes()
        except FileNotFoundError:
            return None
        if len(raw) >= _HEADER.size:
            magic, checksum, size = _HEADER.unpack_from(raw)
            block = raw[_HEADER.size :]
            if (magic, size) == (_MAGIC, len(block)) and google_crc32c.value(block) == checksum:
                with contextlib.suppress(FileNotFoundError):
                    os.utime(path)  # The time of change is the time of the last use.
                return block
        path.unlink(missing_ok=True)
        return None

    def put(self, key: str, block: bytes | memoryview) -> None:
        """Keep a block; one that is larger than the limit is not kept."""
        content = bytes(block)
        header = _HEADER.pack(_MAGIC, google_crc32c.value(content), len(content))
        path = self._path(key)
        if len(header) + len(content) > self._limit or path.exists():
            return
        partial = path.with_name(f"{path.name}.{os.getpid()}-{next(self._names)}")
        try:
            self._reserve(partial, len(header) + len(content))
            with partial.open("r+b") as file:
                file.write(header + content)
            # Under the lock, or whoever counts the files meanwhile would see neither name.
            with self._locked(), contextlib.suppress(FileNotFoundError):
                os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)

    def total_bytes(self) -> int:
        """Bytes of all files of blocks."""
        return sum(size for _, size, _ in self._files())

    def _path(self, key: str) -> Path:
        name = blake2b(key.encode(), digest_size=20).hexdigest()
        return self._folder / name[:2] / f"{name[2:]}{_SUFFIX}"

    def _reserve(self, partial: Path, n_bytes: int) -> None:
        """Make room for a file, and make the file, so that it is counted from now on."""
        with self._locked() as counter:
            raw = os.pread(counter, 32, 0)
            known = int(raw) if raw.isdigit() else None
            if known is None or known + n_bytes > self._limit:
                known = self._evict(self._limit - n_bytes)
            os.pwrite(counter, b"%032d" % (known + n_bytes), 0)
            partial.parent.mkdir(exist_ok=True)
            with partial.open("wb") as file:
                file.truncate(n_bytes)

    def _evict(self, allowed: int) -> int:
        """Drop the blocks that were used longest ago; the bytes that are left."""
        now = time.time()
        files = sorted(self._files())
        total = sum(size for _, size, _ in files)
        # Beyond what is asked for, or the next block would have to count all files again.
        goal = min(allowed, int(self._limit * _KEEP)) if total > allowed else allowed
        for used, size, path in files:
            is_block = path.name.endswith(_SUFFIX)
            if not is_block and now - used < _ABANDONED_S:
                continue  # Being written by another thread or process.
            if total > goal or not is_block:
                path.unlink(missing_ok=True)
                total -= size
        return total

    def _files(self) -> Iterator[tuple[float, int, Path]]:
        for folder in self._folder.iterdir():
            if not folder.is_dir():
                continue
            for path in folder.iterdir():
                with contextlib.suppress(FileNotFoundError):
                    status = path.stat()
                    yield status.st_mtime, status.st_size, path

    @contextmanager
    def _locked(self) -> Iterator[int]:
        """The file of the total, for one thread of one process at a time."""
        handle = os.open(self._folder / "total", os.O_RDWR | os.O_CREAT, 0o644)
        try:
            with self._threads:
                if fcntl is not None:
                    fcntl.flock(handle, fcntl.LOCK_EX)
                yield handle
        finally:
            os.close(handle)  # It gives the lock back.
