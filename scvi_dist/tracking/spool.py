"""Keeps on disk what could not be delivered, until somebody delivers it.

One file of JSON lines per process. Its owner holds a file lock, which the system gives back when
the owner dies: a file that can be locked is nobody's and may be adopted.
"""

import fcntl
import logging
import os
import uuid
from collections.abc import Callable, Iterable
from pathlib import Path
from threading import RLock
from typing import BinaryIO

from scvi_dist.tracking.records import Record, joined, merged

logger = logging.getLogger(__name__)


class Spool:
    """The spool files of ``folder`` that this process is responsible for."""

    def __init__(self, folder: str | os.PathLike[str], role: str) -> None:
        self._folder = Path(folder)
        self._role = role
        self._lock = RLock()
        self._files: list[tuple[Path, BinaryIO]] = []
        self._own: tuple[Path, BinaryIO] | None = None

    @property
    def pending(self) -> bool:
        """Whether something waits to be delivered."""
        with self._lock:
            return bool(self._files)

    def adopt(self) -> None:
        """Take over the files that dead processes left in the folder."""
        with self._lock:
            held = {path for path, _ in self._files}
            for path in sorted(self._folder.glob("undelivered-*.jsonl")):
                if path not in held and (handle := _lock_file(path)) is not None:
                    self._files.append((path, handle))

    def append(self, records: Iterable[Record]) -> None:
        """Keep records; they are on disk, safe from a killed process, on return."""
        lines = "".join(record.to_line() + "\n" for record in records)
        if not lines:
            return
        with self._lock:
            if self._own is None:
                self._own = self._create()
                self._files.append(self._own)
            handle = self._own[1]
            handle.seek(0, os.SEEK_END)
            handle.write(lines.encode())
            handle.flush()

    def drain(self, deliver: Callable[[Record], object]) -> None:
        """Deliver everything, oldest file first. What ``deliver`` raises ends it, nothing lost."""
        while True:
            with self._lock:
                if not self._files:
                    return
                path, handle = self._files[0]
            self._drain_file(path, handle, deliver)
            with self._lock:
                # The owner may have appended while the last group travelled.
                if _read_from(handle, _progress(path)):
                    continue
                self._files.pop(0)
                if self._own is not None and self._own[0] == path:
                    self._own = None
                path.unlink(missing_ok=True)
                _progress_path(path).unlink(missing_ok=True)
                handle.close()

    def close(self) -> None:
        """Give the locks back; the files stay for whoever comes next."""
        with self._lock:
            for _, handle in self._files:
                handle.close()
            self._files, self._own = [], None

    def _create(self) -> tuple[Path, BinaryIO]:
        self._folder.mkdir(parents=True, exist_ok=True)
        path = self._folder / f"undelivered-{self._role}-{os.getpid()}-{uuid.uuid4().hex[:6]}.jsonl"
        path.touch()
        handle = _lock_file(path)
        assert handle is not None, "a file of a fresh name was locked by somebody else"
        return path, handle

    def _drain_file(
        self, path: Path, handle: BinaryIO, deliver: Callable[[Record], object]
    ) -> None:
        with self._lock:
            start = _progress(path)
            lines = _read_from(handle, start)
        sizes = iter([len(line) for line in lines])
        for group in merged(_parse(line, path) for line in lines):
            deliver(joined(group))
            start += sum(next(sizes) for _ in group)
            # Written after each delivery, so that a kill repeats one group at most.
            _progress_path(path).write_text(str(start))


def _lock_file(path: Path) -> BinaryIO | None:
    handle = path.open("r+b")
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        handle.close()
        return None
    return handle


def _progress_path(path: Path) -> Path:
    return path.with_suffix(".delivered")


def _progress(path: Path) -> int:
    """Bytes of the file that are delivered."""
    try:
        return int(_progress_path(path).read_text() or 0)
    except FileNotFoundError:
        return 0


def _read_from(handle: BinaryIO, start: int) -> list[bytes]:
    handle.seek(start)
    return handle.readlines()


def _parse(line: bytes, path: Path) -> Record:
    try:
        return Record.from_line(line.decode())
    except (ValueError, KeyError, TypeError):
        # A process killed in mid-write leaves a torn last line.
        logger.warning("skipped an unreadable line of %s", path)
        return Record("nothing", {})
