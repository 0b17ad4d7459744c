"""Writing AnnData's on-disk layout piece by piece, into Zarr v3 or h5ad, in bounded memory.

``anndata`` itself writes whole objects. Here arrays grow while rows stream through; what comes out
is read by ``anndata.read_zarr`` and ``anndata.read_h5ad``. The root is marked as an AnnData last,
so that half a copy is never taken for a store.

Source: https://anndata.readthedocs.io/en/stable/fileformat-prose.html
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from scvi_dist.batch import CsrRows
from scvi_dist.data.categories import code_dtype
from scvi_dist.data.writing.containers import PLAIN, Codec, Container
from scvi_dist.data.writing.content import pointer_type

_SHARD_ENTRIES = 1 << 22
_CHUNK_BYTES = 16 << 20
_FRAME_CHUNK_ROWS = 1 << 16
_MAPPINGS = ("layers", "obsm", "varm", "obsp", "varp", "uns")


@dataclass(frozen=True, kw_only=True, slots=True)
class MatrixLayout:
    """How the entries of a CSR matrix lie on disk."""

    value_type: np.dtype
    index_type: np.dtype
    chunk_entries: int
    """Entries in a chunk: the least that a reader decodes."""
    pointer_type: np.dtype = np.dtype(np.int64)  # noqa: RUF009 (immutable)
    """Of the row pointers: wide enough for the number of entries."""
    codec: Codec = PLAIN

    @property
    def shard_entries(self) -> int:
        """Entries in a shard: a file of many chunks, written in one go."""
        return self.chunk_entries * max(1, _SHARD_ENTRIES // self.chunk_entries)


def plain_layout(
    value_type: Any, n_vars: int, chunk_entries: int, most_entries: int
) -> MatrixLayout:
    """The types that anndata writes; ``most_entries`` is what the matrix has at most."""
    return MatrixLayout(
        value_type=np.dtype(value_type),
        index_type=pointer_type(n_vars),
        chunk_entries=chunk_entries,
        pointer_type=pointer_type(most_entries),
    )


def make_csr(
    container: Container,
    path: str,
    shape: tuple[int, int],
    layout: MatrixLayout,
    n_entries: int = 0,
) -> tuple[Any, Any, Any]:
    """The arrays ``data``, ``indices`` and ``indptr`` of a new CSR matrix, to be filled."""
    container.group(path, "csr_matrix", "0.1.0", shape=[int(n) for n in shape])

    def entries(name: str, dtype: np.dtype) -> Any:
        return container.array(
            f"{path}/{name}",
            (n_entries,),
            dtype,
            (layout.chunk_entries,),
            (layout.shard_entries,),
            layout.codec,
        )

    length = shape[0] + 1
    rows = _frame_chunks(length)
    indptr = container.array(f"{path}/indptr", (length,), layout.pointer_type, rows)
    return entries("data", layout.value_type), entries("indices", layout.index_type), indptr


class CsrWriter:
    """A CSR matrix that grows by rows; entries are written in whole chunks.

    Parameters
    ----------
    container, path
        Where it goes.
    shape
        Cells and genes; just as many cells must be appended.
    layout
        Types of the entries, chunks and compression.
    """

    def __init__(
        self, container: Container, path: str, shape: tuple[int, int], layout: MatrixLayout
    ) -> None:
        self._n_obs = shape[0]
        self._shard = layout.shard_entries
        *arrays, self._indptr = make_csr(container, path, shape, layout)
        self._arrays = tuple(arrays)
        self._waiting: list[CsrRows] = []
        self._n_waiting = self._n_written = self._n_rows = 0

    def append(self, block: CsrRows) -> None:
        """The next rows."""
        first = self._n_written + self._n_waiting
        stop = self._n_rows + block.n_cells
        # The zero in front is written with the first rows.
        skip = 0 if self._n_rows == 0 else 1
        self._indptr[self._n_rows + skip : stop + 1] = block.indptr[skip:] + first
        self._n_rows = stop
        self._waiting.append(block)
        self._n_waiting += int(block.indptr[-1])
        if self._n_waiting >= self._shard:
            self._write(self._n_waiting - self._n_waiting % self._shard)

    def _write(self, n: int) -> None:
        """Write the first ``n`` of the waiting entries, keep the others."""
        if not self._waiting:
            return
        block = CsrRows.concatenate(self._waiting)
        written = self._n_written + n
        for array, values in zip(self._arrays, (block.data, block.indices), strict=True):
            array.resize((written,))
            array[self._n_written : written] = values[:n].astype(array.dtype, copy=False)
        self._n_written, self._n_waiting = written, self._n_waiting - n
        rest = np.array([0, self._n_waiting], dtype=np.int64)
        kept = CsrRows(rest, block.indices[n:].copy(), block.data[n:].copy(), block.n_genes)
        self._waiting = [kept] if self._n_waiting else []

    def finish(self) -> int:
        """Write what waits; the number of entries."""
        if self._n_rows != self._n_obs:
            raise ValueError(f"{self._n_obs} rows were announced, {self._n_rows} were given.")
        if self._n_obs == 0:
            self._indptr[0:1] = 0
        self._write(self._n_waiting)
        return self._n_written


ReadFrame = Callable[[list[str], int, int], pd.DataFrame]
"""Columns and a range of rows -> the frame of those rows."""


def write_frame(
    container: Container,
    path: str,
    n_rows: int,
    columns: Sequence[str],
    read: ReadFrame,
    read_names: Callable[[int, int], Sequence[str] | np.ndarray],
) -> None:
    """A DataFrame, ``obs`` or ``var``, read in pieces. Categories stay categories.

    Text with missing values becomes categorical, for AnnData's arrays of text have none.
    """
    index = "_index" if "_index" not in columns else "__index"
    container.group(path, "dataframe", "0.2.0", _index=index, **{"column-order": list(columns)})
    names = container.text(f"{path}/{index}", n_rows, _frame_chunks(n_rows))
    for start, stop in pieces(n_rows, _FRAME_CHUNK_ROWS):
        names[start:stop] = np.asarray(read_names(start, stop), dtype=object)
    for column in columns:

        def read_column(start: int, stop: int, column: str = column) -> pd.Series:
            return read([column], start, stop)[column]

        _write_column(container, f"{path}/{column}", n_rows, read_column)


def _write_column(
    container: Container, path: str, n_rows: int, read: Callable[[int, int], pd.Series]
) -> None:
    dtype = read(0, min(1, n_rows)).dtype
    if isinstance(dtype, pd.CategoricalDtype):
        levels = dtype.categories
        _write_codes(
            container, path, levels, bool(dtype.ordered), n_rows, lambda a, b: read(a, b).cat.codes
        )
    elif is_masked(dtype):
        _write_masked(container, path, dtype.numpy_dtype, n_rows, read)
    elif pd.api.types.is_numeric_dtype(dtype):
        # pd.NA among fractions becomes NaN.
        stored = np.dtype(np.float64 if pd.api.types.is_extension_array_dtype(dtype) else dtype)
        array = container.numbers(path, (n_rows,), stored, _frame_chunks(n_rows))
        for start, stop in pieces(n_rows, _FRAME_CHUNK_ROWS):
            array[start:stop] = read(start, stop).to_numpy(dtype=stored)
    else:
        text = (read(start, stop) for start, stop in pieces(n_rows, _FRAME_CHUNK_ROWS))
        distinct = _distinct_if_missing(text)
        if distinct is not None:
            levels = pd.Index(distinct, dtype=object)
            _write_codes(
                container, path, levels, False, n_rows, lambda a, b: levels.get_indexer(read(a, b))
            )
            return
        array = container.text(path, n_rows, _frame_chunks(n_rows))
        for start, stop in pieces(n_rows, _FRAME_CHUNK_ROWS):
            array[start:stop] = read(start, stop).astype(str).to_numpy(dtype=object)


def is_masked(dtype: Any) -> bool:
    """Whether it is one of pandas' types of integers or booleans that may be missing."""
    return pd.api.types.is_extension_array_dtype(dtype) and getattr(
        dtype, "numpy_dtype", np.dtype(object)
    ).kind in ("i", "u", "b")


