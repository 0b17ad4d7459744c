"""Tables (obs, var, obsm data frames) of an AnnData on disk, by columns and row ranges.

Knows all encodings that anndata 0.7 to 0.12 write: numbers, booleans, text, categoricals (also
the old form with ``__categories``), and pandas' nullable types.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import pandas as pd

from scvi_dist.data.on_disk.layout import ElementTree, StoredArray, as_text
from scvi_dist.data.spans import expand, span, total_length
from scvi_dist.errors import FieldNotFound, StoreCorrupt, UnsupportedStore, did_you_mean

_NULLABLE = ("nullable-integer", "nullable-boolean", "nullable-string-array")
_KIND_OF_DTYPE = {
    "b": "bool",
    **dict.fromkeys("iuf", "number"),
    **dict.fromkeys("OSUT", "string"),
}


class Column(Protocol):
    """One column of a table."""

    @property
    def kind(self) -> str:
        """``category``, ``string``, ``number`` or ``bool``."""

    @property
    def length(self) -> int: ...

    @property
    def arrays(self) -> tuple[str, ...]:
        """Paths of what it is stored in."""

    def read(self, spans: np.ndarray) -> Any:
        """Values in ascending spans of rows, as pandas takes them: (extension) arrays."""


@dataclass(frozen=True)
class PlainColumn:
    """Numbers, booleans or text; one array."""

    array: StoredArray
    path: str

    @property
    def kind(self) -> str:
        return _KIND_OF_DTYPE[self.array.dtype.kind]

    @property
    def length(self) -> int:
        return self.array.shape[0]

    @property
    def arrays(self) -> tuple[str, ...]:
        return (self.path,)

    def read(self, spans: np.ndarray) -> Any:
        values = self.array.read(spans)
        return as_text(values) if self.kind == "string" else values


@dataclass(frozen=True)
class MaskedColumn:
    """Values with a mask of what is missing: pandas' nullable types; text has ``None``."""

    values: StoredArray
    mask: StoredArray
    path: str

    @property
    def kind(self) -> str:
        return _KIND_OF_DTYPE[self.values.dtype.kind]

    @property
    def length(self) -> int:
        return self.values.shape[0]

    @property
    def arrays(self) -> tuple[str, ...]:
        return f"{self.path}/values", f"{self.path}/mask"

    def read(self, spans: np.ndarray) -> Any:
        values = self.values.read(spans)
        missing = self.mask.read(spans).astype(bool)
        if self.kind == "string":
            text = as_text(values).copy()
            text[missing] = None
            return text
        if self.kind == "bool":
            return pd.arrays.BooleanArray(values.astype(bool), missing)
        if values.dtype.kind == "f":
            return pd.arrays.FloatingArray(values, missing)
        return pd.arrays.IntegerArray(values, missing)


@dataclass(frozen=True)
class CategoricalColumn:
    """Codes and categories; opened when they are first read."""

    tree: ElementTree
    path: str
    code_path: str
    category_path: str
    attributes: Mapping[str, Any]

    kind = "category"

    @property
    def where(self) -> str:
        return self.tree.where

    @cached_property
    def codes(self) -> StoredArray:
        return self.tree.array(self.code_path)

    @cached_property
    def category_column(self) -> Column:
        labels = column_at(self.tree, self.category_path)
        if labels is None:
            raise UnsupportedStore(
                f"{self.where}: the categories of {self.path} have an encoding that is not read."
            )
        return labels

    @property
    def length(self) -> int:
        return self.codes.shape[0]

    @property
    def arrays(self) -> tuple[str, ...]:
        return (self.code_path, *self.category_column.arrays)

    @cached_property
    def categories(self) -> pd.Index:
        """All categories, in the store's order."""
        values = self.category_column.read(span(0, self.category_column.length))
        text = self.category_column.kind == "string"
        index = pd.Index(values, dtype=object if text else None)
        # pandas finds this out when it is first asked, and wrongly if two threads ask at once.
        _ = index.is_unique
        return index

    def read(self, spans: np.ndarray) -> pd.Categorical:
        codes = self.codes.read(spans)
        n = len(self.categories)
        if len(codes) and (int(codes.min()) < -1 or int(codes.max()) >= n):
            place = int(np.argmax((codes < -1) | (codes >= n)))
            raise StoreCorrupt(
                f"{self.where}: {self.path} has code {codes[place]} in row {expand(spans)[place]}, "
                f"but only {n} categories."
            )
        try:
            ordered = bool(self.attributes.get("ordered", False))
            return pd.Categorical.from_codes(codes, self.categories, ordered=ordered)
        except ValueError as error:
            raise StoreCorrupt(f"{self.where}: categories of {self.path}: {error}") from error


