"""Cells in the order that a caller gives, repeats included, read as the plan's cells are."""

from collections.abc import Iterator

import numpy as np

from scvi_dist.batch import CellBatch
from scvi_dist.dataloaders.budget import fit_window, scratch_bytes_for
from scvi_dist.dataloaders.collate import CountGuard
from scvi_dist.dataloaders.loader import LoaderConfig
from scvi_dist.dataloaders.local_loader import read_batches
from scvi_dist.dataloaders.read_task import BatchCut, ReadTask, ranges_of
from scvi_dist.dataloaders.source import CellSource, OpenSource, opened
from scvi_dist.errors import PlanError


def tasks_in_order(rows: np.ndarray, batch_size: int, window_cells: int) -> Iterator[ReadTask]:
    """Tasks whose minibatches are consecutive stretches of ``rows``.

    Parameters
    ----------
    rows
        int64 ``[n]``: rows of the store in any order; a row may occur more than once.
    batch_size
        Cells of a minibatch; the last may have fewer.
    window_cells
        Cells of a task, rounded down to whole minibatches.
    """
    window = max(1, window_cells // batch_size) * batch_size
    for number, origin in enumerate(range(0, len(rows), window)):
        wanted, pick = np.unique(rows[origin : origin + window], return_inverse=True)
        pick = pick.astype(np.int32)
        cuts = tuple(
            BatchCut(
                step=(origin + start) // batch_size,
                position=origin + start,
                start=0,
                n_global=len(pick[start : start + batch_size]),
                pick=pick[start : start + batch_size],
                n_padding=0,
                loss_scale=1.0,
            )
            for start in range(0, len(pick), batch_size)
        )
        yield ReadTask(0, number, 0, ranges_of(wanted), wanted, cuts)


class OrderedLoader:
    """Minibatches of the given cells, in the given order.

    Parameters
    ----------
    source
        Where the cells are.
    indices
        Rows of the store, in any order, repeats allowed; ``None`` for all. A boolean array
        selects rows.
    batch_size
        Cells of a minibatch; the last may have fewer.
    config
        Budget, threads and limits; the window shrinks to fit the budget.
    check_counts
        Look at every value while it is read.

    Raises
    ------
    PlanError
        If a row does not exist.
    """

    def __init__(
        self,
        source: CellSource | OpenSource,
        indices: np.ndarray | None = None,
        batch_size: int = 128,
        config: LoaderConfig | None = None,
        check_counts: bool = False,
    ) -> None:
        if batch_size < 1:
            raise PlanError(f"batch_size must be at least 1, seen {batch_size}.")
        self.source = opened(source)
        self.config = config or LoaderConfig()
        self.indices = as_rows(indices, self.source.store.n_obs, self.source.where)
        self.batch_size = batch_size
        self._check = check_counts

    def __len__(self) -> int:
        return -(-len(self.indices) // self.batch_size)

    def __iter__(self) -> Iterator[CellBatch]:
        return self.batches(self.indices)

    def batches(self, rows: np.ndarray) -> Iterator[CellBatch]:
        """Minibatches of other rows of the same source."""
        store, bytes_per_cell = self.source.store, self.source.bytes_per_cell
        window = fit_window(
            bytes_per_cell,
            self.config.budget_bytes,
            self.batch_size,
            1,
            self.config.window_cells,
            scratch_bytes_for(store.chunk_rows, bytes_per_cell, self.config.n_threads),
        )
        guard = CountGuard(self.source) if self._check else None
        tasks = tasks_in_order(rows, self.batch_size, window)
        yield from read_batches(tasks, self.source, self.config, guard)
        if guard is not None:
            guard.finish()


def as_rows(indices: np.ndarray | None, n_obs: int, where: str) -> np.ndarray:
    """Rows of a store, int64, from row numbers or from a boolean for each row.

    Raises
    ------
    PlanError
        If a row does not exist, or a boolean array has another length.
    """
    if indices is None:
        return np.arange(n_obs, dtype=np.int64)
    given = np.asarray(indices)
    if given.dtype == np.bool_:
        if given.shape != (n_obs,):
            raise PlanError(
                f"{where}: a boolean of shape {given.shape} selects among {n_obs} rows."
            )
        return np.flatnonzero(given).astype(np.int64)
    if given.size and (given.ndim != 1 or given.dtype.kind not in "iu"):
        raise PlanError(f"{where}: indices must be a list of row numbers, seen {given.dtype}.")
    rows = given.astype(np.int64).reshape(-1)
    if len(rows) and not (rows.min() >= 0 and rows.max() < n_obs):
        raise PlanError(
            f"{where}: expected rows in 0 … {n_obs - 1}, seen {rows.min()} … {rows.max()}."
        )
    return rows
