"""Sums over cells for every gene of every batch, by streaming; exact for counts.

Counts are whole numbers, so their sums and sums of squares are exact in float64 up to 2**53:
results depend neither on the order of the cells nor on who adds up what.

Axis suffixes: ``b`` batches, ``g`` genes, ``n`` cells.
"""

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from scvi_dist.batch import CsrRows
from scvi_dist.data.categories import Category, CategoryCount, encode
from scvi_dist.data.store import Store

_OBS_ROWS = 200_000


@dataclass(frozen=True, slots=True)
class GeneMoments:
    """Sums over the cells of each batch. Those of different cells add up."""

    cells_b: np.ndarray
    """int64 ``[b]``: cells."""
    sums_bg: np.ndarray
    """float64 ``[b, g]``: sums of values."""
    squares_bg: np.ndarray
    """float64 ``[b, g]``: sums of squared values."""
    largest_bg: np.ndarray
    """float64 ``[b, g]``: the largest value, at least 0."""

    @staticmethod
    def zeros(n_batches: int, n_genes: int) -> "GeneMoments":
        """Of no cells."""
        sums, squares, largest = (np.zeros((n_batches, n_genes)) for _ in range(3))
        return GeneMoments(np.zeros(n_batches, dtype=np.int64), sums, squares, largest)

    def add(self, block: CsrRows, batches: np.ndarray) -> None:
        """Count further cells in; ``batches`` has the batch of each, int ``[n]``."""
        for batch, rows in rows_of_batches(block, batches):
            values = rows.data.astype(np.float64)
            g = rows.n_genes
            self.cells_b[batch] += rows.n_cells
            self.sums_bg[batch] += np.bincount(rows.indices, values, g)
            with np.errstate(invalid="ignore"):  # NaN stays NaN
                np.maximum.at(self.largest_bg[batch], rows.indices, values)
            np.square(values, out=values)
            self.squares_bg[batch] += np.bincount(rows.indices, values, g)

    def __add__(self, other: "GeneMoments") -> "GeneMoments":
        return GeneMoments(
            self.cells_b + other.cells_b,
            self.sums_bg + other.sums_bg,
            self.squares_bg + other.squares_bg,
            np.maximum(self.largest_bg, other.largest_bg),
        )

    def over_all(self) -> "GeneMoments":
        """The same with all batches as one."""
        return GeneMoments(
            self.cells_b.sum(keepdims=True),
            self.sums_bg.sum(axis=0, keepdims=True),
            self.squares_bg.sum(axis=0, keepdims=True),
            self.largest_bg.max(axis=0, keepdims=True, initial=0.0),
        )

    @property
    def means_bg(self) -> np.ndarray:
        """float64 ``[b, g]``."""
        return self.sums_bg / self.cells_b[:, np.newaxis]

    @property
    def variances_bg(self) -> np.ndarray:
        """float64 ``[b, g]``; divided by ``n - 1``, or by 1 for a single cell."""
        n_b1 = self.cells_b[:, np.newaxis].astype(np.float64)
        variances_bg = self.squares_bg / n_b1 - np.square(self.means_bg)
        return variances_bg * (n_b1 / np.maximum(n_b1 - 1, 1))


@dataclass(frozen=True, slots=True)
class Excess:
    """Values above a limit for each batch and gene: how many, and their sums. They add up."""

    limits_bg: np.ndarray
    counts_bg: np.ndarray
    sums_bg: np.ndarray
    squares_bg: np.ndarray

    @staticmethod
    def above(limits_bg: np.ndarray) -> "Excess":
        """Of no cells."""
        counts, sums, squares = (np.zeros(limits_bg.shape) for _ in range(3))
        return Excess(limits_bg, counts, sums, squares)

    def add(self, block: CsrRows, batches: np.ndarray) -> None:
        """Count further cells in; ``batches`` has the batch of each, int ``[n]``."""
        for batch, rows in rows_of_batches(block, batches):
            values = rows.data.astype(np.float64)
            over = np.flatnonzero(values > self.limits_bg[batch].take(rows.indices))
            genes, values, g = rows.indices[over], values[over], rows.n_genes
            self.counts_bg[batch] += np.bincount(genes, minlength=g)
            self.sums_bg[batch] += np.bincount(genes, values, g)
            self.squares_bg[batch] += np.bincount(genes, np.square(values), g)


def rows_of_batches(block: CsrRows, batches: np.ndarray) -> Iterator[tuple[int, CsrRows]]:
    """The rows of each batch that occurs."""
    present = np.unique(batches)
    if len(present) == 1:
        yield int(present[0]), block
        return
    order = np.argsort(batches, kind="stable")
    edges = np.searchsorted(batches[order], [*present, np.iinfo(np.int64).max])
    for batch, low, high in zip(present.tolist(), edges[:-1], edges[1:], strict=True):
        yield batch, block.take(order[low:high])


@dataclass(frozen=True, slots=True)
class BatchColumn:
    """The column of obs that tells batches apart; all cells are one batch without it."""

    column: str | None
    categories: tuple[Category, ...]
    """Batches that have cells, sorted."""
    where: str

    @staticmethod
    def of(store: Store, column: str | None) -> "BatchColumn":
        """Found by one pass over the column.

        Raises :class:`FieldNotFound`, and :class:`SchemaMismatch` for a cell without a batch.
        """
        where = f"obs[{column!r}] of {store.locator.redacted_url}"
        if column is None:
            return BatchColumn(None, (0,), where)
        count = CategoryCount(where)
        for start in range(0, store.n_obs, _OBS_ROWS):
            stop = min(start + _OBS_ROWS, store.n_obs)
            count.add(store.read_obs([column], start, stop)[column], start)
        return BatchColumn(column, tuple(sorted(count.used)), where)

    def codes(self, store: Store, start: int, stop: int) -> np.ndarray:
        """int ``[n]``: batch of each of the cells ``start … stop - 1``."""
        if self.column is None:
            return np.zeros(stop - start, dtype=np.int64)
        values = store.read_obs([self.column], start, stop)[self.column]
        return encode(values, self.categories, self.where, start)


@dataclass(frozen=True, kw_only=True, slots=True)
class BlockReading:
    """How blocks of cells are read; no result depends on it."""

    n_threads: int = 2
    block_bytes: int = 64 << 20
    """Counts of one block; ``n_threads + 1`` of them are in memory."""
    on_progress: Callable[[int, int], None] | None = None
    """Called with the cells done so far and the cells in all."""


def blocks_of(
    store: Store, reading: BlockReading, genes: np.ndarray | None = None
) -> Iterator[tuple[int, int, CsrRows]]:
    """First row, row after the last, and counts of block after block, read ahead by threads."""
    rows = max(1, int(reading.block_bytes / max(8.0, store.bytes_per_cell)))
    # Whole chunks, so that none is decoded twice.
    rows = max(store.chunk_rows, rows // store.chunk_rows * store.chunk_rows)
    starts = iter(range(0, store.n_obs, rows))
    waiting: deque[tuple[int, int, Future[CsrRows]]] = deque()
    with ThreadPoolExecutor(reading.n_threads) as pool:

        def read_on() -> None:
            start = next(starts, None)
            if start is not None:
                stop = min(start + rows, store.n_obs)
                waiting.append((start, stop, pool.submit(store.read_rows, [(start, stop)], genes)))

        try:
            for _ in range(reading.n_threads + 1):
                read_on()
            while waiting:
                start, stop, future = waiting.popleft()
                yield start, stop, future.result()
                read_on()
        finally:
            for *_, future in waiting:
                future.cancel()
