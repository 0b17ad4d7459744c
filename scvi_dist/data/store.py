"""The contract between scvi_dist and anything that holds cells.

A :class:`Store` is **one** matrix of counts (X, a layer or raw) with the obs table beside it.
What goes to another process is its :class:`StoreLocator`; open handles never travel.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

import numpy as np
import pandas as pd

from scvi_dist.batch import CsrRows
from scvi_dist.data.filesystem import redact_url
from scvi_dist.data.spans import Range, spans_of_rows
from scvi_dist.errors import FieldNotFound, UnsupportedStore

__all__ = ["OPENERS", "Range", "StorageFacts", "Store", "StoreLocator", "freeze", "ranges_of"]


class FrozenMapping(tuple[tuple[str, Any], ...]):
    """Name and value pairs of a mapping; hashable, unlike a dict."""


def freeze(value: Any) -> Any:
    """An option's value in a form that can be hashed; :func:`thaw` gives it back."""
    if isinstance(value, Mapping):
        return FrozenMapping((name, freeze(member)) for name, member in sorted(value.items()))
    return tuple(freeze(member) for member in value) if isinstance(value, list) else value


def thaw(value: Any) -> Any:
    """What :func:`freeze` was given."""
    if isinstance(value, FrozenMapping):
        return {name: thaw(member) for name, member in value}
    return [thaw(member) for member in value] if isinstance(value, tuple) else value


@dataclass(frozen=True, kw_only=True, slots=True)
class StoreLocator:
    """Where a store is and how to open it again, in any process. Picklable; holds no secret."""

    kind: str
    """Key of ``OPENERS``."""
    url: str
    """A local path or any fsspec URL; for a view, the URL of what it looks at."""
    layer: str | None = None
    """``None`` is X, ``"raw"`` is raw.X, anything else is the layer of that name."""
    storage_options: tuple[tuple[str, Any], ...] = ()
    """fsspec options that are not secrets (those come from the environment)."""
    parts: tuple["StoreLocator", ...] = ()
    """What a view or a collection is made of."""
    options: tuple[tuple[str, Any], ...] = field(default=())
    """What else the opener of this kind needs; JSON values."""

    def open(self) -> "Store":
        """A store with handles of its own."""
        if self.kind not in OPENERS:
            raise UnsupportedStore(
                f"no reader for stores of kind {self.kind!r} ({self.redacted_url}); "
                f"known kinds: {', '.join(sorted(OPENERS))}."
            )
        module, name = OPENERS[self.kind].split(":")
        opener: Callable[[StoreLocator], Store] = getattr(import_module(module), name)
        return opener(self)

    def fsspec_options(self) -> dict[str, Any]:
        """The storage options as fsspec takes them."""
        return {name: thaw(value) for name, value in self.storage_options}

    @property
    def redacted_url(self) -> str:
        """The URL without user name, password or query; safe to log."""
        return redact_url(self.url)

    def __repr__(self) -> str:
        layer = "" if self.layer is None else f", layer={self.layer!r}"
        parts = f", {len(self.parts)} parts" if self.parts else ""
        return f"StoreLocator({self.kind}, {self.redacted_url!r}{layer}{parts})"


OPENERS: dict[str, str] = {
    "h5ad": "scvi_dist.data.on_disk.h5ad:open_h5ad",
    "h5mu": "scvi_dist.data.on_disk.h5ad:open_h5ad",
    "zarr": "scvi_dist.data.on_disk.zarr:open_zarr",
    "soma": "scvi_dist.data.soma.soma_store:open_soma",
    "memory": "scvi_dist.data.memory:open_memory",
    "collection": "scvi_dist.data.joined.collection:open_collection",
    "subset": "scvi_dist.data.views.subset:open_subset",
    "obs_column": "scvi_dist.data.views.obs_column:open_obs_column",
    "padded": "scvi_dist.data.joined.padded:open_padded",
}
"""Kind of store -> ``module:function`` that takes a locator; loaded on first use."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StorageFacts:
    """The stored form of a matrix; ``None`` where it is not known without reading."""

    dtype: str | None = None
    """numpy name of the values' type."""
    encoding: str | None = None
    """``csr`` or ``dense``."""
    n_stored: int | None = None
    """Stored entries."""
    size_bytes: int | None = None
    """Bytes that the whole store takes (all layers)."""


