"""A count matrix on disk: rows as CSR, whatever it is stored as.

Axis suffixes: ``n`` cells, ``g`` genes.
"""

from functools import cached_property
from typing import Protocol

import numpy as np

from scvi_dist.batch import CsrRows
from scvi_dist.data.on_disk.entry_check import first_bad_entry
from scvi_dist.data.on_disk.layout import (
    ElementTree,
    MatrixElement,
    NarrowingArray,
    StoredArray,
    native,
)
from scvi_dist.data.on_disk.row_pointers import RowPointers
from scvi_dist.data.spans import expand, groups_of, spans_of_rows
from scvi_dist.errors import StoreCorrupt

GROUP_BYTES = 32 << 20
"""What is held beside the result while genes are selected or dense rows become sparse."""
_SAMPLED_ROWS = 256
_SAMPLED_POINTERS = 16


class RowMatrix(Protocol):
    """Rows of a stored matrix."""

    shape: tuple[int, int]
    arrays: tuple[str, ...]

    @property
    def dtype(self) -> np.dtype: ...

    @property
    def n_stored(self) -> int | None:
        """Stored entries; ``None`` where only reading would tell."""

    @property
    def chunk_rows(self) -> int: ...

    @property
    def entries_per_row(self) -> float:
        """Mean number of non-zeros in a row; for a dense matrix from a sample."""

    def read(self, spans: np.ndarray, genes: np.ndarray | None) -> CsrRows:
        """Rows of ascending spans ``[m, 2]``."""

    def facts(self) -> list[object]:
        """What belongs in a digest and is known without reading the matrix."""


def open_matrix(tree: ElementTree, element: MatrixElement) -> RowMatrix:
    """The reader for a matrix; reads nothing of it yet. Raises :class:`StoreCorrupt`."""
    where = f"{tree.where}: {element.path}"
    if element.encoding == "dense":
        return DenseMatrix(where, tree.array(element.path), (element.path,))
    paths = tuple(f"{element.path}/{part}" for part in ("indptr", "indices", "data"))
    for path in paths:
        if tree.kind(path) != "array":
            raise StoreCorrupt(f"{where} is a CSR matrix without {path}.")
    indptr, indices, data = (tree.array(path) for path in paths)
    return CsrMatrix(where, element.shape, indptr, indices, data, paths)


class CsrMatrix:
    """A CSR matrix: ``indptr``, ``indices`` and ``data``."""

    def __init__(
        self,
        where: str,
        shape: tuple[int, int],
        indptr: StoredArray,
        indices: StoredArray,
        data: StoredArray,
        paths: tuple[str, ...] = (),
    ) -> None:
        self.where = where
        self.shape = shape
        self.arrays = paths
        self._indptr, self._indices, self._data = indptr, indices, data
        lengths = [array.shape[0] for array in (indptr, indices, data)]
        if lengths[0] != shape[0] + 1 or lengths[1] != lengths[2]:
            raise StoreCorrupt(
                f"{where}: {shape[0]} rows need {shape[0] + 1} row pointers and as many indices "
                f"as values; found {lengths[0]} pointers, {lengths[1]} indices and {lengths[2]} "
                "values. The file is damaged or was not written to its end."
            )

    @property
    def dtype(self) -> np.dtype:
        return self._data.dtype

    @property
    def n_stored(self) -> int:
        return self._data.shape[0]

    @property
    def entries_per_row(self) -> float:
        return self.n_stored / max(1, self.shape[0])

    @property
    def _index_type(self) -> np.dtype:
        """As stored where that is short: a window of many rows is written and read once more."""
        stored = self._indices.dtype
        if stored.kind in "iu" and stored.itemsize <= 2:
            return native(stored)
        return np.dtype(np.int64 if self.shape[1] > np.iinfo(np.int32).max else np.int32)

    @property
    def chunk_rows(self) -> int:
        entries = max(self._data.chunk_rows, self._indices.chunk_rows)
        if entries == 1 or self.n_stored == 0:
            return 1
        return min(max(1, self.shape[0]), max(1, round(entries / self.entries_per_row)))

    @cached_property
    def pointers(self) -> RowPointers:
        """Where rows begin, checked; read on first use and kept."""
        return RowPointers(self._indptr, self.n_stored, self.where)

    def facts(self) -> list[object]:
        n = self._indptr.shape[0]
        picks = np.unique(np.linspace(0, n - 1, min(n, _SAMPLED_POINTERS)).astype(np.int64))
        sample = self._indptr.read(spans_of_rows(picks))
        return ["csr", self.shape, self.n_stored, str(self.dtype), sample.tolist()]

    def read(self, spans: np.ndarray, genes: np.ndarray | None) -> CsrRows:
        if genes is None:
            return self._read(spans)
        lookup = gene_lookup(genes, self.shape[1])
        limit = max(1, int(GROUP_BYTES / (8 * max(1.0, self.entries_per_row))))
        parts = [
            select_genes(self._read(group), lookup, len(genes)) for group in groups_of(spans, limit)
        ]
        return CsrRows.concatenate(parts) if parts else empty_rows(len(genes), self.dtype)

    def _read(self, spans: np.ndarray) -> CsrRows:
        entries, indptr = self.pointers.read(spans)
        entries = entries[entries[:, 1] > entries[:, 0]]
        indices = self._read_indices(entries)
        block = CsrRows(indptr, indices, self._data.read(entries), self.shape[1])
        self.check(block, spans)
        return block

    def _read_indices(self, entries: np.ndarray) -> np.ndarray:
        if self._may_narrow and isinstance(self._indices, NarrowingArray):
            narrow = self._indices.read_narrow(entries)
            if narrow is not None:
                return narrow
        # Also what has a gene that does not fit: to be told which.
        return self._indices.read(entries, self._index_type)

    @property
    def _may_narrow(self) -> bool:
        return self._index_type.itemsize > 2 and self.shape[1] <= np.iinfo(np.uint16).max + 1

    def check(self, block: CsrRows, spans: np.ndarray) -> None:
        """Raise :class:`StoreCorrupt` for a gene that does not exist or that a row has twice."""
        bad = first_bad_entry(block.indptr, block.indices, self.shape[1])
        if bad < 0:
            return
        row, gene = self._row_of(block, spans, bad), int(block.indices[bad])
        if not 0 <= gene < self.shape[1]:
            raise StoreCorrupt(
                f"{self.where}: row {row} has a value for gene {gene}; there are "
                f"{self.shape[1]} genes."
            )
        raise StoreCorrupt(
            f"{self.where}: row {row} has gene {gene} twice. A chunk of the indices is missing, "
            "or the matrix was written with duplicates: call sum_duplicates() on it and write it "
            "again."
        )

    def _row_of(self, block: CsrRows, spans: np.ndarray, entry: int) -> int:
        return int(expand(spans)[np.searchsorted(block.indptr, entry, side="right") - 1])


