"""A store that is an AnnData on disk: what h5ad and Zarr have in common."""

import hashlib
import json
from collections.abc import Sequence
from functools import cached_property

import numpy as np
import pandas as pd

from scvi_dist.batch import CsrRows
from scvi_dist.data.anndata_layout import ElementTree, find_matrix, list_layers, matrix_at
from scvi_dist.data.anndata_table import TableElement
from scvi_dist.data.matrix import open_matrix
from scvi_dist.data.spans import Range, in_order, spans_of, spans_of_rows
from scvi_dist.data.store import StorageFacts, Store, StoreLocator
from scvi_dist.errors import FieldNotFound, StoreCorrupt, UnsupportedStore, did_you_mean

_SAMPLED_NAMES = 16


class AnnDataStore(Store):
    """One matrix of an AnnData on disk, with its obs; opening reads metadata only."""

    def __init__(self, tree: ElementTree, locator: StoreLocator) -> None:
        self.locator = locator
        self._tree = tree
        self._where = tree.where
        if tree.kind("obs") is None:
            seen = ", ".join(sorted(tree.children(""))[:9])
            raise UnsupportedStore(
                f"{tree.where} does not hold an AnnData: it has no obs, only {seen or 'nothing'}."
            )
        self._element = find_matrix(tree, locator.layer)
        self._matrix = open_matrix(tree, self._element)
        self._obs = TableElement(tree, "obs")
        self._var = TableElement(tree, "raw/var" if locator.layer == "raw" else "var")
        shape = self._element.shape
        if shape != (self._obs.n_rows, self._var.n_rows):
            raise StoreCorrupt(
                f"{self._where}: {self._element.path} is {shape[0]} x {shape[1]}, but there are "
                f"{self._obs.n_rows} cells in obs and {self._var.n_rows} genes in var."
            )

    @property
    def n_obs(self) -> int:
        return self._element.shape[0]

    @property
    def n_vars(self) -> int:
        return self._element.shape[1]

    @cached_property
    def var_names(self) -> np.ndarray:
        return self._var.index()

    @cached_property
    def obs_columns(self) -> dict[str, str]:
        return self._obs.kinds

    @cached_property
    def layers(self) -> tuple[str, ...]:
        return list_layers(self._tree)

    def obs_names(self, start: int = 0, stop: int | None = None) -> np.ndarray:
        return self._obs.index(self._window(start, stop))

    def read_obs(
        self, columns: Sequence[str], start: int = 0, stop: int | None = None
    ) -> pd.DataFrame:
        return self._obs.read(columns, self._window(start, stop))

    def _window(self, start: int, stop: int | None) -> np.ndarray:
        return spans_of([(start, self.n_obs if stop is None else stop)], self.n_obs, self._where)

    def read_rows(self, ranges: Sequence[Range], genes: np.ndarray | None = None) -> CsrRows:
        spans, back = in_order(spans_of(ranges, self.n_obs, self._where))
        block = self._matrix.read(spans, genes)
        return block if back is None else block.take(back)

    @property
    def chunk_rows(self) -> int:
        return self._matrix.chunk_rows

    @property
    def bytes_per_cell(self) -> float:
        return 8.0 + 8.0 * self._matrix.entries_per_row

    # obsm

    @cached_property
    def obsm_keys(self) -> dict[str, int]:
        if self._tree.kind("obsm") != "group":
            return {}
        widths = {key: self._obsm_width(key) for key in sorted(self._tree.children("obsm"))}
        return {key: width for key, width in widths.items() if width is not None}

    def _obsm_width(self, key: str) -> int | None:
        """Number of columns; ``None`` for what is not a table of numbers."""
        path = f"obsm/{key}"
        if self._tree.kind(path) == "array":
            shape = self._tree.array(path).shape
            return {1: 1, 2: int(shape[-1])}.get(len(shape))
        if self._tree.attributes(path).get("encoding-type") == "dataframe":
            kinds = self._obsm_table(key).kinds
            return len(kinds) if set(kinds.values()) <= {"number", "bool"} else None
        try:
            return matrix_at(self._tree, path).shape[1]
        except UnsupportedStore:
            return None

    def _obsm_table(self, key: str) -> TableElement:
        return TableElement(self._tree, f"obsm/{key}")

    def obsm_columns(self, key: str) -> tuple[str, ...] | None:
        self._check_obsm(key)
        path = f"obsm/{key}"
        is_table = self._tree.attributes(path).get("encoding-type") == "dataframe"
        return tuple(self._obsm_table(key).kinds) if is_table else None

    def _check_obsm(self, key: str) -> None:
        if key not in self.obsm_keys:
            raise FieldNotFound(
                f"{self._where}: obsm has no {key!r}; {did_you_mean(key, self.obsm_keys)}"
            )

    def read_obsm(self, key: str, ranges: Sequence[Range]) -> np.ndarray:
        self._check_obsm(key)
        spans, back = in_order(spans_of(ranges, self.n_obs, self._where))
        values_nk = self._read_obsm(key, spans).astype(np.float32, copy=False)
        return values_nk if back is None else values_nk[back]

    def _read_obsm(self, key: str, spans: np.ndarray) -> np.ndarray:
        path = f"obsm/{key}"
        if self._tree.kind(path) == "array":
            array = self._tree.array(path)
            self._check_length(path, array.shape[0])
            values = array.read(spans)
            return values[:, np.newaxis] if values.ndim == 1 else values
        if self._tree.attributes(path).get("encoding-type") == "dataframe":
            return self._read_obsm_table(key, spans)
        element = matrix_at(self._tree, path)
        self._check_length(path, element.shape[0])
        return open_matrix(self._tree, element).read(spans, None).to_dense()

    def _read_obsm_table(self, key: str, spans: np.ndarray) -> np.ndarray:
        table = self._obsm_table(key)
        self._check_length(f"obsm/{key}", table.n_rows)
        return table.read(list(table.kinds), spans).to_numpy(np.float32, na_value=np.nan)

    def _check_length(self, path: str, length: int) -> None:
        if length != self.n_obs:
            raise StoreCorrupt(f"{self._where}: {path} has {length} rows for {self.n_obs} cells.")

    # facts

    def storage_facts(self) -> StorageFacts:
        return StorageFacts(
            dtype=self._matrix.dtype.name,
            encoding=self._element.encoding,
            n_stored=self._matrix.n_stored,
            size_bytes=self._tree.size_on_disk(),
        )

    def digest(self) -> str:
        return self._digest

    @cached_property
    def _digest(self) -> str:
        n = self.n_obs
        rows = np.unique(np.linspace(0, n - 1, min(n, _SAMPLED_NAMES)).astype(np.int64))
        facts = [
            self.locator.layer,
            self._matrix.facts(),
            hashlib.sha256("\0".join(self.var_names).encode()).hexdigest(),
            self._obs.index(spans_of_rows(rows)).tolist(),
            self._tree.stamp([*self._matrix.arrays, *self._obs.index_arrays]),
        ]
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:32]

    def close(self) -> None:
        self._tree.close()
