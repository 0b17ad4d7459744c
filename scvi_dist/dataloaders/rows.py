"""Sets of store rows: all of them, a range, a sorted list, or a keyed hash in constant memory."""

from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Protocol, runtime_checkable

import numpy as np

from scvi_dist.data.hashing import splitmix64
from scvi_dist.errors import PlanError

STRATUM = 16
"""Consecutive rows among which a hashed split is drawn; counts are closed form between strata."""

MAX_STORE_ROWS = 1 << 39
"""Up to here products of two row counts can be divided exactly in 64-bit halves."""

PARTS = ("train", "validation", "test")


class RowSet(Protocol):
    """Rows of a store that belong to something, for instance to the training set.

    Immutable, picklable, and cheap to ask about any stretch of the store.
    """

    @property
    def n(self) -> int:
        """Members."""

    @property
    def n_store(self) -> int:
        """Rows of the store."""

    @property
    def stratum(self) -> int:
        """``count_before`` is closed form at multiples of this."""

    def count_before(self, boundaries: np.ndarray) -> np.ndarray:
        """int64: members among the rows ``0 … boundary - 1``, for each boundary.

        Boundaries are multiples of ``stratum`` or ``n_store``.
        """

    def members_of(self, starts: np.ndarray, stops: np.ndarray) -> np.ndarray:
        """int64: members of each stretch ``start … stop - 1``, ascending, one after the other."""

    def digest(self) -> str:
        """32 hex digits, equal for equal sets of one kind."""

    def describe(self) -> str:
        """The set in a few words."""


@runtime_checkable
class RowsByEpoch(Protocol):
    """Rows of which every epoch takes others, or some more than once, but always as many."""

    def of_epoch(self, epoch: int) -> RowSet:
        """The rows of an epoch; a row may occur more than once."""


def rows_of_epoch(rows: RowSet, epoch: int) -> RowSet:
    """What an epoch takes of a set: all of it, unless the set says otherwise."""
    return rows.of_epoch(epoch) if isinstance(rows, RowsByEpoch) else rows


def members(rows: RowSet, start: int, stop: int) -> np.ndarray:
    """int64: members among the rows ``start … stop - 1``, ascending."""
    return rows.members_of(np.array([start], np.int64), np.array([stop], np.int64))


def all_members(rows: RowSet) -> np.ndarray:
    """int64: every member, ascending; 8 bytes a cell, so not for atlases."""
    return members(rows, 0, rows.n_store)


@dataclass(frozen=True)
class RangeRows:
    """The rows ``start … stop - 1`` of a store."""

    start: int
    stop: int
    n_store: int

    def __post_init__(self) -> None:
        if not 0 <= self.start <= self.stop <= self.n_store:
            raise PlanError(
                f"rows {self.start} … {self.stop} do not lie in a store of {self.n_store} rows."
            )

    @property
    def n(self) -> int:
        return self.stop - self.start

    @property
    def stratum(self) -> int:
        return 1

    def count_before(self, boundaries: np.ndarray) -> np.ndarray:
        return np.clip(boundaries, self.start, self.stop) - self.start

    def members_of(self, starts: np.ndarray, stops: np.ndarray) -> np.ndarray:
        return spans(np.clip(starts, self.start, self.stop), np.clip(stops, self.start, self.stop))

    def digest(self) -> str:
        return _digest("range", self.start, self.stop, self.n_store)

    def describe(self) -> str:
        if self.n == self.n_store:
            return f"all {self.n:,} rows"
        return f"rows {self.start:,} … {self.stop - 1:,} of {self.n_store:,}"


def AllRows(n: int) -> RangeRows:
    """Every row of a store of ``n`` rows."""
    return RangeRows(0, n, n)


@dataclass(frozen=True, eq=False)
class ArrayRows:
    """The rows that an array lists."""

    rows: np.ndarray
    """int64 ``[n]``, strictly increasing; 8 bytes a member."""
    n_store: int

    def __post_init__(self) -> None:
        rows = np.ascontiguousarray(self.rows, dtype=np.int64)
        if rows.ndim != 1 or (len(rows) > 1 and (np.diff(rows) <= 0).any()):
            raise PlanError("rows of a set must be a strictly increasing one-dimensional array.")
        if len(rows) and (rows[0] < 0 or rows[-1] >= self.n_store):
            raise PlanError(
                f"expected rows in 0 … {self.n_store - 1}, seen {rows[0]} … {rows[-1]}."
            )
        object.__setattr__(self, "rows", rows)

    @property
    def n(self) -> int:
        return len(self.rows)

    @property
    def stratum(self) -> int:
        return 1

    def count_before(self, boundaries: np.ndarray) -> np.ndarray:
        return np.searchsorted(self.rows, boundaries).astype(np.int64)

    def members_of(self, starts: np.ndarray, stops: np.ndarray) -> np.ndarray:
        return self.rows[spans(self.count_before(starts), self.count_before(stops))]

    def digest(self) -> str:
        return _digest("array", self.n_store, self.rows.tobytes())

    def describe(self) -> str:
        return f"{self.n:,} listed rows of {self.n_store:,}"


