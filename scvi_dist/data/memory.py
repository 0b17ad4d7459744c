"""An AnnData in this process's memory, as a store."""

import hashlib
import json
import uuid
import zlib
from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

import numpy as np
import pandas as pd
from scipy import sparse

from scvi_dist.batch import CsrRows
from scvi_dist.data.on_disk.matrix import CsrMatrix, DenseMatrix
from scvi_dist.data.spans import Range, expand, in_order, span, spans_of
from scvi_dist.data.store import StorageFacts, Store, StoreLocator
from scvi_dist.errors import (
    FieldNotFound,
    SchemaMismatch,
    ScviDistError,
    StoreError,
    UnsupportedStore,
    did_you_mean,
)

if TYPE_CHECKING:
    from anndata import AnnData
    from mudata import MuData

_SCHEME = "ram://"
_HASHED_BYTES = 256 << 20
_HASHED_BLOCK = 64 << 10
_KIND_OF_INFERRED = {
    "string": "string",
    "boolean": "bool",
    "integer": "number",
    "floating": "number",
    "mixed-integer-float": "number",
    "empty": "string",
}

_KNOWN: "WeakValueDictionary[str, AnnData | MuData]" = WeakValueDictionary()
"""What locators of this process refer to, as long as somebody holds it."""


def open_memory(locator: StoreLocator) -> Store:
    """The store of a locator that was made in this very process."""
    data = _KNOWN.get(locator.url.removeprefix(_SCHEME))
    if data is None:
        raise StoreError(
            "the data are an AnnData or a MuData in the memory of another process (or it was "
            "deleted), where this process cannot read. Write it with "
            "scvi_dist.data.write_zarr first and use the path."
        )
    if not hasattr(data, "mod"):
        return MemoryStore(data, locator.layer)
    from scvi_dist.data.multimodal.mudata_memory import open_in_memory  # it builds on this file

    return open_in_memory(data, locator.layer, dict(locator.options))


def url_of(data: "AnnData | MuData") -> str:
    """What a locator calls it, in this process only."""
    for token, known in list(_KNOWN.items()):
        if known is data:
            return _SCHEME + token
    token = uuid.uuid4().hex
    _KNOWN[token] = data
    return _SCHEME + token


class ArrayInMemory:
    """A numpy array that reads like one on disk; what is read is a copy."""

    chunk_rows = 1

    def __init__(self, values: np.ndarray) -> None:
        self._values = values
        self.shape = values.shape
        self.dtype = values.dtype

    def read(self, spans: np.ndarray, dtype: Any = None) -> np.ndarray:
        """Members of ascending spans along the first axis."""
        if len(spans) == 1:
            start, stop = spans[0].tolist()
            return self._values[start:stop].astype(dtype or self.dtype, copy=True)
        parts = [self._values[start:stop] for start, stop in spans.tolist()]
        empty = np.zeros((0, *self.shape[1:]), dtype=self.dtype)
        return np.concatenate(parts or [empty], dtype=dtype or self.dtype)


