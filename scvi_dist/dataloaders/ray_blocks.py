"""Minibatches on their way through Ray's object store: a window as an Arrow table of rows.

A row is a minibatch. Axis suffixes: ``n`` cells, ``p`` proteins.
"""

import pickle
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from scvi_dist.batch import CsrRows
from scvi_dist.data.big_arrays import new_array
from scvi_dist.data.counts import CountReport
from scvi_dist.dataloaders.collate import TaskRows, n_parts_of, read_part
from scvi_dist.dataloaders.read_task import ReadTask
from scvi_dist.dataloaders.source import OpenSource


def window_table(task: ReadTask, source: OpenSource, check: bool) -> pa.Table:
    """A task's counts as an Arrow table with a row for each minibatch.

    Columns: ``step``; ``lengths``, ``indices`` and ``data`` of the minibatch's cells as CSR;
    ``proteins``, their counts of proteins, where there are some; ``report`` (in the first row),
    what is wrong with the counts.
    """
    n_parts = n_parts_of(task, 1)
    parts = [read_part(task, part, n_parts, source, check) for part in range(n_parts)]
    report = sum((part.report for part in parts if part.report is not None), CountReport())
    rows, picks = TaskRows.of(parts), np.concatenate([cut.pick for cut in task.cuts])
    # Short types are less to send. Several stores may have several, but tables need the same ones.
    counts = rows.gather(picks, as_stored=not source.store.locator.parts)
    proteins_np = rows.gather_proteins(picks)
    cells = np.cumsum([0] + [len(cut.pick) for cut in task.cuts])
    entries = counts.indptr[cells]
    reports = [pickle.dumps(report) if check else None] + [None] * (len(task.cuts) - 1)
    columns = {
        "step": pa.array([cut.step for cut in task.cuts], pa.int64()),
        "lengths": _lists(cells, np.diff(counts.indptr).astype(np.int32)),
        "indices": _lists(entries, counts.indices),
        "data": _lists(entries, counts.data),
        "report": pa.array(reports, pa.large_binary()),
    }
    if proteins_np is not None:
        columns["proteins"] = _lists(cells * proteins_np.shape[1], proteins_np.ravel())
    return pa.table(columns)


def _lists(offsets: np.ndarray, values: np.ndarray) -> pa.LargeListArray:
    """``values[offset k : offset k + 1]`` as list k; the values are not copied."""
    return pa.LargeListArray.from_arrays(pa.array(offsets, pa.int64()), pa.array(values))


@dataclass(frozen=True, slots=True)
class MinibatchRow:
    """A row of a window's table; the arrays look into Ray's shared memory, read-only."""

    step: int
    lengths: np.ndarray
    indices: np.ndarray
    data: np.ndarray
    report: CountReport | None
    proteins: np.ndarray | None = None

    def counts(self, n_genes: int) -> CsrRows:
        """The row's cells in arrays of their own, of the types that modules take.

        Copied, because torch would write into shared memory unawares, and because a minibatch
        that is kept must not keep a whole block in the object store.
        """
        indptr = np.zeros(len(self.lengths) + 1, dtype=np.int64)
        np.cumsum(self.lengths, out=indptr[1:])
        indices, data = (
            new_array(len(self.indices), np.int32),
            new_array(len(self.data), np.float32),
        )
        indices[:], data[:] = self.indices, self.data
        return CsrRows(indptr, indices, data, n_genes)

    def protein_counts(self) -> np.ndarray | None:
        """float32 ``[n, p]`` of the row's cells in an array of its own."""
        if self.proteins is None:
            return None
        return self.proteins.reshape(len(self.lengths), -1).copy()


def minibatch_rows(table: pa.Table) -> Iterator[MinibatchRow]:
    """The rows of a table without copying; it may be cut or joined in any way between rows."""
    for chunk in table.to_batches():
        names = [n for n in ("lengths", "indices", "data", "proteins") if n in table.column_names]
        lists = {name: chunk.column(name) for name in names}
        # Not `.values[k]` or scalars: they copy. Offsets and flat values are views.
        offsets = {name: column.offsets.to_numpy() for name, column in lists.items()}
        values = {
            name: column.values.to_numpy(zero_copy_only=True) for name, column in lists.items()
        }
        steps, reports = chunk.column("step").to_numpy(), chunk.column("report")
        for k, step in enumerate(steps.tolist()):
            row = {name: values[name][o[k] : o[k + 1]] for name, o in offsets.items()}
            report = reports[k].as_py()
            # Written by our own reader task a moment ago, not a file.
            yield MinibatchRow(step=step, report=pickle.loads(report) if report else None, **row)
