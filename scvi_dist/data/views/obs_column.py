"""A view of a store with one more column of obs: numbers that were computed, not stored.

Axis suffixes: ``n`` cells.
"""

import hashlib
import uuid
from collections.abc import Sequence
from typing import Any
from weakref import WeakValueDictionary

import numpy as np
import pandas as pd

from scvi_dist.batch import CsrRows
from scvi_dist.data.spans import Range
from scvi_dist.data.store import StorageFacts, Store, StoreLocator
from scvi_dist.errors import ConfigError, StoreError


class _Column:
    """Values that locators of this process refer to; a bare array cannot be referred to weakly."""

    def __init__(self, name: str, values_n: np.ndarray) -> None:
        self.name = name
        self.values_n = values_n
        self.digest = hashlib.sha256(name.encode() + values_n.tobytes()).hexdigest()[:32]


_KNOWN: "WeakValueDictionary[str, _Column]" = WeakValueDictionary()
"""Columns by token, as long as a store with them exists."""


def open_obs_column(locator: StoreLocator) -> "ObsColumnStore":
    """The view of a locator that was made in this very process."""
    token = dict(locator.options)["column"]
    column = _KNOWN.get(str(token))
    if column is None:
        raise StoreError(
            f"{locator.redacted_url}: a computed column of obs is in the memory of another process "
            "(or was deleted). Write the store with scvi_dist.data.write_zarr first, and "
            "use that path."
        )
    return ObsColumnStore(locator.parts[0].open(), column, str(token))


def with_obs_column(base: Store, name: str, values_n: np.ndarray) -> "ObsColumnStore":
    """The store with a column of numbers; its locator works in this process only.

    Raises :class:`ConfigError` if obs has a column of that name, or the number of values is not
    that of the cells.
    """
    where = base.locator.redacted_url
    if name in base.obs_columns:
        raise ConfigError(f"{where}: obs has a column {name!r} already.")
    if values_n.shape != (base.n_obs,):
        raise ConfigError(
            f"{where}: a column has a value for each of {base.n_obs} cells; its shape is "
            f"{list(values_n.shape)}."
        )
    token = uuid.uuid4().hex
    column = _KNOWN[token] = _Column(name, np.ascontiguousarray(values_n))
    return ObsColumnStore(base, column, token)


class ObsColumnStore(Store):
    """A store with one more column of obs. Made by :func:`with_obs_column`."""

    def __init__(self, base: Store, column: _Column, token: str) -> None:
        self.base = base
        self._column = column
        inner = base.locator
        self.locator = StoreLocator(
            kind="obs_column",
            url=inner.url,
            layer=inner.layer,
            parts=(inner,),
            options=(("column", token),),
        )

    def on(self, base: Store) -> "ObsColumnStore":
        """The same column beside another matrix of the same cells."""
        return ObsColumnStore(base, self._column, str(dict(self.locator.options)["column"]))

    @property
    def n_obs(self) -> int:
        return self.base.n_obs

    @property
    def n_vars(self) -> int:
        return self.base.n_vars

    @property
    def var_names(self) -> np.ndarray:
        return self.base.var_names

    @property
    def obs_columns(self) -> dict[str, str]:
        return {**self.base.obs_columns, self._column.name: "number"}

    @property
    def layers(self) -> tuple[str, ...]:
        return self.base.layers

    @property
    def obsm_keys(self) -> dict[str, int]:
        return self.base.obsm_keys

    def obsm_columns(self, key: str) -> tuple[str, ...] | None:
        return self.base.obsm_columns(key)

    def read_uns(self, key: str) -> Any:
        return self.base.read_uns(key)

    def obs_names(self, start: int = 0, stop: int | None = None) -> np.ndarray:
        return self.base.obs_names(start, stop)

    def read_obs(
        self, columns: Sequence[str], start: int = 0, stop: int | None = None
    ) -> pd.DataFrame:
        name = self._column.name
        there = [column for column in columns if column != name]
        obs = self.base.read_obs(there, start, stop)
        if name in columns:
            end = self.n_obs if stop is None else stop
            obs[name] = self._column.values_n[start:end]
        return obs[list(columns)]

    def read_rows(self, ranges: Sequence[Range], genes: np.ndarray | None = None) -> CsrRows:
        return self.base.read_rows(ranges, genes)

    def read_obsm(self, key: str, ranges: Sequence[Range]) -> np.ndarray:
        return self.base.read_obsm(key, ranges)

    @property
    def chunk_rows(self) -> int:
        return self.base.chunk_rows

    @property
    def is_shuffled(self) -> bool:
        return self.base.is_shuffled

    @property
    def bytes_per_cell(self) -> float:
        return self.base.bytes_per_cell

    def storage_facts(self) -> StorageFacts:
        return self.base.storage_facts()

    def digest(self) -> str:
        both = self.base.digest() + self._column.digest
        return hashlib.sha256(both.encode()).hexdigest()[:32]

    def close(self) -> None:
        self.base.close()
