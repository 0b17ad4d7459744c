"""A MuData as a store: counts of one modality; the others are tables beside them, as obsm.

Knows neither files nor the mudata package: it joins stores, one for each modality, by rows.

Axis suffixes: ``n`` cells, ``k`` columns.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd

from scvi_dist.batch import CsrRows
from scvi_dist.data.multimodal.modalities import Beside, Modality
from scvi_dist.data.spans import Range, spans_of
from scvi_dist.data.store import StorageFacts, Store, StoreLocator, ranges_of
from scvi_dist.data.views.subset import SubsetStore
from scvi_dist.errors import FieldNotFound, SchemaMismatch, did_you_mean


def base_locator(locator: StoreLocator) -> StoreLocator:
    """The locator of all cells: those that are dropped are a view's business."""
    options = dict(locator.options)
    if options.get("unpaired") == "drop":
        options["unpaired"] = "zeros"
    return replace(locator, options=tuple(options.items()))


def without_unpaired(store: "MuDataStore", unpaired: str | None) -> Store:
    """The store, or if they are to be dropped a view without cells that a modality lacks."""
    cells = store.paired_cells()
    if unpaired != "drop" or len(cells) == store.n_obs:
        return store
    if len(cells) == 0:
        raise SchemaMismatch(f"{store.locator.redacted_url}: no cell is in every modality.")
    return SubsetStore(store, rows=cells)


