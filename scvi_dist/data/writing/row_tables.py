"""Rows of a store on their way through files: obs, obsm and counts as Arrow tables.

Categories travel as their codes, for every table would hold the names again.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from scvi_dist.batch import CsrRows
from scvi_dist.data.store import Store
from scvi_dist.data.writing.anndata_writer import is_masked

_NAME, _OBS, _OBSM = "name", "obs:", "obsm:"


@dataclass(frozen=True)
class ObsTypes:
    """Types of the columns of obs that a table does not hold itself."""

    categories: dict[str, pd.CategoricalDtype]
    masked: frozenset[str]
    """Columns of pandas' types of integers and booleans that may be missing."""

    @staticmethod
    def of(store: Store) -> "ObsTypes":
        """Of all columns of a store."""
        empty = store.read_obs(list(store.obs_columns), 0, 0)
        types = {str(name): dtype for name, dtype in empty.dtypes.items()}
        return ObsTypes(
            {name: t for name, t in types.items() if isinstance(t, pd.CategoricalDtype)},
            frozenset(name for name, t in types.items() if is_masked(t)),
        )

    def decode(self, name: str, column: pa.ChunkedArray) -> pd.Series:
        """A column as the store gave it."""
        if name in self.categories:
            codes = column.to_numpy()
            return pd.Series(pd.Categorical.from_codes(codes, dtype=self.categories[name]))
        if name in self.masked:
            return _masked(column)
        return column.to_pandas()


def _masked(column: pa.ChunkedArray) -> pd.Series:
    missing = column.is_null().to_numpy()
    is_bool = pa.types.is_boolean(column.type)
    values = column.fill_null(False if is_bool else 0).to_numpy()
    array = pd.arrays.BooleanArray if is_bool else pd.arrays.IntegerArray
    return pd.Series(array(values, missing))


def rows_table(store: Store, start: int, stop: int) -> dict[str, pa.Array]:
    """Names, obs and obsm of rows ``start … stop - 1``, as columns."""
    columns = {_NAME: pa.array(store.obs_names(start, stop), pa.large_string())}
    frame = store.read_obs(list(store.obs_columns), start, stop)
    for name in frame.columns:
        columns[f"{_OBS}{name}"] = _encoded(frame[name])
    for key, width in store.obsm_keys.items():
        values_nk = store.read_obsm(key, [(start, stop)])
        flat = pa.array(np.ascontiguousarray(values_nk).reshape(-1), pa.float32())
        columns[f"{_OBSM}{key}"] = pa.FixedSizeListArray.from_arrays(flat, max(1, width))
    return columns


def _encoded(column: pd.Series) -> pa.Array:
    if isinstance(column.dtype, pd.CategoricalDtype):
        return pa.array(column.cat.codes.to_numpy(), pa.int32())
    if column.dtype == object or pd.api.types.is_string_dtype(column.dtype):
        return pa.array(column.to_numpy(dtype=object), pa.large_string(), from_pandas=True)
    if is_masked(column.dtype):
        return pa.array(column)
    if pd.api.types.is_extension_array_dtype(column.dtype):
        return pa.array(column.to_numpy(dtype=np.float64, na_value=np.nan))
    return pa.array(column.to_numpy())


def counts_columns(block: CsrRows, index_type: np.dtype) -> dict[str, pa.Array]:
    """The rows of a matrix as two columns of lists."""
    data = block.data.astype(np.uint8) if block.data.dtype.kind == "b" else block.data
    offsets = pa.array(block.indptr, pa.int64())
    indices = pa.array(block.indices.astype(index_type, copy=False))
    return {
        "indices": pa.LargeListArray.from_arrays(offsets, indices),
        "data": pa.LargeListArray.from_arrays(offsets, pa.array(data)),
    }


def entries_of(tables: Sequence[pa.Table], name: str, dtype: np.dtype) -> np.ndarray:
    """The members of all lists of a column, one after the other."""
    parts = [
        chunk.flatten().to_numpy(zero_copy_only=False)
        for table in tables
        for chunk in table.column(name).chunks
    ]
    parts.append(np.empty(0, dtype))
    return np.concatenate([part.astype(dtype, copy=False) for part in parts])


def lengths_of(tables: Sequence[pa.Table]) -> np.ndarray:
    """int64: entries of each row."""
    parts = [
        np.diff(chunk.offsets.to_numpy())
        for table in tables
        for chunk in table.column("indices").chunks
    ]
    return np.concatenate([*parts, np.empty(0, np.int64)]).astype(np.int64, copy=False)


class RowFiles:
    """Tables of consecutive rows, one a file, read column by column from first to last."""

    def __init__(self, starts: Sequence[int], load: Any, types: ObsTypes) -> None:
        """``load(i)`` gives the ``i``-th table; ``starts`` has one more member than tables."""
        self._starts, self._load, self._types = np.asarray(starts), load, types
        self._open: tuple[int, pa.Table] = (-1, pa.table({}))

    def names(self, start: int, stop: int) -> np.ndarray:
        """Cell names, object array."""
        return self.column(_NAME, start, stop).to_numpy()

    def obs(self, columns: Sequence[str], start: int, stop: int) -> pd.DataFrame:
        """Columns of obs."""
        found = {
            name: self._types.decode(name, self.column(f"{_OBS}{name}", start, stop))
            for name in columns
        }
        return pd.DataFrame(found, columns=list(columns))

    def obsm(self, key: str, start: int, stop: int) -> np.ndarray:
        """float32 ``[n, k]``."""
        column = self.column(f"{_OBSM}{key}", start, stop).combine_chunks()
        chunks = column.chunks if isinstance(column, pa.ChunkedArray) else [column]
        parts = [chunk.flatten().to_numpy() for chunk in chunks]
        return np.concatenate([*parts, np.empty(0, np.float32)]).reshape(stop - start, -1)

    def column(self, name: str, start: int, stop: int) -> pa.ChunkedArray:
        """Values of rows ``start … stop - 1``."""
        pieces = [table.column(name).slice(low, n) for table, low, n in self._pieces(start, stop)]
        if not pieces:
            return self._table(0).column(name).slice(0, 0)
        return pa.chunked_array(
            [chunk for piece in pieces for chunk in piece.chunks], pieces[0].type
        )

    def _pieces(self, start: int, stop: int) -> Iterator[tuple[pa.Table, int, int]]:
        first = int(np.searchsorted(self._starts, start, side="right")) - 1
        for i in range(max(0, first), len(self._starts) - 1):
            low, high = max(start, int(self._starts[i])), min(stop, int(self._starts[i + 1]))
            if low >= stop:
                return
            if low < high:
                yield self._table(i), low - int(self._starts[i]), high - low

    def _table(self, i: int) -> pa.Table:
        if self._open[0] != i:
            self._open = i, self._load(i)
        return self._open[1]


def to_stream(table: pa.Table) -> bytes:
    """A table as compressed bytes; any number of them can stand one after the other."""
    sink = pa.BufferOutputStream()
    options = pa.ipc.IpcWriteOptions(compression="lz4")
    with pa.ipc.new_stream(sink, table.schema, options=options) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()


def from_streams(content: bytes) -> list[pa.Table]:
    """The tables that :func:`to_stream` made, in order."""
    reader = pa.BufferReader(content)
    tables = []
    while reader.tell() < len(content):
        tables.append(pa.ipc.open_stream(reader).read_all())
    return tables


def table_of(columns: Mapping[str, pa.Array]) -> pa.Table:
    """A table of these columns."""
    return pa.table(dict(columns))
