"""Reading a task and cutting it into minibatches: the same for every engine.

Axis suffixes: ``n`` cells, ``g`` genes, ``p`` proteins.
"""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from scvi_dist.batch import REGISTRY_KEYS, CellBatch, CsrRows, SparseCounts
from scvi_dist.data.big_arrays import new_array
from scvi_dist.data.coded_obs import CodedObs
from scvi_dist.data.counts import (
    CountReport,
    check_counts,
    check_counts_among,
    raise_or_warn,
)
from scvi_dist.dataloaders.read_task import BatchCut, ReadTask, ranges_of
from scvi_dist.dataloaders.source import OpenSource
from scvi_dist.kernels import threads

PART_ROWS = 8_192
"""Most rows that are read in one go: a reader can stop, and threads can share, between parts."""


@dataclass(frozen=True, slots=True)
class ReadPart:
    """Counts of some consecutive rows of a task, and what is wrong with them."""

    counts: CsrRows
    report: CountReport | None
    """``None`` if nobody looked."""
    proteins: np.ndarray | None = None
    """float32 ``[n, p]``; ``None`` where the schema has no proteins."""
    among: np.ndarray | None = None
    """int64 ``[n]``: which of the counts are these rows; ``None`` if all are, in their order."""

    @property
    def nbytes(self) -> int:
        """What was read."""
        read = self.counts if self.among is None else self.among
        return read.nbytes + (0 if self.proteins is None else self.proteins.nbytes)