class MuDataStore(Store):
    """Cells and counts of one modality of a MuData.

    obs has the columns that all modalities share under their own names, then those of the chosen
    modality where the name is free, and every modality's columns as ``modality:column``. obsm has
    each other modality's X as ``modality`` and its layers as ``modality:layer``, what all
    modalities share, and the chosen modality's own (as ``modality:key`` where the name is taken).
    """

    def __init__(
        self,
        main: Store,
        name: str,
        others: Sequence[Modality],
        shared: Beside,
        locator: StoreLocator,
    ) -> None:
        self.locator = locator
        self._main = main
        self._name = name
        self._others = {other.name: other for other in others}
        self._shared = shared
        self._refuses = dict(locator.options).get("unpaired") is None
        self._where = f"{locator.redacted_url} (modality {name!r})"

    @property
    def n_obs(self) -> int:
        return self._main.n_obs

    @property
    def n_vars(self) -> int:
        return self._main.n_vars

    @property
    def var_names(self) -> np.ndarray:
        return self._main.var_names

    @property
    def layers(self) -> tuple[str, ...]:
        return self._main.layers

    def obs_names(self, start: int = 0, stop: int | None = None) -> np.ndarray:
        return self._main.obs_names(start, stop)

    def paired_cells(self) -> np.ndarray:
        """int64: cells that every modality has, ascending."""
        paired = np.ones(self.n_obs, dtype=bool)
        for other in self._others.values():
            if other.rows is not None:
                paired &= other.rows >= 0
        return np.flatnonzero(paired)

    # obs

    @cached_property
    def _columns(self) -> dict[str, tuple[str | None, str, str]]:
        """Column -> modality (``None``: all), its name there, its kind."""
        own = {self._name: self._main.obs_columns}
        own |= {name: other.main.obs_columns for name, other in self._others.items()}
        prefixed = {
            f"{name}:{column}": (name, column, kind)
            for name, columns in own.items()
            for column, kind in columns.items()
        }
        found: dict[str, tuple[str | None, str, str]] = {
            column: (None, column, kind)
            for column, kind in self._shared.frames.obs_columns.items()
            if column not in prefixed  # what mudata has pulled up from a modality
        }
        for column, kind in own[self._name].items():
            found.setdefault(column, (self._name, column, kind))
        return found | prefixed

    @cached_property
    def obs_columns(self) -> dict[str, str]:
        return {column: kind for column, (_, _, kind) in self._columns.items()}

    def read_obs(
        self, columns: Sequence[str], start: int = 0, stop: int | None = None
    ) -> pd.DataFrame:
        high = self.n_obs if stop is None else stop
        spans_of([(start, high)], self.n_obs, self._where)
        wanted: dict[str | None, dict[str, str]] = {}
        for column in columns:
            if column not in self._columns:
                raise FieldNotFound(
                    f"{self._where}: obs has no column {column!r}; "
                    f"{did_you_mean(column, self._columns)}"
                )
            modality, name, _ = self._columns[column]
            wanted.setdefault(modality, {})[column] = name
        series: dict[str, pd.Series] = {}
        for modality, names in wanted.items():
            frame = self._beside(modality).read_obs(list(set(names.values())), start, high)
            series |= {column: frame[name] for column, name in names.items()}
        index = pd.RangeIndex(high - start)
        return pd.DataFrame({c: series[c] for c in columns}, index=index, columns=list(columns))

    def _beside(self, modality: str | None) -> Beside:
        if modality is None:
            return self._shared
        if modality == self._name:
            return Beside(self._main, None)
        other = self._others[modality]
        beside = Beside(other.main, other.rows)
        if self._refuses and beside.n_missing:
            first = int(np.argmax(beside.rows < 0))  # type: ignore[operator]
            raise SchemaMismatch(
                f"{self._where}: {beside.n_missing} of its {self.n_obs} cells are not in "
                f"modality {modality!r}, the first is {self.obs_names(first, first + 1)[0]!r} "
                f"(row {first}). Open it with unpaired='drop' to leave out cells that a "
                "modality lacks, or with unpaired='zeros' to let them have 0 there, which for "
                "proteins means not measured."
            )
        return beside

    # counts and obsm

    def read_rows(self, ranges: Sequence[Range], genes: np.ndarray | None = None) -> CsrRows:
        return self._main.read_rows(ranges, genes)

    @cached_property
    def _obsm(self) -> dict[str, tuple[str | None, str | None]]:
        """Key -> modality (``None``: all) and layer or key there."""
        found: dict[str, tuple[str | None, str | None]] = {}
        for name, other in self._others.items():
            found |= {key: (name, layer) for key, layer in other.tables.items()}
        masks = {self._name, *self._others}  # which cells a modality has, kept by mudata
        for key in self._shared.frames.obsm_keys:
            if key not in masks:
                found.setdefault(key, (None, key))
        for key in self._main.obsm_keys:
            found[f"{self._name}:{key}" if key in found else key] = (self._name, key)
        return found

    @cached_property
    def obsm_keys(self) -> dict[str, int]:
        return {key: self._width(*place) for key, place in self._obsm.items()}

    def _width(self, modality: str | None, key: str | None) -> int:
        if modality in self._others:
            return self._others[modality].store(key).n_vars
        frames = self._shared.frames if modality is None else self._main
        return frames.obsm_keys[str(key)]

    def _place(self, key: str) -> tuple[str | None, str | None]:
        if key not in self._obsm:
            raise FieldNotFound(
                f"{self._where}: obsm has no {key!r}; {did_you_mean(key, self._obsm)}"
            )
        return self._obsm[key]

    def obsm_columns(self, key: str) -> tuple[str, ...] | None:
        modality, name = self._place(key)
        if modality in self._others:
            return tuple(self._others[modality].store(name).var_names.tolist())
        frames = self._shared.frames if modality is None else self._main
        return frames.obsm_columns(str(name))

    def read_obsm(self, key: str, ranges: Sequence[Range]) -> np.ndarray:
        modality, name = self._place(key)
        spans = spans_of(ranges, self.n_obs, self._where)
        beside = self._beside(modality)
        if modality not in self._others:
            frames = beside.frames
            return beside.gather(spans, lambda at: frames.read_obsm(str(name), ranges_of(at)))
        store = self._others[modality].store(name)
        return beside.gather(
            spans, lambda at: store.read_rows_at(at).to_dense().astype(np.float32, copy=False)
        )

    def read_uns(self, key: str) -> Any:
        return self._main.read_uns(key)

    # facts

    @property
    def chunk_rows(self) -> int:
        return self._main.chunk_rows

    @property
    def bytes_per_cell(self) -> float:
        return self._main.bytes_per_cell

    def storage_facts(self) -> StorageFacts:
        return self._main.storage_facts()

    def digest(self) -> str:
        return self._digest

    @cached_property
    def _digest(self) -> str:
        others = {
            name: [
                other.main.digest(),
                None if other.rows is None else hashlib.sha256(other.rows.tobytes()).hexdigest(),
            ]
            for name, other in self._others.items()
        }
        facts = json.dumps([self._name, self._main.digest(), self.locator.options, others])
        return hashlib.sha256(facts.encode()).hexdigest()[:32]

    def version(self) -> str:
        return self._main.version()

    def close(self) -> None:
        self._main.close()
        for other in self._others.values():
            other.close()
