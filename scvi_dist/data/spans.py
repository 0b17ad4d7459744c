"""Ranges of rows or of entries: checked, put in ascending order, and joined into few long reads.

A *span* is a half-open range; many of them are an int64 array ``[m, 2]`` of starts and stops.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence

import numpy as np

Range = tuple[int, int]

MAX_RUN_BYTES = 16 << 20
"""A read longer than this is cut in pieces: the buffer beside the result stays small."""


def spans_of(ranges: Sequence[Range] | np.ndarray, n_rows: int, where: str) -> np.ndarray:
    """The ranges as int64 ``[m, 2]``, empty ones left out.

    Raises ``IndexError`` for rows that do not exist and ``TypeError`` for what is no integer.
    """
    spans = np.asarray(ranges)
    if spans.size == 0:
        return np.zeros((0, 2), dtype=np.int64)
    if spans.ndim != 2 or spans.shape[1] != 2 or spans.dtype.kind not in "iu":
        raise TypeError(f"{where}: expected ranges as pairs of integers, got {ranges!r:.80}")
    spans = spans.astype(np.int64, copy=False)
    bad = (spans[:, 0] < 0) | (spans[:, 1] > n_rows) | (spans[:, 0] > spans[:, 1])
    if bad.any():
        start, stop = spans[int(np.argmax(bad))]
        raise IndexError(
            f"{where}: rows {start} to {stop} (exclusive) were asked for; the rows are "
            f"0 to {n_rows} (exclusive)"
        )
    return spans[spans[:, 0] < spans[:, 1]]


def span(start: int, stop: int) -> np.ndarray:
    """One range as spans; none if it is empty."""
    return np.array([[start, stop]] if start < stop else np.zeros((0, 2)), dtype=np.int64)


def check_rows(rows: np.ndarray | Sequence[int], n_rows: int, where: str) -> np.ndarray:
    """Rows as int64; ``IndexError`` for rows that do not exist."""
    wanted = np.asarray(rows)
    if wanted.size == 0:
        return np.zeros(0, dtype=np.int64)
    if wanted.ndim != 1 or wanted.dtype.kind not in "iu":
        raise TypeError(f"{where}: expected rows as integers, got {rows!r:.80}")
    wanted = wanted.astype(np.int64, copy=False)
    low, high = int(wanted.min()), int(wanted.max())
    if low < 0 or high >= n_rows:
        seen = low if low < 0 else high
        raise IndexError(f"{where}: row {seen} was asked for; the rows are 0 to {n_rows - 1}")
    return wanted


def expand(spans: np.ndarray) -> np.ndarray:
    """Every member of every span, one span after the other."""
    lengths = spans[:, 1] - spans[:, 0]
    ends = np.cumsum(lengths)
    total = int(ends[-1]) if len(ends) else 0
    return np.repeat(spans[:, 0] - ends + lengths, lengths) + np.arange(total, dtype=np.int64)


def total_length(spans: np.ndarray) -> int:
    """Members of all spans together."""
    return int((spans[:, 1] - spans[:, 0]).sum())


def in_order(spans: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
    """Ascending spans without overlap, and where each wanted row is among their rows.

    The second value is ``None`` when the spans were ascending already.
    """
    if len(spans) < 2 or bool((spans[1:, 0] >= spans[:-1, 1]).all()):
        return spans, None
    rows, back = np.unique(expand(spans), return_inverse=True)
    return spans_of_rows(rows), back


def spans_of_rows(rows: np.ndarray) -> np.ndarray:
    """The fewest spans that are these rows, in their order (ascending for ascending rows)."""
    if len(rows) == 0:
        return np.zeros((0, 2), dtype=np.int64)
    cuts = np.flatnonzero(np.diff(rows) != 1) + 1
    starts = rows[np.concatenate([[0], cuts])]
    stops = rows[np.concatenate([cuts - 1, [len(rows) - 1]])] + 1
    return np.stack([starts, stops], axis=1).astype(np.int64, copy=False)


def groups_of(spans: np.ndarray, limit: int) -> Iterator[np.ndarray]:
    """The spans in groups of at most ``limit`` members; a longer span is cut."""
    lengths = spans[:, 1] - spans[:, 0]
    ends = np.cumsum(lengths)
    total = int(ends[-1]) if len(ends) else 0
    for low in range(0, total, limit):
        high = min(low + limit, total)
        first = int(np.searchsorted(ends, low, side="right"))
        last = int(np.searchsorted(ends, high, side="left"))
        group = spans[first : last + 1].copy()
        group[0, 0] += low - (ends[first] - lengths[first])
        group[-1, 1] -= ends[last] - high
        yield group


def runs_of(
    spans: np.ndarray, *, chunk: int | None, max_gap: int, decodes: bool, max_length: int
) -> Iterator[tuple[int, int, int, int]]:
    """Ascending spans joined into reads ``(start, stop, first span, last span + 1)``.

    Spans are joined over a gap of at most ``max_gap`` members; if storage has to decode whole
    chunks anyway, whenever they share a chunk or lie in neighbouring ones. A chunk that holds
    no wanted member is never part of a read. Reads of several spans stay within ``max_length``.

    Parameters
    ----------
    chunk
        Members that storage keeps together; ``None`` if it is one piece.
    decodes
        Whether a chunk is compressed.
    """
    near = spans[1:, 0] - spans[:-1, 1] <= max_gap
    if chunk is not None:
        touching = spans[1:, 0] // chunk - (spans[:-1, 1] - 1) // chunk <= 1
        near = touching if decodes else touching & near
    joins = near.tolist()
    bounds = spans.tolist()
    first = 0
    for i in range(1, len(bounds) + 1):
        ends_here = i == len(bounds) or not joins[i - 1]
        if ends_here or bounds[i][1] - bounds[first][0] > max_length:
            yield bounds[first][0], bounds[i - 1][1], first, i
            first = i


def read_joined(
    read: Callable[[int, int], np.ndarray],
    spans: np.ndarray,
    out: np.ndarray,
    *,
    chunk: int | None,
    max_gap: int,
    decodes: bool,
) -> None:
    """Fill ``out`` with the members of ascending spans, by few calls of ``read(start, stop)``."""
    row_bytes = max(1, out.nbytes // max(1, len(out)))
    max_length = max(1, MAX_RUN_BYTES // row_bytes)
    if chunk is not None:
        # Pieces end where chunks end, so that none is decoded twice.
        max_length = max(chunk, max_length // chunk * chunk)
    pieces = _cut(spans, max_length)
    bounds = pieces.tolist()
    done = 0
    for start, stop, first, last in runs_of(
        pieces, chunk=chunk, max_gap=max_gap, decodes=decodes, max_length=max_length
    ):
        values = read(start, stop)
        for low, high in bounds[first:last]:
            out[done : done + high - low] = values[low - start : high - start]
            done += high - low


def _cut(spans: np.ndarray, length: int) -> np.ndarray:
    """The same members in spans that are at most ``length`` long and end at its multiples."""
    if len(spans) == 0 or int((spans[:, 1] - spans[:, 0]).max()) <= length:
        return spans
    pieces: list[Range] = []
    for start, stop in spans.tolist():
        edges = [start, *range((start // length + 1) * length, stop, length), stop]
        pieces.extend(itertools.pairwise(edges))
    return np.array(pieces, dtype=np.int64)
