"""obs and obsm of an AnnData (or a MuData) on disk, by ranges of rows.

Axis suffixes: ``n`` cells, ``k`` columns.
"""

from collections.abc import Sequence
from functools import cached_property

import numpy as np
import pandas as pd

from scvi_dist.data.on_disk.layout import ElementTree, matrix_at
from scvi_dist.data.on_disk.matrix import open_matrix
from scvi_dist.data.on_disk.tables import TableElement
from scvi_dist.errors import FieldNotFound, StoreCorrupt, UnsupportedStore, did_you_mean


class FramesElement:
    """The tables that have a row for each cell."""

    def __init__(self, tree: ElementTree) -> None:
        self._tree = tree
        self._obs = TableElement(tree, "obs")

    @property
    def n_obs(self) -> int:
        """Cells."""
        return self._obs.n_rows

    @property
    def index_arrays(self) -> tuple[str, ...]:
        """Paths of what the cells' names are stored in."""
        return self._obs.index_arrays

    @property
    def obs_columns(self) -> dict[str, str]:
        """Column of obs -> kind."""
        return self._obs.kinds

    def obs_names(self, spans: np.ndarray) -> np.ndarray:
        """Names of the cells of ascending spans, object array of str."""
        return self._obs.index(spans)

    def read_obs(self, columns: Sequence[str], spans: np.ndarray) -> pd.DataFrame:
        """Columns of obs for ascending spans, with a default index."""
        return self._obs.read(columns, spans)

    @cached_property
    def obsm_keys(self) -> dict[str, int]:
        """Key -> number of columns."""
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
        if self._is_table(key):
            kinds = self._obsm_table(key).kinds
            return len(kinds) if set(kinds.values()) <= {"number", "bool"} else None
        try:
            return matrix_at(self._tree, path).shape[1]
        except UnsupportedStore:
            return None

    def _is_table(self, key: str) -> bool:
        return self._tree.attributes(f"obsm/{key}").get("encoding-type") == "dataframe"

    def _obsm_table(self, key: str) -> TableElement:
        return TableElement(self._tree, f"obsm/{key}")

    def obsm_columns(self, key: str) -> tuple[str, ...] | None:
        """Names of the columns; ``None`` where they have none."""
        self._check_obsm(key)
        return tuple(self._obsm_table(key).kinds) if self._is_table(key) else None

    def _check_obsm(self, key: str) -> None:
        if key not in self.obsm_keys:
            raise FieldNotFound(
                f"{self._tree.where}: obsm has no {key!r}; {did_you_mean(key, self.obsm_keys)}"
            )

    def read_obsm(self, key: str, spans: np.ndarray) -> np.ndarray:
        """float32 ``[n, k]`` for ascending spans."""
        self._check_obsm(key)
        return self._read_obsm(key, spans).astype(np.float32, copy=False)

    def _read_obsm(self, key: str, spans: np.ndarray) -> np.ndarray:
        path = f"obsm/{key}"
        if self._tree.kind(path) == "array":
            array = self._tree.array(path)
            self._check_length(path, array.shape[0])
            values = array.read(spans)
            return values[:, np.newaxis] if values.ndim == 1 else values
        if self._is_table(key):
            table = self._obsm_table(key)
            self._check_length(path, table.n_rows)
            return table.read(list(table.kinds), spans).to_numpy(np.float32, na_value=np.nan)
        element = matrix_at(self._tree, path)
        self._check_length(path, element.shape[0])
        return open_matrix(self._tree, element).read(spans, None).to_dense()

    def _check_length(self, path: str, length: int) -> None:
        if length != self.n_obs:
            raise StoreCorrupt(
                f"{self._tree.where}: {path} has {length} rows for {self.n_obs} cells."
            )
