"""Remembers how far each metric was recorded, so that a restart does not record it twice.

MLflow appends: a step logged again becomes a second point of the curve. After a restart training
goes on from a checkpoint that lies *before* the last values recorded.
"""

import json
import os
import threading
from pathlib import Path

from scvi_dist.tracking.records import Record, Sink


class LastSteps:
    """Last step of each metric, kept in a small file beside the spool.

    A value is admitted if its step lies beyond what earlier processes recorded. What this process
    itself records is not compared: one metric may well have two values at a step.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._path = Path(path)
        self._lock = threading.Lock()
        self._dirty = False
        self._floor: dict[str, int] | None = None
        if self._path.exists():
            self._floor = json.loads(self._path.read_text())
        self._last: dict[str, int] = dict(self._floor or {})

    def learn(self, sink: Sink) -> None:
        """Ask the sink where no file tells: the earlier process may have had another disk."""
        if self._floor is None:
            known = sink.last_steps()
            with self._lock:
                self._floor = known
                self._last = {**known, **self._last}

    def admit(self, record: Record) -> Record:
        """The record without values that an earlier process recorded; the rest is noted."""
        if record.op != "metrics":
            return record
        with self._lock:
            floor = self._floor or {}
            points = [p for p in record.points if p[3] > floor.get(p[0], -1)]
            for key, _, _, step in points:
                self._last[key] = max(step, self._last.get(key, step))
            self._dirty |= bool(points)
        return Record("metrics", {"points": points})

    def save(self) -> None:
        """Write what was noted; replaces the file in one step."""
        with self._lock:
            if not self._dirty:
                return
            text, self._dirty = json.dumps(self._last), False
        self._path.parent.mkdir(parents=True, exist_ok=True)
        part = self._path.with_suffix(".part")
        part.write_text(text)
        part.replace(self._path)