def _write_masked(
    container: Container,
    path: str,
    dtype: np.dtype,
    n_rows: int,
    read: Callable[[int, int], pd.Series],
) -> None:
    kind = "nullable-boolean" if dtype.kind == "b" else "nullable-integer"
    container.group(path, kind, "0.1.0")
    values = container.numbers(f"{path}/values", (n_rows,), dtype, _frame_chunks(n_rows))
    mask = container.numbers(f"{path}/mask", (n_rows,), np.bool_, _frame_chunks(n_rows))
    for start, stop in pieces(n_rows, _FRAME_CHUNK_ROWS):
        column = read(start, stop)
        values[start:stop] = column.to_numpy(dtype=dtype, na_value=dtype.type(0))
        mask[start:stop] = column.isna().to_numpy()


def _write_codes(
    container: Container,
    path: str,
    levels: pd.Index,
    ordered: bool,
    n_rows: int,
    read_codes: Callable[[int, int], Any],
) -> None:
    container.group(path, "categorical", "0.2.0", ordered=ordered)
    values = levels.to_numpy()
    if values.dtype.kind in "biuf":
        array = container.numbers(
            f"{path}/categories", values.shape, values.dtype, _frame_chunks(len(values))
        )
        array[...] = values
    else:
        text = container.text(f"{path}/categories", len(values), _frame_chunks(len(values)))
        text[...] = values.astype(object)
    dtype = code_dtype(len(levels))
    codes = container.numbers(f"{path}/codes", (n_rows,), dtype, _frame_chunks(n_rows))
    for start, stop in pieces(n_rows, _FRAME_CHUNK_ROWS):
        codes[start:stop] = np.asarray(read_codes(start, stop)).astype(dtype)


