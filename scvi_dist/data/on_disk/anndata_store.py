"""A store that is an AnnData on disk: what h5ad and Zarr have in common."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd

from scvi_dist.batch import CsrRows
from scvi_dist.data.names import names_digest, shared_names
from scvi_dist.data.on_disk.frames import FramesElement
from scvi_dist.data.on_disk.layout import SHUFFLED, ElementTree, find_matrix, list_layers
from scvi_dist.data.on_disk.matrix import open_matrix
from scvi_dist.data.on_disk.tables import TableElement
from scvi_dist.data.spans import Range, in_order, spans_of, spans_of_rows
from scvi_dist.data.store import StorageFacts, Store, StoreLocator
from scvi_dist.errors import (
    ConfigError,
    FieldNotFound,
    StoreChanged,
    StoreCorrupt,
    StoreUnreachable,
    UnsupportedStore,
    did_you_mean,
)

_SAMPLED_NAMES = 16


def open_anndata(tree: ElementTree, locator: StoreLocator) -> Store:
    """The store of what is stored there: an AnnData, or a MuData.

    Raises :class:`UnsupportedStore` for anything else, and :class:`ConfigError` for a modality of
    an AnnData.
    """
    if tree.kind("mod") == "group":
        from scvi_dist.data.multimodal.mudata_disk import open_mudata  # it builds on this file

        return open_mudata(tree, locator)
    if locator.options:
        raise ConfigError(
            f"{tree.where} is an AnnData, which has no modalities; leave out "
            f"{' and '.join(name for name, _ in locator.options)}."
        )
    return AnnDataStore(tree, locator)


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
        self._frames = FramesElement(tree)
        self._var = TableElement(tree, "raw/var" if locator.layer == "raw" else "var")
        shape = self._element.shape
        if shape != (self._frames.n_obs, self._var.n_rows):
            raise StoreCorrupt(
                f"{self._where}: {self._element.path} is {shape[0]} x {shape[1]}, but there are "
                f"{self._frames.n_obs} cells in obs and {self._var.n_rows} genes in var."
            )

    @property
    def n_obs(self) -> int:
        return self._element.shape[0]

    @property
    def n_vars(self) -> int:
        return self._element.shape[1]

    @cached_property
    def var_names(self) -> np.ndarray:
        return shared_names(self._var.index())

    @property
    def obs_columns(self) -> dict[str, str]:
        return self._frames.obs_columns

    @cached_property
    def layers(self) -> tuple[str, ...]:
        return list_layers(self._tree)

    def obs_names(self, start: int = 0, stop: int | None = None) -> np.ndarray:
        return self._frames.obs_names(self._window(start, stop))

    def read_obs(
        self, columns: Sequence[str], start: int = 0, stop: int | None = None
    ) -> pd.DataFrame:
        return self._frames.read_obs(columns, self._window(start, stop))

    def _window(self, start: int, stop: int | None) -> np.ndarray:
        return spans_of([(start, self.n_obs if stop is None else stop)], self.n_obs, self._where)

    def read_rows(self, ranges: Sequence[Range], genes: np.ndarray | None = None) -> CsrRows:
        spans, back = in_order(spans_of(ranges, self.n_obs, self._where))
        with _naming_rows(spans):
            block = self._matrix.read(spans, genes)
        return block if back is None else block.take(back)

    @property
    def chunk_rows(self) -> int:
        return self._matrix.chunk_rows

    @property
    def is_shuffled(self) -> bool:
        return SHUFFLED in self._tree.attributes("")

    @property
    def bytes_per_cell(self) -> float:
        return 8.0 + 8.0 * self._matrix.entries_per_row

    # obsm and uns

    @property
    def obsm_keys(self) -> dict[str, int]:
        return self._frames.obsm_keys

    def obsm_columns(self, key: str) -> tuple[str, ...] | None:
        return self._frames.obsm_columns(key)

    def read_obsm(self, key: str, ranges: Sequence[Range]) -> np.ndarray:
        spans, back = in_order(spans_of(ranges, self.n_obs, self._where))
        with _naming_rows(spans):
            values_nk = self._frames.read_obsm(key, spans)
        return values_nk if back is None else values_nk[back]

    def read_uns(self, key: str) -> Any:
        path = f"uns/{key}"
        if self._tree.kind(path) is None:
            have = self._tree.children("uns") if self._tree.kind("uns") == "group" else []
            raise FieldNotFound(f"{self._where}: uns has no {key!r}; {did_you_mean(key, have)}")
        return self._tree.element(path)

    @property
    def matrix_path(self) -> str:
        """Where the matrix is among the elements."""
        return self._element.path

    @property
    def tree(self) -> ElementTree:
        """All elements of the AnnData, also those that a store has no use for."""
        return self._tree

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
            names_digest(self.var_names),
            self._frames.obs_names(spans_of_rows(rows)).tolist(),
            self._tree.stamp([*self._matrix.arrays, *self._frames.index_arrays]),
        ]
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:32]

    def version(self) -> str:
        return self._tree.version()

    def close(self) -> None:
        self._tree.close()


@contextmanager
def _naming_rows(spans: np.ndarray) -> Iterator[None]:
    """What a service does not deliver is told with the rows that were asked for."""
    try:
        yield
    except (StoreUnreachable, StoreChanged) as error:
        rows = f"rows {spans[0, 0]} to {spans[-1, 1]}"
        raise type(error)(f"{error} They were asked for to read {rows}.") from error.__cause__