def column_at(tree: ElementTree, path: str) -> Column | None:
    """The column stored at a path; ``None`` if it is of a kind that is not read."""
    attributes = tree.attributes(path)
    if tree.kind(path) == "array":
        if "categories" in attributes:
            return _legacy_categorical(tree, path, str(attributes["categories"]))
        array = tree.array(path)
        readable = len(array.shape) == 1 and array.dtype.kind in _KIND_OF_DTYPE
        return PlainColumn(array, path) if readable else None
    names = set(tree.children(path))
    if {"codes", "categories"} <= names:
        return CategoricalColumn(tree, path, f"{path}/codes", f"{path}/categories", attributes)
    if {"values", "mask"} <= names and attributes.get("encoding-type") in _NULLABLE:
        values = tree.array(f"{path}/values")
        return MaskedColumn(values, tree.array(f"{path}/mask"), path)
    return None


def _legacy_categorical(tree: ElementTree, path: str, reference: str) -> Column:
    """anndata 0.7: an array of codes with an attribute that leads to its categories."""
    target = reference.strip("/")
    if tree.kind(target) is None:  # Zarr: relative to the table, not to the root.
        target = f"{path.rpartition('/')[0]}/{target}"
    return CategoricalColumn(tree, path, path, target, tree.attributes(target))


class TableElement:
    """A data frame on disk: its index and its columns, read by row ranges."""

    def __init__(self, tree: ElementTree, path: str) -> None:
        self.tree = tree
        self.path = path
        if tree.kind(path) != "group":
            seen = "a compound array (anndata before 0.7)" if tree.kind(path) else "nothing"
            raise UnsupportedStore(
                f"{tree.where}: expected a table at {path}, found {seen}. Read it with a version "
                "of anndata that knows it and write it again."
            )
        attributes = tree.attributes(path)
        index = str(attributes.get("_index") or ("_index" if "_index" in self._names else "index"))
        found = column_at(tree, f"{path}/{index}") if index in self._names else None
        if found is None:
            raise StoreCorrupt(
                f"{tree.where}: {path} names {index!r} as its index, which it does not have."
            )
        self._index = found
        order = [str(name) for name in attributes.get("column-order", ())]
        rest = sorted(self._names - set(order) - {index, "__categories"})
        self._order = [name for name in order if name in self._names] + rest
        self._columns: dict[str, Column | None] = {}

    @cached_property
    def _names(self) -> set[str]:
        return set(self.tree.children(self.path))

    @property
    def n_rows(self) -> int:
        return self._index.length

    @property
    def index_arrays(self) -> tuple[str, ...]:
        return self._index.arrays

    def index(self, spans: np.ndarray | None = None) -> np.ndarray:
        """Row names (of ascending spans of rows), object array of str."""
        values = self._index.read(span(0, self.n_rows) if spans is None else spans)
        names = np.asarray(values, dtype=object)
        return names if self._index.kind == "string" else names.astype(str).astype(object)

    @cached_property
    def kinds(self) -> dict[str, str]:
        """Column -> kind, in the table's order; columns of other kinds are left out."""
        columns = {name: self._column(name) for name in self._order}
        return {name: column.kind for name, column in columns.items() if column is not None}

    def column(self, name: str) -> Column:
        """A column. Raises :class:`FieldNotFound` with the nearest name."""
        column = self._column(name) if name in self._order else None
        if column is None:
            unread = name in self._order
            raise FieldNotFound(
                f"{self.tree.where}: column {name!r} of {self.path} has an encoding that is not "
                "read."
                if unread
                else f"{self.tree.where}: {self.path} has no column {name!r}; "
                f"{did_you_mean(name, self.kinds)}"
            )
        if column.length != self.n_rows:
            raise StoreCorrupt(
                f"{self.tree.where}: column {name!r} of {self.path} has {column.length} values "
                f"for {self.n_rows} rows."
            )
        return column

    def _column(self, name: str) -> Column | None:
        if name not in self._columns:
            self._columns[name] = column_at(self.tree, f"{self.path}/{name}")
        return self._columns[name]

    def read(self, columns: Sequence[str], spans: np.ndarray) -> pd.DataFrame:
        """Columns for ascending spans of rows, with a default index."""
        index = pd.RangeIndex(total_length(spans))
        series = {
            name: pd.Series(
                self.column(name).read(spans),
                index=index,
                dtype=object if self.column(name).kind == "string" else None,
            )
            for name in columns
        }
        return pd.DataFrame(series, index=index, columns=list(columns))
