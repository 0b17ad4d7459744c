"""Matrices of a SOMA experiment: rows by their identifiers, as CSR.

Axis suffixes: ``n`` cells, ``g`` genes.
"""

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa

from scvi_dist.batch import CsrRows
from scvi_dist.data.big_arrays import new_array
from scvi_dist.data.filesystem import is_remote
from scvi_dist.data.on_disk.matrix import csr_of_dense, empty_rows
from scvi_dist.data.soma.kernels import (
    bits,
    count_runs,
    place_runs,
    runs_of_column,
    slots_of_runs,
    sorted_rows,
)
from scvi_dist.data.soma.table import damage_of
from scvi_dist.data.soma.tiledb_metadata import NotPlain, filters_of, read_fragments
from scvi_dist.data.soma.tiledb_tiles import ColumnMap, TileDamaged, TileReader, packed
from scvi_dist.errors import StoreChanged, StoreCorrupt, UnsupportedStore

_GROUP_BYTES = 32 << 20
_COORDINATE_BYTES = 20
_MOST_COLUMNS = 1 << 28


def open_soma_matrix(array: Any, where: str) -> "SparseSoma | DenseSoma":
    """The reader for an open SOMA array. Raises :class:`UnsupportedStore`."""
    kind = array.soma_type
    if kind not in ("SOMASparseNDArray", "SOMADenseNDArray") or array.ndim != 2:
        raise UnsupportedStore(
            f"{where} is a {kind} of {getattr(array, 'ndim', 1)} dimensions; expected a matrix."
        )
    return SparseSoma(array, where) if kind == "SOMASparseNDArray" else DenseSoma(array, where)


def _local_path(array: Any) -> str:
    return str(array.uri).removeprefix("file://")


def _n_columns(array: Any) -> int:
    """Columns that entries may have; an array without a shape of its own tells by its content."""
    if array.tiledbsoma_has_upgraded_shape:
        return int(array.shape[1])
    domain = array.non_empty_domain()
    return int(domain[1][1]) + 1 if domain else 0


