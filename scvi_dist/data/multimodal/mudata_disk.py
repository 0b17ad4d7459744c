"""A MuData on disk (``.h5mu`` or a Zarr group): its modalities, and which cells each one has.

``mod/<name>`` is an AnnData each; ``obs`` and ``obsm`` are of the cells of any modality, and
``obsmap/<name>`` is the place of each of those in the modality, counted from 1, or 0.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import pandas as pd

from scvi_dist.data.multimodal.modalities import (
    Beside,
    Modality,
    choose_modality,
    in_step,
    rows_by_name,
)
from scvi_dist.data.multimodal.mudata import MuDataStore, base_locator, without_unpaired
from scvi_dist.data.on_disk.anndata_store import AnnDataStore
from scvi_dist.data.on_disk.frames import FramesElement
from scvi_dist.data.on_disk.layout import ElementTree, StoredArray, list_layers
from scvi_dist.data.spans import Range, in_order, span, spans_of, spans_of_rows
from scvi_dist.data.store import Store, StoreLocator
from scvi_dist.errors import StoreCorrupt, UnsupportedStore

_SAMPLED_NAMES = 16
_SHARED_GENES = 1
"""Value of the attribute ``axis`` where modalities share genes and not cells."""


def open_mudata(tree: ElementTree, locator: StoreLocator) -> Store:
    """The store of a MuData on disk. Options of the locator: ``modality`` and ``unpaired``.

    Raises
    ------
    ConfigError, FieldNotFound
        The modality is not there, or none was named where that is needed.
    UnsupportedStore, StoreCorrupt
        Its modalities do not share cells, or its maps of cells contradict them.
    """
    options = dict(locator.options)
    if int(tree.attributes("").get("axis", 0)) == _SHARED_GENES:
        raise UnsupportedStore(
            f"{tree.where}: the modalities of this MuData share genes, not cells (axis=1). Write "
            "each modality as an h5ad file and open them as a list."
        )
    trees = {name: ModalityTree(tree, name) for name in tree.children("mod")}
    ordered = [str(name) for name in tree.attributes("mod").get("mod-order", ())]
    names = [name for name in ordered if name in trees] or sorted(trees)
    chosen = choose_modality(names, options.get("modality"), tree.where)
    main = AnnDataStore(trees[chosen], locator)
    cells = Cells(tree, chosen, main, SharedFrames(tree))
    others = [cells.modality(name, trees[name], locator) for name in names if name != chosen]
    store = MuDataStore(
        main,
        chosen,
        [other for other in others if other.layers],
        Beside(cells.shared, in_step(cells.rows, cells.shared.n_obs)),
        base_locator(locator),
    )
    return without_unpaired(store, options.get("unpaired"))


class Cells:
    """The cells of the chosen modality, and where they are in the others."""

    def __init__(self, tree: ElementTree, chosen: str, main: Store, shared: "SharedFrames") -> None:
        self.shared = shared
        self._tree = tree
        self._main = main
        self.rows = self._shared_rows(chosen)
        """int64 ``[n]``: row of each cell in what the modalities share."""

    def _map(self, name: str) -> np.ndarray | None:
        path = f"obsmap/{name}"
        if self._tree.kind(path) != "array":
            return None  # mudata before 0.2
        stored = self._tree.array(path)
        return stored.read(span(0, stored.shape[0])).reshape(-1).astype(np.int64)

    def _shared_rows(self, chosen: str) -> np.ndarray:
        n = self._main.n_obs
        places = self._map(chosen)
        if places is None:
            found = rows_by_name(self._main.obs_names(), self.shared.obs_names(), self._tree.where)
            return np.arange(n) if found is None else found
        present = np.flatnonzero(places)
        self._check(chosen, np.array(len(places)), np.array(self.shared.n_obs))
        self._check(chosen, np.sort(places[present]), np.arange(1, n + 1))
        rows = np.empty(n, dtype=np.int64)
        rows[places[present] - 1] = present
        sample = self._sample(rows)
        self._check(chosen, self._names(self.shared, rows[sample]), self._names(self._main, sample))
        return rows

    def modality(self, name: str, tree: "ModalityTree", locator: StoreLocator) -> Modality:
        """One of the others; opened when it is asked for."""

        def open_layer(layer: str | None) -> Store:
            return AnnDataStore(tree, replace(locator, layer=layer))

        layers: tuple[str | None, ...] = list_layers(tree)
        if tree.kind("X") == "array" or tree.attributes("X").get("encoding-type") != "null":
            layers = (None, *layers)
        rows = self._rows_in(name, FramesElement(tree)) if layers else None
        return Modality(name, layers, open_layer, rows)

    def _rows_in(self, name: str, frames: FramesElement) -> np.ndarray | None:
        n = frames.n_obs
        places = self._map(name)
        if places is None:
            others = frames.obs_names(span(0, n))
            return rows_by_name(self._main.obs_names(), others, self._tree.where)
        self._check(name, np.array(len(places)), np.array(self.shared.n_obs))
        self._check(name, np.sort(places[places > 0]), np.arange(1, n + 1))
        rows = places[self.rows] - 1
        present = np.flatnonzero(rows >= 0)
        sample = present[self._sample(present)]
        there = np.sort(rows[sample])
        names = frames.obs_names(spans_of_rows(there))
        here = self._names(self._main, sample[np.argsort(rows[sample])])
        self._check(name, names, here)
        return in_step(rows, n)

    def _check(self, name: str, seen: np.ndarray, expected: np.ndarray) -> None:
        if not np.array_equal(seen, expected):
            raise StoreCorrupt(
                f"{self._tree.where}: obsmap/{name} does not lead to the cells of modality "
                f"{name!r}. A modality was changed and the whole was not brought up to date: "
                "read it with mudata, call mdata.update() and write it again."
            )

    @staticmethod
    def _sample(rows: np.ndarray) -> np.ndarray:
        n = len(rows)
        return np.unique(np.linspace(0, n - 1, min(n, _SAMPLED_NAMES)).astype(np.int64))

    @staticmethod
    def _names(frames: "Store | SharedFrames", rows: np.ndarray) -> np.ndarray:
        names = [frames.obs_names(row, row + 1)[0] for row in rows.tolist()]
        return np.array(names, dtype=object)


class SharedFrames:
    """obs and obsm of what the modalities have together."""

    def __init__(self, tree: ElementTree) -> None:
        self._frames = FramesElement(tree)
        self._where = tree.where

    @property
    def n_obs(self) -> int:
        """Cells of all modalities."""
        return self._frames.n_obs

    @property
    def obs_columns(self) -> dict[str, str]:
        """Column -> kind."""
        return self._frames.obs_columns

    def obs_names(self, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Names of cells."""
        return self._frames.obs_names(span(start, self.n_obs if stop is None else stop))

    def read_obs(
        self, columns: Sequence[str], start: int = 0, stop: int | None = None
    ) -> pd.DataFrame:
        """Columns of obs."""
        return self._frames.read_obs(columns, span(start, self.n_obs if stop is None else stop))

    @property
    def obsm_keys(self) -> dict[str, int]:
        """Key -> number of columns."""
        return self._frames.obsm_keys

    def obsm_columns(self, key: str) -> tuple[str, ...] | None:
        """Names of columns."""
        return self._frames.obsm_columns(key)

    def read_obsm(self, key: str, ranges: Sequence[Range]) -> np.ndarray:
        """float32 ``[n, k]``."""
        spans, back = in_order(spans_of(ranges, self.n_obs, self._where))
        values_nk = self._frames.read_obsm(key, spans)
        return values_nk if back is None else values_nk[back]


class ModalityTree:
    """The elements of one modality, by their paths within it."""

    def __init__(self, tree: ElementTree, name: str) -> None:
        self._tree = tree
        self._folder = f"mod/{name}"

    @property
    def where(self) -> str:
        return f"{self._tree.where} ({self._folder})"

    def _path(self, path: str) -> str:
        return f"{self._folder}/{path}" if path else self._folder

    def kind(self, path: str) -> Literal["group", "array"] | None:
        return self._tree.kind(self._path(path))

    def children(self, path: str) -> list[str]:
        return self._tree.children(self._path(path))

    def attributes(self, path: str) -> Mapping[str, Any]:
        return self._tree.attributes(self._path(path))

    def array(self, path: str) -> StoredArray:
        return self._tree.array(self._path(path))

    def element(self, path: str) -> Any:
        return self._tree.element(self._path(path))

    def stamp(self, paths: Sequence[str]) -> str:
        return self._tree.stamp([self._path(path) for path in paths])

    def version(self) -> str:
        return self._tree.version()

    def size_on_disk(self) -> int | None:
        return self._tree.size_on_disk()

    def close(self) -> None:
        self._tree.close()