class MemoryStore(Store):
    """One matrix of an AnnData in memory. Its locator works in this process only.

    The matrix is the one that the AnnData had when the store was made; a CSC matrix is converted.
    """

    def __init__(self, adata: "AnnData", layer: str | None = None) -> None:
        self._adata = adata
        self.locator = StoreLocator(kind="memory", url=url_of(adata), layer=layer)
        self._where = f"AnnData in memory ({adata.n_obs} x {adata.n_vars})"
        self._matrix, self._buffers = self._open(layer)

    @property
    def adata(self) -> "AnnData":
        """What it looks at."""
        return self._adata

    def _open(self, layer: str | None) -> tuple[CsrMatrix | DenseMatrix, list[np.ndarray]]:
        values, name = self._values_of(layer)
        where = f"{self._where}: {name}"
        if sparse.issparse(values):
            rows = values if values.format == "csr" else values.tocsr()
            buffers = [rows.indptr, rows.indices, rows.data]
            indptr, indices, data = (ArrayInMemory(values) for values in buffers)
            return CsrMatrix(where, rows.shape, indptr, indices, data), buffers
        if isinstance(values, np.ndarray) and values.ndim == 2:
            dense_ng = np.asarray(values)
            return DenseMatrix(where, ArrayInMemory(dense_ng)), [dense_ng]
        raise UnsupportedStore(
            f"{where} is a {type(values).__module__}.{type(values).__name__}; expected a scipy "
            "CSR matrix or a numpy array. Convert it, or write the AnnData and use the path."
        )

    def _values_of(self, layer: str | None) -> tuple[Any, str]:
        if layer is None:
            if self._adata.X is None:
                have = ", ".join(self.layers) or "-"
                raise FieldNotFound(f"{self._where} has no X; open one of its layers: {have}.")
            return self._adata.X, "X"
        if layer not in self.layers:
            raise FieldNotFound(
                f"{self._where} has no layer {layer!r}; {did_you_mean(layer, self.layers)}"
            )
        if layer == "raw":
            return self._adata.raw.X, "raw.X"
        return self._adata.layers[layer], f"layers[{layer!r}]"

    @property
    def n_obs(self) -> int:
        return int(self._matrix.shape[0])

    @property
    def n_vars(self) -> int:
        return int(self._matrix.shape[1])

    @cached_property
    def var_names(self) -> np.ndarray:
        owner = self._adata.raw if self.locator.layer == "raw" else self._adata
        return _as_str(owner.var_names)

    @cached_property
    def obs_columns(self) -> dict[str, str]:
        kinds = {str(name): _kind_of(column) for name, column in self._adata.obs.items()}
        return {name: kind for name, kind in kinds.items() if kind is not None}

    @property
    def layers(self) -> tuple[str, ...]:
        names = sorted(str(name) for name in self._adata.layers)
        return (*names, "raw") if self._adata.raw is not None else tuple(names)

    def obs_names(self, start: int = 0, stop: int | None = None) -> np.ndarray:
        low, high = self._window(start, stop)
        return _as_str(self._adata.obs_names[low:high])

    def read_obs(
        self, columns: Sequence[str], start: int = 0, stop: int | None = None
    ) -> pd.DataFrame:
        low, high = self._window(start, stop)
        for name in columns:
            if name not in self.obs_columns:
                raise self._unread(name)
        table = self._adata.obs.iloc[low:high][list(columns)].reset_index(drop=True)
        for name in columns:
            if self.obs_columns[name] == "string":
                text = table[name].astype(object)
                table[name] = text.where(text.notna(), None)
        return table

    def _unread(self, name: str) -> ScviDistError:
        """The error for a column that there is not, or whose values are no one kind."""
        if name not in self._adata.obs.columns:
            return FieldNotFound(
                f"{self._where}: obs has no column {name!r}; {did_you_mean(name, self.obs_columns)}"
            )
        column = self._adata.obs[name]
        types = column.map(type)[column.notna()]
        others = np.flatnonzero(column.notna() & column.map(type).ne(types.iloc[0]))
        row = int(others[0]) if len(others) else 0
        seen = ", ".join(sorted({kind.__name__ for kind in types}))
        return SchemaMismatch(
            f"{self._where}: column {name!r} of obs holds values that are not of one kind that is "
            f"read ({seen}; row {row}: {column.iloc[row]!r}). Convert it, for example with "
            f"adata.obs[{name!r}] = adata.obs[{name!r}].astype(str)."
        )

    def _window(self, start: int, stop: int | None) -> tuple[int, int]:
        high = self.n_obs if stop is None else stop
        spans_of([(start, high)], self.n_obs, self._where)
        return start, high

    def read_rows(self, ranges: Sequence[Range], genes: np.ndarray | None = None) -> CsrRows:
        spans, back = in_order(spans_of(ranges, self.n_obs, self._where))
        block = self._matrix.read(spans, genes)
        return block if back is None else block.take(back)

    def rows_in_memory(self) -> CsrRows | None:
        if not isinstance(self._matrix, CsrMatrix):
            return None
        _, indices, data = self._buffers
        if data.dtype.kind not in "iuf" or data.dtype == np.float16:
            return None
        pointers = self._matrix.pointers.read(span(0, self.n_obs))[1]
        rows = CsrRows(pointers, indices, data, self.n_vars)
        self._matrix.check(rows, span(0, self.n_obs))
        return rows

    @property
    def obsm_keys(self) -> dict[str, int]:
        found: dict[str, int] = {}
        for key, values in sorted(self._adata.obsm.items()):
            is_table = isinstance(values, pd.DataFrame)
            kinds = {_kind_of(column) for _, column in values.items()} if is_table else set()
            if kinds <= {"number", "bool"} and getattr(values, "ndim", 0) in (1, 2):
                found[key] = int(values.shape[1]) if values.ndim == 2 else 1
        return found

    def obsm_columns(self, key: str) -> tuple[str, ...] | None:
        values = self._obsm(key)
        return tuple(map(str, values.columns)) if isinstance(values, pd.DataFrame) else None

    def read_uns(self, key: str) -> Any:
        if key not in self._adata.uns:
            raise FieldNotFound(
                f"{self._where}: uns has no {key!r}; {did_you_mean(key, self._adata.uns)}"
            )
        return self._adata.uns[key]

    def _obsm(self, key: str) -> Any:
        if key not in self.obsm_keys:
            raise FieldNotFound(
                f"{self._where}: obsm has no {key!r}; {did_you_mean(key, self.obsm_keys)}"
            )
        return self._adata.obsm[key]

    def read_obsm(self, key: str, ranges: Sequence[Range]) -> np.ndarray:
        values = self._obsm(key)
        rows = expand(spans_of(ranges, self.n_obs, self._where))
        if isinstance(values, pd.DataFrame):
            return values.iloc[rows].to_numpy(np.float32, na_value=np.nan)
        picked = values[rows]
        dense = picked.toarray() if sparse.issparse(picked) else np.asarray(picked)
        width = self.obsm_keys[key]
        return dense.reshape(len(rows), width).astype(np.float32, copy=False)

    @property
    def chunk_rows(self) -> int:
        return 1

    @property
    def bytes_per_cell(self) -> float:
        return 8.0 + 8.0 * self._matrix.entries_per_row

    def storage_facts(self) -> StorageFacts:
        encoding = "csr" if isinstance(self._matrix, CsrMatrix) else "dense"
        return StorageFacts(
            dtype=self._matrix.dtype.name, encoding=encoding, n_stored=self._matrix.n_stored
        )

    def digest(self) -> str:
        return self._digest

    @cached_property
    def _digest(self) -> str:
        facts = [
            self.locator.layer,
            self._matrix.facts(),
            [_checksum(values) for values in self._buffers],
            hashlib.sha256("\0".join(self.var_names).encode()).hexdigest(),
            hashlib.sha256("\0".join(self.obs_names()).encode()).hexdigest(),
        ]
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:32]


def _as_str(names: pd.Index) -> np.ndarray:
    return np.asarray(names.astype(str), dtype=object)


def _kind_of(column: pd.Series) -> str | None:
    if isinstance(column.dtype, pd.CategoricalDtype):
        return "category"
    if pd.api.types.is_bool_dtype(column.dtype):
        return "bool"
    if pd.api.types.is_numeric_dtype(column.dtype):
        return None if pd.api.types.is_complex_dtype(column.dtype) else "number"
    return _KIND_OF_INFERRED.get(pd.api.types.infer_dtype(column, skipna=True))


def _checksum(values: np.ndarray) -> int:
    """Of all bytes; of evenly spread blocks where there are very many."""
    raw = np.ravel(values, order="K").view(np.uint8).data
    if raw.nbytes <= _HASHED_BYTES:
        return zlib.crc32(raw)
    total = 0
    for start in np.linspace(0, raw.nbytes - _HASHED_BLOCK, _HASHED_BYTES // _HASHED_BLOCK):
        total = zlib.crc32(raw[int(start) : int(start) + _HASHED_BLOCK], total)
    return total