def n_parts_of(task: ReadTask, n_threads: int) -> int:
    """Parts that a task is read in."""
    return max(min(n_threads, len(task.rows)), -(-len(task.rows) // PART_ROWS))


def read_part(task: ReadTask, part: int, n_parts: int, source: OpenSource, check: bool) -> ReadPart:
    """The ``part``-th of ``n_parts`` equal stretches of a task's rows.

    Parameters
    ----------
    check
        Look at every value.
    """
    n = len(task.rows)
    rows = task.rows[part * n // n_parts : (part + 1) * n // n_parts]
    ranges = ranges_of(rows)
    proteins = None if source.proteins is None else source.proteins.read(ranges)
    if (held := source.rows_in_memory) is not None:
        report = check_counts_among(held, rows, source.where) if check else None
        return ReadPart(held, report, proteins, rows)
    block = source.store.read_rows(ranges, source.genes)
    report = check_counts(block, rows, source.where) if check else None
    return ReadPart(_narrow(block), report, proteins)


class TaskRows:
    """All rows of a task, as the parts in which they were read.

    Parameters
    ----------
    parts
        Counts of genes; at least one is not empty.
    proteins
        float32 ``[n, p]`` of each part; empty where there are no proteins.
    among
        int64 ``[n]``: which of the parts' rows are the task's; ``None`` if all are, in their order.
    """

    def __init__(
        self,
        parts: Sequence[CsrRows],
        proteins: Sequence[np.ndarray] = (),
        among: np.ndarray | None = None,
    ) -> None:
        self._parts = [part for part in parts if part.n_cells]
        self._proteins = [part for part in proteins if len(part)]
        self._among = among
        self.n_cells = sum(part.n_cells for part in self._parts) if among is None else len(among)
        self.n_genes = self._parts[0].n_genes

    @staticmethod
    def of(parts: Sequence[ReadPart]) -> "TaskRows":
        """The rows that these parts hold."""
        proteins = [part.proteins for part in parts if part.proteins is not None]
        among = [part.among for part in parts if part.among is not None]
        if among:
            # All look at the same rows, which are in memory.
            return TaskRows([parts[0].counts], proteins, np.concatenate(among))
        return TaskRows([part.counts for part in parts], proteins)

    def gather_proteins(self, pick: np.ndarray) -> np.ndarray | None:
        """float32 ``[n, p]`` of the picked rows, an array of its own; ``None`` without proteins."""
        if not self._proteins:
            return None
        picked_np = np.empty((len(pick), self._proteins[0].shape[1]), dtype=np.float32)
        firsts = _firsts([len(part_np) for part_np in self._proteins])
        for first, part_np in zip(firsts, self._proteins, strict=False):
            place = pick - first
            here = (place >= 0) & (place < len(part_np))
            picked_np[here] = part_np[place[here]]
        return picked_np

    def gather(self, pick: np.ndarray, as_stored: bool = False) -> CsrRows:
        """The picked rows in the order given: float32 values, int32 indices, arrays of its own.

        With ``as_stored`` values and indices are of the types that they were read with.
        """
        return next(self.gather_each([pick], as_stored))

    def gather_each(
        self, picks: Sequence[np.ndarray], as_stored: bool = False
    ) -> Iterator[CsrRows]:
        """What :meth:`gather` gives for each of some picks, made when it is asked for."""
        from scvi_dist.dataloaders.kernels import gather_parts

        types = np.dtype(np.int32), np.dtype(np.float32)
        if as_stored:
            types = (
                np.result_type(*(part.indices for part in self._parts)),
                np.result_type(*(part.data for part in self._parts)),
            )
        # In the order of the minibatches: none of them looks up its rows all over memory.
        starts, lengths = self._places(np.concatenate(picks))
        ends = np.zeros(len(lengths) + 1, dtype=np.int64)
        np.cumsum(lengths, out=ends[1:])
        bounds = _firsts([len(pick) for pick in picks])
        sizes = np.diff(ends[bounds]).tolist()
        for size, (first, last) in zip(sizes, itertools.pairwise(bounds), strict=True):
            places = starts[first:last], ends[first : last + 1]
            yield gather_parts(self._parts, *places, size, types)

    def _places(self, pick: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Where the picked rows begin among the entries of all parts, and how many they have."""
        if self._among is not None:
            rows, indptr = self._among[pick], self._parts[0].indptr
            return indptr[rows], indptr[rows + 1] - indptr[rows]
        firsts = _firsts([len(part.indices) for part in self._parts])
        starts = [p.indptr[:-1] + first for p, first in zip(self._parts, firsts, strict=False)]
        lengths = [np.diff(part.indptr) for part in self._parts]
        return np.concatenate(starts)[pick], np.concatenate(lengths)[pick]


def execute(
    task: ReadTask, source: OpenSource, guard: "CountGuard | None" = None
) -> Iterator[CellBatch]:
    """A task's minibatches, read in this thread.

    Parameters
    ----------
    guard
        Collects what is wrong with the counts; ``None`` does not look.
    """
    n_parts = n_parts_of(task, 1)
    parts = [read_part(task, k, n_parts, source, guard is not None) for k in range(n_parts)]
    if guard is not None:
        guard.add(part.report for part in parts)
    yield from cut_batches(task, TaskRows.of(parts), source.coded_obs)


def cut_batches(task: ReadTask, rows: TaskRows, coded_obs: CodedObs) -> Iterator[CellBatch]:
    """The minibatches of a task whose rows are in memory, each made when it is asked for."""
    counts = rows.gather_each([cut.pick for cut in task.cuts])
    for cut, cells in cut_cells(task, coded_obs):
        yield batch_of(cut, cells, next(counts), rows.gather_proteins(cut.pick))


class CutCells(NamedTuple):
    """What is known of a minibatch's cells before their counts are."""

    rows: np.ndarray
    """int64 ``[n]``: row of each cell in the store."""
    fields: dict[str, Tensor]
    """Registry key -> ``[n, k]``."""


def cut_cells(task: ReadTask, coded_obs: CodedObs) -> Iterator[tuple[BatchCut, CutCells]]:
    """The cells of each minibatch of a task, looked up for all of them at once."""
    rows = task.rows[np.concatenate([cut.pick for cut in task.cuts])]
    fields = coded_obs.take(rows).items()
    stop = 0
    for cut in task.cuts:
        start, stop = stop, stop + len(cut.pick)
        # Views of arrays and not of tensors, which would be sent whole to another process.
        own = {key: torch.from_numpy(values_nk[start:stop]) for key, values_nk in fields}
        yield cut, CutCells(rows[start:stop], own)


def batch_of(
    cut: BatchCut, cells: CutCells, counts: CsrRows, proteins: np.ndarray | None = None
) -> CellBatch:
    """A minibatch of these cells and their counts."""
    rows, fields = cells
    if proteins is not None:
        fields[REGISTRY_KEYS.PROTEIN_EXP_KEY] = torch.from_numpy(proteins)
    return CellBatch(
        x=sparse_tensors(counts),
        fields=fields,
        rows=rows,
        position=cut.position,
        start=cut.start,
        n_global=cut.n_global,
        n_padding=cut.n_padding,
        loss_scale=cut.loss_scale,
        step=cut.step,
    )


def sparse_tensors(counts: CsrRows) -> SparseCounts:
    """The same rows as tensors that share memory with them; arrays have to be writable."""
    return SparseCounts(
        torch.from_numpy(counts.indptr),
        torch.from_numpy(counts.indices),
        torch.from_numpy(counts.data),
        counts.n_genes,
    )


def dense_tensor(x: SparseCounts) -> Tensor:
    """float32 ``[n, g]`` of counts on the CPU, by as many threads as torch has.

    Several times faster than torch's own way.
    """
    from scvi_dist.dataloaders.kernels import scatter_rows

    indptr, indices, data = x.indptr.numpy(), x.indices.numpy(), x.data.numpy()
    dense_ng = new_array(x.shape, np.float32)
    threads.run(
        [
            partial(scatter_rows, indptr[start : stop + 1], indices, data, dense_ng[start:stop])
            for start, stop in threads.cuts(0, x.shape[0], threads.n_threads())
        ]
    )
    return torch.from_numpy(dense_ng)


class CountGuard:
    """Looks after counts during the first pass over the data.

    What no model can take is refused at once, with its row and gene; fractional counts are
    warned of once, empty cells when the pass is over and their number is known.

    Parameters
    ----------
    source
        Names the genes and the store in messages.
    """

    def __init__(self, source: OpenSource) -> None:
        self._source = source
        self._warned = False
        self.report = CountReport()
        """What was found so far in this pass."""

    def begin(self) -> None:
        """A pass begins: no cell was seen yet."""
        self.report = CountReport()

    def add(self, reports: Iterable[CountReport | None]) -> None:
        """Take in reports of other rows.

        Raises
        ------
        BadCounts
            An entry is NaN, infinite or negative.
        """
        found = sum((report for report in reports if report is not None), CountReport())
        self.report += found
        if found.n_nan or found.n_negative or (found.n_non_integer and not self._warned):
            self._warned = self._warned or found.n_non_integer > 0
            self._tell(_without_empty(found))

    def finish(self) -> None:
        """The pass is over: warn of empty cells."""
        if self.report.n_empty:
            self._tell(
                CountReport(
                    n_cells=self.report.n_cells,
                    n_empty=self.report.n_empty,
                    first_empty=self.report.first_empty,
                )
            )

    def _tell(self, report: CountReport) -> None:
        raise_or_warn(report, self._source.schema.var_names, self._source.where)


def _without_empty(report: CountReport) -> CountReport:
    return CountReport(
        n_cells=report.n_cells,
        n_negative=report.n_negative,
        n_non_integer=report.n_non_integer,
        n_nan=report.n_nan,
        first_negative=report.first_negative,
        first_non_integer=report.first_non_integer,
        first_nan=report.first_nan,
    )


def _firsts(lengths: Sequence[int]) -> list[int]:
    """Where each of some stretches begins, one after the other, and where the last one ends."""
    return [0, *itertools.accumulate(lengths)]


def _narrow(block: CsrRows) -> CsrRows:
    """At most 8 bytes an entry: what budgets count on."""
    indices, data = block.indices, block.data
    if indices.dtype.itemsize > 4 or indices.dtype == np.uint32:
        indices = indices.astype(np.int32)
    if data.dtype.itemsize > 4 or data.dtype.kind == "b" or data.dtype == np.float16:
        data = data.astype(np.float32)
    return CsrRows(block.indptr, indices, data, block.n_genes)