class SparseSoma:
    """A ``SparseNDArray``; read past TileDB where that gives the same (see ``tiledb_tiles``)."""

    encoding = "csr"

    def __init__(self, array: Any, where: str) -> None:
        self._array, self._where = array, where
        self.dtype = np.dtype(array.schema.field("soma_data").type.to_pandas_dtype())
        self.n_columns = _n_columns(array)
        self._config = array.schema_config_options()
        self.tiles = self._open_tiles()
        """What reads the files themselves; ``None`` where TileDB has to."""
        self.n_stored = self._count()

    def _open_tiles(self) -> TileReader | None:
        if is_remote(self._array.uri):
            return None
        try:
            fragments = read_fragments(
                _local_path(self._array),
                int(self._config.capacity),
                bool(self._config.allows_duplicates),
                int(self._array.tiledb_timestamp_ms),
            )
            return TileReader(fragments, filters_of(self._config), self.dtype)
        except (NotPlain, OSError, UnicodeDecodeError):
            return None

    def _count(self) -> int:
        """Entries, or a few more where cells were written twice or deleted."""
        if self.tiles is not None:
            return self.tiles.n_stored
        return int(self._array._handle.fragment_cell_count())

    def chunk_rows(self, entries_per_row: float, n_rows: int) -> int:
        """Rows whose entries have to be decoded together."""
        dims = json.loads(self._config.dims)
        width = max(1, int(dims["soma_dim_1"]["tile"]))
        # A row is cut where tiles end, so that a tile holds a part of each of its rows only.
        share = min(1.0, width / max(1, self.n_columns))
        entries = int(self._config.capacity) if self.tiles is None else self.tiles.block_entries
        rows = entries / max(1.0, entries_per_row * share)
        if self.tiles is None:
            rows = min(rows, int(dims["soma_dim_0"]["tile"]))
        return max(1, min(int(rows), max(1, n_rows)))

    def read(self, wanted: np.ndarray, columns: ColumnMap) -> CsrRows:
        """Rows with the given identifiers (int64, ascending, unique).

        Genes of a row are sorted, unless the caller's own order is not that of the columns.
        Raises :class:`StoreCorrupt` with the identifiers of the rows.
        """
        if self.tiles is None:
            block = self._read_by_tiledb(wanted, columns)
        else:
            block = self._read_tiles(self.tiles, wanted, columns)
        if not columns.is_ascending:
            return block
        block, twice = sorted_rows(block)
        if twice >= 0:
            raise StoreCorrupt(
                f"{self._where}: the row with soma_joinid {wanted[twice]} has a gene twice. The "
                "array allows duplicates and was written to more than once."
            )
        return block

    def _read_tiles(self, tiles: TileReader, wanted: np.ndarray, columns: ColumnMap) -> CsrRows:
        try:
            parts = [tiles.read(group, columns) for group in self._groups(wanted, columns, 8)]
        except TileDamaged as error:
            raise StoreCorrupt(
                f"{self._where}: the entries of rows {error.first} to {error.last} (soma_joinid) "
                f"cannot be read: {error}. The store is damaged or was not copied to its end."
            ) from error
        except FileNotFoundError as error:
            raise StoreChanged(
                f"{self._where}: {error.filename} is gone. It was there when the store was opened; "
                "somebody has replaced or consolidated the array since. Open it again."
            ) from error
        return CsrRows.concatenate(parts) if parts else empty_rows(columns.n_genes, self.dtype)

    def _groups(
        self, wanted: np.ndarray, columns: ColumnMap, entry_bytes: int
    ) -> Iterator[np.ndarray]:
        """The rows in groups whose entries fit; all of them where only the result is held."""
        per_row = self.n_stored / max(1, self._row_span())
        holds_more = columns.drops or entry_bytes > 8
        rows = max(1, int(_GROUP_BYTES / max(1.0, per_row * entry_bytes)))
        step = rows if holds_more else max(1, len(wanted))
        for start in range(0, len(wanted), step):
            yield wanted[start : start + step]

    def _row_span(self) -> int:
        domain = self._array.non_empty_domain()
        return int(domain[0][1]) - int(domain[0][0]) + 1 if domain else 1

    # by TileDB

    def _read_by_tiledb(self, wanted: np.ndarray, columns: ColumnMap) -> CsrRows:
        groups = self._groups(wanted, columns, _COORDINATE_BYTES)
        parts = [self._read_group(group, columns) for group in groups]
        return CsrRows.concatenate(parts) if parts else empty_rows(columns.n_genes, self.dtype)

    def _read_group(self, wanted: np.ndarray, columns: ColumnMap) -> CsrRows:
        counts = np.zeros(len(wanted), dtype=np.int64)
        found = []
        for rows, names, values in self._entries(wanted, columns):
            run_rows, starts = np.empty_like(rows), np.empty(len(rows), dtype=np.int32)
            n_runs = runs_of_column(rows, run_rows, starts)
            slots = np.empty(n_runs, dtype=np.int64)
            slots_of_runs(run_rows[:n_runs], wanted, slots)
            starts = starts[:n_runs].copy()
            if count_runs(slots, starts, len(rows), counts):
                found.append((slots, starts, names, values))
        begin = np.zeros(len(wanted) + 1, dtype=np.int64)
        np.cumsum(counts, out=begin[1:])
        indices = new_array(int(begin[-1]), np.int32)
        data = new_array(int(begin[-1]), self.dtype)
        cursor = begin[:-1].copy()
        for slots, starts, names, values in found:
            out = cursor, indices, bits(data)
            bad = place_runs(slots, starts, names, bits(values), columns.lookup, *out)
            if bad >= 0:
                raise StoreCorrupt(
                    f"{self._where}: rows {wanted[0]} to {wanted[-1]} (soma_joinid) have a value "
                    f"for column {names[bad]}; there are {len(columns.lookup)} columns."
                )
        return packed(begin, cursor, indices, data, columns.n_genes)

    def _entries(
        self, wanted: np.ndarray, columns: ColumnMap
    ) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Rows, columns and values of the entries of wanted rows and of some between them."""
        used = np.flatnonzero(columns.lookup >= 0)
        if not len(used):
            return
        across = slice(int(used[0]), int(used[-1]))
        near = self.chunk_rows(self.n_stored / self._row_span(), self._row_span())
        cuts = np.flatnonzero(np.diff(wanted) > near) + 1
        for rows in np.split(wanted, cuts):
            what = f"rows {rows[0]} to {rows[-1]} (soma_joinid)"
            with damage_of(str(self._array.uri), self._where, what):
                down = slice(int(rows[0]), int(rows[-1]))
                tables = self._array.read((down, across)).tables()
                for table in tables:
                    for batch in table.to_batches():
                        yield tuple(_column(batch, name) for name in _COLUMNS)  # type: ignore[misc]


_COLUMNS = ("soma_dim_0", "soma_dim_1", "soma_data")


def _column(batch: pa.RecordBatch, name: str) -> np.ndarray:
    return batch.column(name).to_numpy()


class DenseSoma:
    """A ``DenseNDArray``; zeros are dropped, NaN stays."""

    encoding = "dense"
    n_stored = None

    def __init__(self, array: Any, where: str) -> None:
        self._array, self._where = array, where
        self.dtype = np.dtype(array.schema.field("soma_data").type.to_pandas_dtype())
        self.n_columns = _n_columns(array)

    def chunk_rows(self, entries_per_row: float, n_rows: int) -> int:
        """Rows of a tile."""
        dims = json.loads(self._array.schema_config_options().dims)
        return max(1, min(int(dims["soma_dim_0"]["tile"]), n_rows))

    def read(self, wanted: np.ndarray, columns: ColumnMap) -> CsrRows:
        """Rows with the given identifiers (int64, ascending, unique)."""
        parts = [csr_of_dense(block_ng) for block_ng in self._blocks(wanted, columns)]
        return CsrRows.concatenate(parts) if parts else empty_rows(columns.n_genes, self.dtype)

    def read_dense(self, wanted: np.ndarray, columns: ColumnMap) -> np.ndarray:
        """The same rows as an array."""
        empty = np.zeros((0, columns.n_genes), dtype=self.dtype)
        return np.concatenate([empty, *self._blocks(wanted, columns)])

    def _blocks(self, wanted: np.ndarray, columns: ColumnMap) -> Iterator[np.ndarray]:
        genes = np.empty(columns.n_genes, dtype=np.int64)
        used = np.flatnonzero(columns.lookup >= 0)
        genes[columns.lookup[used]] = used
        limit = max(1, _GROUP_BYTES // max(1, self.n_columns * self.dtype.itemsize))
        start = 0
        while start < len(wanted):
            # As far as the rows between the first and the last fit.
            stop = int(np.searchsorted(wanted, wanted[start] + limit))
            rows = wanted[start:stop]
            what = f"rows {rows[0]} to {rows[-1]} (soma_joinid)"
            with damage_of(str(self._array.uri), self._where, what):
                down = slice(int(rows[0]), int(rows[-1]))
                read_ng = self._array.read((down, slice(None))).to_numpy()
            yield read_ng[rows - rows[0]][:, genes]
            start = stop


def column_map(joinids: np.ndarray, n_columns: int, where: str) -> ColumnMap:
    """Genes in the order of ``joinids``, the columns of an array that belong to them."""
    size = max(n_columns, int(joinids.max(initial=-1)) + 1)
    if size > _MOST_COLUMNS:
        raise UnsupportedStore(
            f"{where}: genes have identifiers up to {size}; at most {_MOST_COLUMNS} are supported."
        )
    lookup = np.full(size, -1, dtype=np.int32)
    lookup[joinids] = np.arange(len(joinids), dtype=np.int32)
    is_ascending = len(joinids) < 2 or int(np.diff(joinids).min()) > 0
    return ColumnMap(lookup, len(joinids), is_ascending)
