"""One thing to be recorded, as it travels from the caller through queue and spool to MLflow."""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

Point = tuple[str, float, int, int]
"""Metric key, value, time stamp in ms, step."""

MAX_POINTS_PER_BATCH = 1_000
"""More is refused by MLflow."""


@dataclass(frozen=True, slots=True)
class Record:
    """An operation and its JSON-able arguments. Recording one twice must do no harm."""

    op: str
    body: dict[str, Any]

    @property
    def points(self) -> list[Point]:
        return self.body["points"] if self.op == "metrics" else []

    def to_line(self) -> str:
        return json.dumps({"op": self.op, "body": self.body}, separators=(",", ":"))

    @staticmethod
    def from_line(line: str) -> "Record":
        loaded = json.loads(line)
        return Record(loaded["op"], loaded["body"])


class Unreachable(Exception):
    """Nobody answers (now): keep the record and try again later."""


class Refused(Exception):
    """The answer is no, and will be no again: trying again is of no use."""


class Sink(Protocol):
    """Where records end up."""

    def deliver(self, record: Record) -> Any:
        """Record it; what the caller waits for, if anything. Raises Unreachable or Refused."""

    def last_steps(self) -> dict[str, int]:
        """Last step of each metric that the run already has. Raises Unreachable."""


def merged(records: Iterable[Record]) -> Iterator[list[Record]]:
    """Groups of neighbouring records that are one call to the server, in order.

    Metrics join up to what one call may carry; anything else stands alone.
    """
    group: list[Record] = []
    n_points = 0
    for record in records:
        joins = record.op == "metrics" and n_points + len(record.points) <= MAX_POINTS_PER_BATCH
        if group and not (joins and group[-1].op == "metrics"):
            yield group
            group, n_points = [], 0
        group.append(record)
        n_points += len(record.points)
    if group:
        yield group


def joined(group: list[Record]) -> Record:
    """The one record that says what all of a group from :func:`merged` say."""
    if len(group) == 1:
        return group[0]
    return Record("metrics", {"points": [point for record in group for point in record.points]})