@dataclass(frozen=True)
class HashedRows:
    """One part of a random split that needs no memory, however many rows there are.

    In every stratum of 16 rows a keyed hash ranks the rows; the first few are validation, the
    next are training, the rest are test. How many of each follows from running totals rounded
    down, so the sizes of the parts are exact over the whole store and even along it.
    """

    n_store: int
    seed: int
    part: str
    """``train``, ``validation`` or ``test``."""
    n_validation: int
    n_train: int
    key: int = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if self.part not in PARTS:
            raise PlanError(f"part {self.part!r} is not one of {', '.join(PARTS)}.")
        if not 0 < self.n_store < MAX_STORE_ROWS:
            raise PlanError(f"a hashed split needs 1 … 2^39 rows, not {self.n_store}.")
        n_train, n_validation = self.n_train, self.n_validation
        if min(n_train, n_validation) < 0 or n_train + n_validation > self.n_store:
            raise PlanError(
                f"{n_train} training and {n_validation} validation rows do not fit in "
                f"{self.n_store} rows."
            )
        key = np.random.SeedSequence([self.seed, 0x5B117]).generate_state(1, np.uint64)[0]
        object.__setattr__(self, "key", int(key))

    @property
    def n_test(self) -> int:
        return self.n_store - self.n_validation - self.n_train

    @property
    def n(self) -> int:
        return {"train": self.n_train, "validation": self.n_validation, "test": self.n_test}[
            self.part
        ]

    @property
    def stratum(self) -> int:
        return STRATUM

    def count_before(self, boundaries: np.ndarray) -> np.ndarray:
        validation, train = self._totals(np.asarray(boundaries, np.int64))
        if self.part == "validation":
            return validation
        return train if self.part == "train" else boundaries - validation - train

    def members_of(self, starts: np.ndarray, stops: np.ndarray) -> np.ndarray:
        starts, stops = np.asarray(starts, np.int64), np.asarray(stops, np.int64)
        first, last = starts // STRATUM, -(-stops // STRATUM)
        last = np.where(stops > starts, last, first)
        strata = spans(first, last)
        owner = np.repeat(np.arange(len(starts)), last - first)
        rows = strata[:, None] * STRATUM + np.arange(STRATUM)
        wanted = self._is_member(strata, rows)
        wanted &= (rows >= starts[owner, None]) & (rows < stops[owner, None])
        return rows[wanted]

    def digest(self) -> str:
        counts = (self.n_validation, self.n_train)
        return _digest("hash", self.n_store, self.seed, self.part, *counts)

    def describe(self) -> str:
        return f"{self.n:,} hashed {self.part} rows of {self.n_store:,} (seed {self.seed})"

    def _totals(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Validation and training rows among the first ``x`` rows, at ends of strata.

        Training rows are a share of what validation leaves; both totals and both rests can
        therefore only grow, and no stratum is asked for fewer than none of a part.
        """
        validation = floor_share(x, self.n_validation, self.n_store)
        rest = self.n_store - self.n_validation
        train = floor_share(x - validation, self.n_train, rest) if rest else np.zeros_like(x)
        return validation, train

    def _is_member(self, strata: np.ndarray, rows: np.ndarray) -> np.ndarray:
        exists = rows < self.n_store
        draw = splitmix64(rows.astype(np.uint64) + np.uint64(self.key))
        draw[~exists] = np.iinfo(np.uint64).max
        order = np.argsort(draw, axis=1, kind="stable")
        rank = np.empty_like(order)
        np.put_along_axis(rank, order, np.arange(STRATUM)[None, :], axis=1)
        low = self._totals(strata * STRATUM)
        high = self._totals(np.minimum((strata + 1) * STRATUM, self.n_store))
        validation, train = ((h - lo)[:, None] for h, lo in zip(high, low, strict=True))
        if self.part == "validation":
            return rank < validation
        if self.part == "train":
            return (rank >= validation) & (rank < validation + train)
        return (rank >= validation + train) & exists


def spans(starts: np.ndarray, stops: np.ndarray) -> np.ndarray:
    """int64: ``start … stop - 1`` of each pair, one after the other."""
    lengths = np.maximum(stops - starts, 0)
    ends = np.cumsum(lengths)
    total = int(ends[-1]) if len(ends) else 0
    return np.repeat(starts - (ends - lengths), lengths) + np.arange(total, dtype=np.int64)


def floor_share(x: np.ndarray, part: int, whole: int) -> np.ndarray:
    """``floor(x * part / whole)``, exact although the product may not fit in 64 bits."""
    if whole < 1 << 31:
        return x * part // whole
    high, rest = np.divmod((x >> 16) * part, whole)
    return (high << 16) + ((rest << 16) + (x & 0xFFFF) * part) // whole


def _digest(*facts: object) -> str:
    state = blake2b(digest_size=16)
    for fact in facts:
        state.update(fact if isinstance(fact, bytes) else f"{fact};".encode())
    return state.hexdigest()