def _frame_chunks(n: int) -> tuple[int]:
    return (max(1, min(n, _FRAME_CHUNK_ROWS)),)


def _distinct_if_missing(pieces_of_text: Iterable[pd.Series]) -> list[str] | None:
    """The distinct texts, sorted, if some are missing; else None."""
    distinct: set[str] = set()
    is_missing = False
    for text in pieces_of_text:
        known = text.dropna()
        is_missing = is_missing or len(known) < len(text)
        distinct.update(known.astype(str).unique())
    return sorted(distinct) if is_missing else None


def pieces(n: int, size: int) -> list[tuple[int, int]]:
    """``0 … n - 1`` in ranges of ``size``, the last one maybe shorter."""
    return [(start, min(start + size, n)) for start in range(0, n, size)]


def start_anndata(container: Container) -> None:
    """Make the groups that every AnnData has, empty."""
    for name in _MAPPINGS:
        container.group(name, "dict", "0.1.0")


def finish_anndata(container: Container, **attributes: Any) -> None:
    """Mark the root as an AnnData: from now on it is complete."""
    container.group("", "anndata", "0.1.0", **attributes)


def write_names(container: Container, path: str, names: Sequence[str] | np.ndarray) -> None:
    """A DataFrame without columns: ``var`` with nothing but its names."""
    write_frame(container, path, len(names), [], lambda *_: pd.DataFrame(), lambda a, b: names[a:b])


def rows_in_chunk(row_nbytes: int, limit: int) -> int:
    """The largest divisor of ``limit`` rows that make a chunk of at most 16 MB; at least 1."""
    most = max(1, min(limit, _CHUNK_BYTES // max(row_nbytes, 1)))
    return next(rows for rows in range(most, 0, -1) if limit % rows == 0)