class DenseMatrix:
    """A dense matrix; rows become CSR, zeros are dropped and NaN stays."""

    def __init__(self, where: str, array: StoredArray, paths: tuple[str, ...] = ()) -> None:
        self.where = where
        self.shape = (array.shape[0], array.shape[1])
        self.arrays = paths
        self._array = array
        if self._array.dtype.kind not in "biuf":
            raise StoreCorrupt(f"{self.where} holds {self._array.dtype} values; expected numbers.")

    @property
    def dtype(self) -> np.dtype:
        return self._array.dtype

    @property
    def n_stored(self) -> None:
        return None

    @property
    def chunk_rows(self) -> int:
        return self._array.chunk_rows

    @cached_property
    def entries_per_row(self) -> float:
        n = self.shape[0]
        if n == 0:
            return 0.0
        starts = np.unique(np.linspace(0, max(0, n - _SAMPLED_ROWS // 4), 4).astype(np.int64))
        blocks = [np.arange(start, min(n, start + _SAMPLED_ROWS // 4)) for start in starts]
        rows = np.unique(np.concatenate(blocks))
        return float(self.read(spans_of_rows(rows), None).indptr[-1] / len(rows))

    def facts(self) -> list[object]:
        return ["dense", self.shape, str(self.dtype)]

    def read(self, spans: np.ndarray, genes: np.ndarray | None) -> CsrRows:
        n_genes = self.shape[1]
        if genes is not None:
            gene_lookup(genes, n_genes)  # refuses what is repeated or does not exist
            n_genes = len(genes)
        limit = max(1, GROUP_BYTES // max(1, self.shape[1] * self.dtype.itemsize))
        parts = []
        for group in groups_of(spans, limit):
            dense_ng = self._array.read(group)
            parts.append(csr_of_dense(dense_ng if genes is None else dense_ng[:, genes]))
        return CsrRows.concatenate(parts) if parts else empty_rows(n_genes, self.dtype)


def empty_rows(n_genes: int, dtype: np.dtype) -> CsrRows:
    """No rows."""
    return CsrRows(
        np.zeros(1, dtype=np.int64), np.zeros(0, dtype=np.int32), np.zeros(0, dtype), n_genes
    )


def csr_of_dense(dense_ng: np.ndarray) -> CsrRows:
    """The non-zeros of a dense block; NaN counts as one."""
    n, g = dense_ng.shape
    present_ng = dense_ng != 0
    indptr = np.zeros(n + 1, dtype=np.int64)
    np.cumsum(np.count_nonzero(present_ng, axis=1), out=indptr[1:])
    genes = np.broadcast_to(np.arange(g, dtype=np.int32), (n, g))
    return CsrRows(indptr, genes[present_ng], dense_ng[present_ng], g)


def gene_lookup(genes: np.ndarray, n_genes: int) -> np.ndarray:
    """int32 ``[n_genes]``: the new column of every old one, -1 for those not selected.

    Raises ``IndexError`` for genes that do not exist and ``ValueError`` for repeated ones.
    """
    genes = np.asarray(genes)
    if len(genes) and (int(genes.min()) < 0 or int(genes.max()) >= n_genes):
        bad = genes[(genes < 0) | (genes >= n_genes)][0]
        raise IndexError(f"gene {bad} was asked for; the genes are 0 to {n_genes - 1}")
    lookup = np.full(n_genes, -1, dtype=np.int32)
    lookup[genes.astype(np.int64, copy=False)] = np.arange(len(genes), dtype=np.int32)
    if int((lookup >= 0).sum()) != len(genes):
        raise ValueError("a gene was asked for twice; genes have to be unique")
    return lookup


def select_genes(block: CsrRows, lookup: np.ndarray, n_selected: int) -> CsrRows:
    """The columns that ``lookup`` gives a new place; order within a row stays as stored."""
    columns = lookup.take(block.indices)
    # Taking positions is several times faster than boolean indexing.
    kept = np.flatnonzero(columns >= 0)
    indptr = np.searchsorted(kept, block.indptr)
    return CsrRows(indptr, columns.take(kept), block.data.take(kept), n_selected)