class Store(ABC):
    """One matrix of counts, cells x genes, with its obs table.

    Reading methods are safe to call from several threads. Nothing is ever written.
    ``scvi_dist.testing.StoreConformance`` is the suite that every adapter passes.
    """

    locator: StoreLocator

    @property
    @abstractmethod
    def n_obs(self) -> int:
        """Cells."""

    @property
    @abstractmethod
    def n_vars(self) -> int:
        """Genes of this matrix."""

    @property
    def shape(self) -> tuple[int, int]:
        return self.n_obs, self.n_vars

    @property
    @abstractmethod
    def var_names(self) -> np.ndarray:
        """Gene names, object ``[n_vars]`` of str, in the order of the matrix's columns."""

    @property
    @abstractmethod
    def obs_columns(self) -> dict[str, str]:
        """Column of obs -> one of ``category string number bool``."""

    @property
    @abstractmethod
    def layers(self) -> tuple[str, ...]:
        """What else could be opened instead of X: names of layers, and ``raw`` if present."""

    @property
    @abstractmethod
    def obsm_keys(self) -> dict[str, int]:
        """Key of obsm -> number of columns."""

    @abstractmethod
    def obs_names(self, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Cell names of rows ``start … stop - 1``, object array of str."""

    @abstractmethod
    def read_obs(
        self, columns: Sequence[str], start: int = 0, stop: int | None = None
    ) -> pd.DataFrame:
        """Columns of obs for rows ``start … stop - 1``; default integer index.

        Categorical columns are pandas categoricals with *all* the store's categories, in the
        store's order. Raises :class:`FieldNotFound` with the nearest name.
        """

    @abstractmethod
    def read_rows(self, ranges: Sequence[Range], genes: np.ndarray | None = None) -> CsrRows:
        """The rows of the given ranges, one after the other, in the order given.

        ``genes`` (int64, unique, any order) selects and orders columns. Explicit zeros may stay.
        Only storage chunks that hold a wanted row are touched.
        Raises :class:`StoreCorrupt` with the rows, ``IndexError`` for rows that do not exist.
        """

    def rows_in_memory(self) -> CsrRows | None:
        """All rows, where they are in memory as CSR already: not a copy, and not to be written to.

        Raises :class:`StoreCorrupt` where they cannot be the rows of a matrix.
        """
        return None

    @abstractmethod
    def read_obsm(self, key: str, ranges: Sequence[Range]) -> np.ndarray:
        """float32 ``[n, k]``: rows of ``obsm[key]``, one range after the other."""

    @property
    @abstractmethod
    def chunk_rows(self) -> int:
        """Rows that storage keeps together (1: rows can be read singly without waste)."""

    @property
    def is_shuffled(self) -> bool:
        """Whether cells are known to lie in random order: neighbours are as good as any others."""
        return False

    @property
    @abstractmethod
    def bytes_per_cell(self) -> float:
        """Mean size of a row once it is in memory as CSR (8 bytes an entry and 8 a row)."""

    @abstractmethod
    def digest(self) -> str:
        """32 hex digits that change when shape, genes, cell names or the stored matrix change.

        Computed without reading the matrix: sizes, row pointers' sample, time stamps or ETags.
        The same store at another URL may have another digest.
        """

    def version(self) -> str:
        """What changes when somebody writes to the files, found with next to no reading.

        Compared within a process; ``""`` where it is not known.
        """
        return ""

    def close(self) -> None:  # noqa: B027 (a store in memory has nothing to give back)
        """Give handles back. Closing twice is harmless."""

    def __enter__(self) -> "Store":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __reduce__(self) -> Any:
        raise TypeError("a store's handles do not travel; send store.locator and open it there")

    def obsm_columns(self, key: str) -> tuple[str, ...] | None:
        """Names of the columns of ``obsm[key]`` where it is a table, else ``None``."""
        return None

    def read_uns(self, key: str) -> Any:
        """What ``uns[key]`` holds. Raises :class:`FieldNotFound` where there is no such thing."""
        raise FieldNotFound(f"{self.locator.redacted_url}: uns has no {key!r}.")

    @property
    def part_sizes(self) -> tuple[int, ...]:
        """Cells of each store that this one is made of, in order; itself if of no other."""
        return (self.n_obs,)

    @property
    def layer_name(self) -> str | None:
        """The name among ``layers`` under which this matrix is listed too; ``None`` for X."""
        return self.locator.layer

    def storage_facts(self) -> StorageFacts:
        """What is known of the stored form without reading the matrix."""
        return StorageFacts()

    def read_rows_at(self, rows: np.ndarray, genes: np.ndarray | None = None) -> CsrRows:
        """The given rows in the caller's order, whatever the order on disk; repeats allowed."""
        wanted, back = np.unique(np.asarray(rows, dtype=np.int64), return_inverse=True)
        block = self.read_rows(ranges_of(wanted), genes)
        return block if np.array_equal(back, np.arange(len(wanted))) else block.take(back)


def ranges_of(rows: np.ndarray) -> list[Range]:
    """The shortest list of ranges that is these rows, in their order."""
    return [(start, stop) for start, stop in spans_of_rows(np.asarray(rows)).tolist()]
