"""The order of an epoch: blocks of the store permuted, and the members within each block.

Only a stretch of an order is ever spelled out; what is kept is the permutation of the blocks and
the number of members before every 1024th of them.
"""

from collections.abc import Iterator
from typing import Protocol

import numpy as np

from scvi_dist.dataloaders.rows import RowSet, members, splitmix64

MARK_EVERY = 1024
"""Blocks between two known totals."""

_BLOCKS_TAG, _MEMBERS_TAG = 0xB10C, 0x3E3B


class Order(Protocol):
    """All members of a row set in one order."""

    def slice(self, start: int, stop: int) -> np.ndarray:
        """int64: the members at places ``start … stop - 1``."""


class SequentialOrder:
    """Members ascending."""

    def __init__(self, rows: RowSet) -> None:
        self._rows = rows

    def slice(self, start: int, stop: int) -> np.ndarray:
        if stop <= start:
            return np.empty(0, np.int64)
        first, before = self._stratum_of(start)
        last, _ = self._stratum_of(stop - 1)
        found = members(self._rows, first, min(last + self._rows.stratum, self._rows.n_store))
        return found[start - before : stop - before]

    def _stratum_of(self, place: int) -> tuple[int, int]:
        """First row of the stratum that holds the member at a place, and members before it."""
        size = self._rows.stratum
        low, high = 0, -(-self._rows.n_store // size)
        while high - low > 1:
            middle = (low + high) // 2
            if self._before(middle * size) > place:
                high = middle
            else:
                low = middle
        return low * size, self._before(low * size)

    def _before(self, row: int) -> int:
        return int(self._rows.count_before(np.array([row], np.int64))[0])


class ShuffledOrder:
    """Blocks in random order, and the members of each block in random order.

    A pure function of (rows, block_rows, seed, epoch).
    """

    def __init__(self, rows: RowSet, block_rows: int, seed: int, epoch: int) -> None:
        self._rows, self._block_rows = rows, block_rows
        n_blocks = -(-rows.n_store // block_rows)
        # Four bytes a block where they suffice: an atlas has tens of millions of blocks.
        dtype = np.int32 if n_blocks <= np.iinfo(np.int32).max else np.int64
        self._blocks = np.arange(n_blocks, dtype=dtype)
        stream = np.random.PCG64(_sequence(seed, epoch, _BLOCKS_TAG))
        np.random.Generator(stream).shuffle(self._blocks)
        self._member_key = _sequence(seed, epoch, _MEMBERS_TAG).generate_state(1, np.uint64)
        totals = [
            np.add.reduceat(counts, np.arange(0, len(counts), MARK_EVERY))
            for counts in self._all_counts(64 * MARK_EVERY)
        ]
        self._marks = np.concatenate([[0], np.cumsum(np.concatenate(totals), dtype=np.int64)])

    def slice(self, start: int, stop: int) -> np.ndarray:
        if stop <= start:
            return np.empty(0, np.int64)
        first = int(np.searchsorted(self._marks, start, side="right")) - 1
        last = int(np.searchsorted(self._marks, stop, side="left"))
        blocks = self._blocks[first * MARK_EVERY : last * MARK_EVERY]
        ends = self._marks[first] + np.cumsum(self._counts(blocks))
        low = int(np.searchsorted(ends, start, side="right"))
        high = int(np.searchsorted(ends, stop, side="left")) + 1
        before = int(ends[low - 1]) if low else int(self._marks[first])
        return self._shuffled_members(blocks[low:high])[start - before : stop - before]

    def _bounds(self, blocks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        starts = blocks.astype(np.int64) * self._block_rows
        return starts, np.minimum(starts + self._block_rows, self._rows.n_store)

    def _counts(self, blocks: np.ndarray) -> np.ndarray:
        starts, stops = self._bounds(blocks)
        return self._rows.count_before(stops) - self._rows.count_before(starts)

    def _all_counts(self, stride: int) -> Iterator[np.ndarray]:
        for k in range(0, len(self._blocks), stride):
            yield self._counts(self._blocks[k : k + stride])

    def _shuffled_members(self, blocks: np.ndarray) -> np.ndarray:
        found = self._rows.members_of(*self._bounds(blocks))
        owner = np.repeat(np.arange(len(blocks), dtype=np.uint64), self._counts(blocks))
        # One sort by (block, hash) in place of a generator for each block.
        draw = splitmix64(found.astype(np.uint64) ^ self._member_key) >> np.uint64(24)
        return found[np.argsort((owner << np.uint64(40)) | draw, kind="stable")]


def _sequence(seed: int, epoch: int, tag: int) -> np.random.SeedSequence:
    return np.random.SeedSequence([seed, epoch, tag])
