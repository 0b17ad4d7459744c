"""Rows that an epoch draws with weights, some not at all and some several times.

Each row belongs to a group, each group has a quota of cells for an epoch, and within a group rows
are drawn in proportion to their weight. The weights of a group, laid end to end along the store,
are a line of which each draw takes an equal step; where the first step begins is drawn for each
epoch (systematic sampling). So quotas are met exactly, a row's expectation is its share exactly,
and no row is drawn once more or once less than that share says. Within every stretch of 16 rows
the order of the line is that of a keyed hash of the epoch: other epochs draw other rows together.

Source: Madow, "On the theory of systematic sampling, II", Annals of Mathematical Statistics 1949.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import blake2b

import numpy as np

from scvi_dist.data.hashing import splitmix64
from scvi_dist.dataloaders.rows import RowSet, spans
from scvi_dist.errors import PlanError

STRATUM = 16
"""Rows within which the order of drawing is random."""

WEIGHT_STEPS = 1 << 20
"""Weights are whole multiples of the largest of their group divided by this."""

_TAG = 0x5A3B
_MARK_BYTES = 16 << 20
_PIECE_CELLS = 1 << 22


@dataclass(frozen=True, eq=False)
class SampledRows:
    """The rows that may be drawn, and what is drawn of them; see :meth:`of_epoch`.

    Asked as a set of rows, without an epoch, it is the rows that may be drawn; ``n`` is the number
    of cells of an epoch.
    """

    base: RowSet
    groups: np.ndarray
    """int ``[n_store]``: group of each row; -1 for rows that are never drawn."""
    quotas: np.ndarray
    """int64 ``[n_groups]``: cells that an epoch draws of each group."""
    weights: np.ndarray | None = None
    """int32 ``[n_store]``, 0 … ``WEIGHT_STEPS``; ``None``: all alike."""
    seed: int = 0
    totals: np.ndarray = field(init=False, repr=False)
    """int64 ``[n_groups]``: weight of all rows of each group."""

    def __post_init__(self) -> None:
        if len(self.groups) != self.base.n_store:
            raise PlanError(
                f"every row of the store needs a group: {self.base.n_store} rows, "
                f"{len(self.groups)} groups."
            )
        totals = np.zeros(len(self.quotas), np.int64)
        for rows in self._pieces():
            chosen = rows[self.groups[rows] >= 0]
            np.add.at(totals, self.groups[chosen], self.weight_of(chosen))
        object.__setattr__(self, "totals", totals)
        empty = np.flatnonzero((totals == 0) & (self.quotas > 0))
        if len(empty):
            raise PlanError(
                f"{self.quotas[empty[0]]} cells are to be drawn of group {empty[0]}, which has no "
                "training cell with a weight above 0."
            )

    @property
    def n(self) -> int:
        return int(self.quotas.sum())

    @property
    def n_store(self) -> int:
        return self.base.n_store

    @property
    def stratum(self) -> int:
        return STRATUM

    def count_before(self, boundaries: np.ndarray) -> np.ndarray:
        return self.base.count_before(boundaries)

    def members_of(self, starts: np.ndarray, stops: np.ndarray) -> np.ndarray:
        return self.base.members_of(starts, stops)

    def of_epoch(self, epoch: int) -> "EpochRows":
        """What an epoch draws: a multiset, in which a row may occur any number of times."""
        return EpochRows(self, epoch)

    def digest(self) -> str:
        return self._digest

    @cached_property
    def _digest(self) -> str:
        state = blake2b(f"sampled;{self.base.digest()};{self.seed};".encode(), digest_size=16)
        state.update(self.groups.astype("<i4").tobytes())
        state.update(self.quotas.astype("<i8").tobytes())
        if self.weights is not None:
            state.update(self.weights.astype("<i4").tobytes())
        return state.hexdigest()

    def describe(self) -> str:
        drawn = int((self.quotas > 0).sum())
        return f"{self.n:,} cells drawn in {drawn:,} groups from {self.base.describe()}"

    def weight_of(self, rows: np.ndarray) -> np.ndarray:
        """int64: weight of each row."""
        if self.weights is None:
            return np.ones(len(rows), np.int64)
        return self.weights[rows].astype(np.int64)

    def _pieces(self) -> Iterator[np.ndarray]:
        for start in range(0, self.n_store, _PIECE_CELLS):
            stop = min(start + _PIECE_CELLS, self.n_store)
            yield self.base.members_of(np.array([start]), np.array([stop]))

    @cached_property
    def mark_rows(self) -> int:
        """Rows between two places where the weight of all rows before is known by group."""
        wanted = 64 * STRATUM
        limit = max(_MARK_BYTES, 2 * self.n_store)
        fewest = -(-8 * len(self.quotas) * self.n_store // limit)
        return max(wanted, -(-fewest // STRATUM) * STRATUM)

    @cached_property
    def marks(self) -> np.ndarray:
        """int64 ``[n_marks + 1, n_groups]``: weight of each group before each mark."""
        n_marks = -(-self.n_store // self.mark_rows)
        marks = np.zeros((n_marks + 1, len(self.quotas)), np.int64)
        for rows in self._pieces():
            chosen = rows[self.groups[rows] >= 0]
            place = (chosen // self.mark_rows + 1, self.groups[chosen])
            np.add.at(marks, place, self.weight_of(chosen))
        return np.cumsum(marks, axis=0)


class EpochRows:
    """What one epoch draws: ascending rows, each as often as it is drawn."""

    def __init__(self, rows: SampledRows, epoch: int) -> None:
        self._rows = rows
        state = np.random.SeedSequence([rows.seed, epoch, _TAG])
        self._starts = np.random.Generator(np.random.PCG64(state)).random(len(rows.quotas))
        self._key = state.generate_state(2, np.uint64)[1]
        self._before = np.concatenate([[0], np.cumsum(self._counts_of_strata())])

    @property
    def n(self) -> int:
        return self._rows.n

    @property
    def n_store(self) -> int:
        return self._rows.n_store

    @property
    def stratum(self) -> int:
        return STRATUM

    def count_before(self, boundaries: np.ndarray) -> np.ndarray:
        return self._before[-(-np.asarray(boundaries, np.int64) // STRATUM)]

    def members_of(self, starts: np.ndarray, stops: np.ndarray) -> np.ndarray:
        starts, stops = np.asarray(starts, np.int64), np.asarray(stops, np.int64)
        size = self._rows.mark_rows
        last = np.where(stops > starts, -(-stops // size), starts // size)
        marks = np.unique(spans(starts // size, last))
        rows, times = self._drawn(marks)
        low = np.searchsorted(rows, starts)
        high = np.searchsorted(rows, np.maximum(starts, stops))
        picks = spans(low, high)
        return np.repeat(rows[picks], times[picks])

    def digest(self) -> str:
        return self._rows.digest()

    def describe(self) -> str:
        return self._rows.describe()

    def _steps(self, weight_before: np.ndarray, groups: np.ndarray) -> np.ndarray:
        """int64: steps of a group's line that begin before a weight; never falls with it."""
        rows = self._rows
        part = weight_before / np.maximum(rows.totals[groups], 1)
        # Exactly the quota at the end, where the part is 1: a start is less than 1.
        return np.floor(part * rows.quotas[groups] + self._starts[groups]).astype(np.int64)

    def _drawn(self, marks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Rows between these marks and the next, ascending, and how often each is drawn."""
        rows, size = self._rows, self._rows.mark_rows
        found = rows.base.members_of(marks * size, np.minimum((marks + 1) * size, rows.n_store))
        found = found[rows.groups[found] >= 0]
        groups = rows.groups[found].astype(np.int64)
        draw = splitmix64(found.astype(np.uint64) ^ self._key)
        order = np.lexsort((draw, found // STRATUM, groups, found // size))
        groups, mark = groups[order], found[order] // size
        weights = rows.weight_of(found[order])
        ends = np.cumsum(weights)
        is_first = np.ones(len(order), bool)
        is_first[1:] = (groups[1:] != groups[:-1]) | (mark[1:] != mark[:-1])
        firsts = np.flatnonzero(is_first)
        lengths = np.diff(np.append(firsts, len(order)))
        offset = rows.marks[mark[firsts], groups[firsts]] - (ends - weights)[firsts]
        after = ends + np.repeat(offset, lengths)
        times = np.empty(len(order), np.int64)
        times[order] = self._steps(after, groups) - self._steps(after - weights, groups)
        return found, times

    def _counts_of_strata(self) -> np.ndarray:
        """int64: cells drawn in each stratum."""
        rows, n_groups = self._rows, len(self._rows.quotas)
        n_strata = -(-rows.n_store // STRATUM)
        counts = np.zeros(n_strata, np.int64)
        weight = np.zeros(n_groups, np.int64)
        every = np.arange(n_groups)
        stride = max(1, _PIECE_CELLS // n_groups)
        for first in range(0, n_strata, stride):
            last = min(first + stride, n_strata)
            found = rows.base.members_of(
                np.array([first * STRATUM]), np.array([min(last * STRATUM, rows.n_store)])
            )
            found = found[rows.groups[found] >= 0]
            place = (found // STRATUM - first) * n_groups + rows.groups[found]
            # Sums of whole numbers below 2^53 are exact as floats.
            added = np.bincount(place, rows.weight_of(found), (last - first) * n_groups)
            table = np.vstack([weight, added.reshape(-1, n_groups).astype(np.int64)])
            before = np.cumsum(table, axis=0)
            steps = self._steps(before, np.broadcast_to(every, before.shape))
            counts[first:last] = np.diff(steps, axis=0).sum(axis=1)
            weight = before[-1]
        return counts
