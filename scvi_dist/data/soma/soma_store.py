"""A TileDB-SOMA experiment as a store: one layer of one measurement, with obs.

A store holds handles of TileDB, which neither travel nor survive a fork; what goes to another
process is its locator. Every other measurement of the experiment (proteins) is presented as a key
of obsm, so that nothing above ``data`` knows measurements.
"""

import hashlib
import json
import os
from collections.abc import Sequence
from contextlib import ExitStack
from functools import cached_property
from threading import RLock
from typing import Any

import numpy as np
import pandas as pd

from scvi_dist.batch import CsrRows
from scvi_dist.data.on_disk.matrix import gene_lookup
from scvi_dist.data.soma.experiment import Measurements, open_experiment
from scvi_dist.data.soma.matrix import DenseSoma, SparseSoma, column_map, open_soma_matrix
from scvi_dist.data.soma.stamp import size_on_disk, stamp_of
from scvi_dist.data.soma.table import SomaTable, damage_of
from scvi_dist.data.spans import Range, expand, in_order, spans_of
from scvi_dist.data.store import StorageFacts, Store, StoreLocator
from scvi_dist.errors import FieldNotFound, StoreCorrupt, StoreError, did_you_mean

_SAMPLED_NAMES = 16
_SAMPLED_ROWS = 64


def open_soma(locator: StoreLocator) -> "SomaStore":
    """The store of a locator of kind ``soma``; opening reads metadata and identifiers."""
    with ExitStack() as stack:
        experiment = stack.enter_context(open_experiment(locator))
        store = SomaStore(experiment, locator)
        stack.pop_all()
    return store


class SomaStore(Store):
    """A layer of a measurement of an open experiment."""

    def __init__(self, experiment: Any, locator: StoreLocator) -> None:
        self.locator = locator
        self._options = dict(locator.options)
        self._where = locator.redacted_url
        self._experiment = experiment
        self._process = os.getpid()
        self._lock = RLock()
        if "obs" not in experiment or "ms" not in experiment:
            raise StoreCorrupt(
                f"{self._where} has no obs or no measurements. It was probably not written to its "
                "end; write it again."
            )
        self._measurements = Measurements(experiment, self._options.get("measurement"), self._where)
        self._home, self._layer = self._measurements.find_layer(locator.layer)
        self._obs = self._table(experiment.obs, "obs")
        self._var = self._table(self._measurements.member(self._home, "var"), "var")
        with self._damage(f"X/{self._layer}"):
            array = self._measurements.layer(self._home, self._layer)
            self._matrix = open_soma_matrix(array, f"{self._where}: {self._home}/X/{self._layer}")

    def _table(self, frame: Any, axis: str) -> SomaTable:
        options = self._options.get(f"{axis}_value_filter"), self._options.get(f"{axis}_names")
        with self._damage(axis):
            return SomaTable(frame, axis, self._where, *options)

    def _damage(self, what: str) -> Any:
        if self._process != os.getpid():
            raise StoreError(
                f"{self._where} was opened before this process was forked, and TileDB's handles "
                "do not work in both. Send store.locator and open it there."
            )
        if self._experiment.closed:
            raise StoreError(f"{self._where} was closed; open it again with its locator.")
        return damage_of(self.locator.url, self._where, what)

    @cached_property
    def layers(self) -> tuple[str, ...]:  # type: ignore[override]
        with self._damage("X"):
            return self._measurements.layers

    @property
    def layer_name(self) -> str:
        return self._layer if self._home == self._measurements.name else "raw"

    # cells and genes

    @property
    def n_obs(self) -> int:
        return self._obs.n_rows

    @property
    def n_vars(self) -> int:
        return self._var.n_rows

    @cached_property
    def var_names(self) -> np.ndarray:
        with self._damage("var"):
            return self._var.names(0, self._var.n_rows)

    @property
    def obs_columns(self) -> dict[str, str]:
        return dict(self._obs.kinds)

    def obs_names(self, start: int = 0, stop: int | None = None) -> np.ndarray:
        window = self._window(start, stop)
        with self._damage(f"obs, rows {window[0]} to {window[1]}"):
            return self._obs.names(*window)

    def read_obs(
        self, columns: Sequence[str], start: int = 0, stop: int | None = None
    ) -> pd.DataFrame:
        window = self._window(start, stop)
        with self._damage(f"obs, rows {window[0]} to {window[1]}"):
            return self._obs.read(columns, *window)

    def _window(self, start: int, stop: int | None) -> Range:
        window = start, self.n_obs if stop is None else stop
        spans_of([window], self.n_obs, self._where)
        return window

    # counts

    @cached_property
    def _var_joinids(self) -> np.ndarray:
        return self._var.joinids_of(np.arange(self.n_vars))

    def read_rows(self, ranges: Sequence[Range], genes: np.ndarray | None = None) -> CsrRows:
        spans, back = in_order(spans_of(ranges, self.n_obs, self._where))
        if genes is not None:
            gene_lookup(genes, self.n_vars)  # refuses what is repeated or does not exist
        chosen = self._var_joinids if genes is None else self._var_joinids[np.asarray(genes, int)]
        columns = column_map(chosen, self._matrix.n_columns, self._where)
        with self._damage("the matrix"):
            block = self._matrix.read(self._obs.joinids_of(expand(spans)), columns)
        return block if back is None else block.take(back)

    @cached_property
    def _entries_per_row(self) -> float:
        if self._matrix.n_stored is not None:
            with self._damage("obs"):
                n_all = int(self._experiment.obs.count)
            return self._matrix.n_stored / max(1, n_all)
        rows = np.unique(
            np.linspace(0, max(0, self.n_obs - 1), min(self.n_obs, _SAMPLED_ROWS)).astype(int)
        )
        block = self.read_rows_at(rows)
        return float(block.indptr[-1]) / max(1, len(rows))

    @property
    def chunk_rows(self) -> int:
        return self._matrix.chunk_rows(self._entries_per_row, self.n_obs)

    @property
    def bytes_per_cell(self) -> float:
        return 8.0 + 8.0 * self._entries_per_row

    # obsm

    @cached_property
    def _tables(self) -> dict[str, SparseSoma | DenseSoma]:
        """Key of obsm -> its matrix; a key of obsm hides a measurement of the same name."""
        with self._lock, self._damage("obsm"):
            arrays = self._measurements.others(self._home) | self._measurements.obsm()
            return {
                key: open_soma_matrix(array, f"{self._where}: {key}")
                for key, array in arrays.items()
            }

    @cached_property
    def _table_vars(self) -> dict[str, SomaTable]:
        """Key of obsm that is a measurement -> its var."""
        with self._lock, self._damage("var"):
            named = set(self._measurements.others(self._home)) - set(self._measurements.obsm())
            return {
                key: SomaTable(self._measurements.member(key, "var"), "var", self._where)
                for key in named
            }

    @cached_property
    def obsm_keys(self) -> dict[str, int]:  # type: ignore[override]
        named = self._table_vars
        return {
            key: named[key].n_rows if key in named else matrix.n_columns
            for key, matrix in self._tables.items()
        }

    def _check_obsm(self, key: str) -> None:
        if key not in self.obsm_keys:
            raise FieldNotFound(
                f"{self._where}: obsm has no {key!r} and the experiment no such measurement; "
                f"{did_you_mean(key, self.obsm_keys)}"
            )

    def obsm_columns(self, key: str) -> tuple[str, ...] | None:
        self._check_obsm(key)
        table = self._table_vars.get(key)
        return None if table is None else tuple(table.names(0, table.n_rows))

    def read_obsm(self, key: str, ranges: Sequence[Range]) -> np.ndarray:
        self._check_obsm(key)
        spans, back = in_order(spans_of(ranges, self.n_obs, self._where))
        rows = self._obs.joinids_of(expand(spans))
        matrix, table = self._tables[key], self._table_vars.get(key)
        width = self.obsm_keys[key]
        ids = np.arange(width) if table is None else table.joinids_of(np.arange(width))
        columns = column_map(ids, matrix.n_columns, self._where)
        with self._damage(f"obsm/{key}"):
            if isinstance(matrix, DenseSoma):
                values_nk = matrix.read_dense(rows, columns).astype(np.float32, copy=False)
            else:
                values_nk = matrix.read(rows, columns).to_dense()
        return values_nk if back is None else values_nk[back]

    # facts

    def storage_facts(self) -> StorageFacts:
        return StorageFacts(
            dtype=self._matrix.dtype.name,
            encoding=self._matrix.encoding,
            n_stored=self._matrix.n_stored,
            size_bytes=size_on_disk(self.locator.url),
        )

    def digest(self) -> str:
        return self._digest

    @cached_property
    def _digest(self) -> str:
        n = self.n_obs
        rows = np.unique(np.linspace(0, max(0, n - 1), min(n, _SAMPLED_NAMES)).astype(np.int64))
        array = self._measurements.layer(self._home, self._layer)
        timestamp = int(array.tiledb_timestamp_ms)
        facts = [
            sorted(self._options.items()),
            [self._home, self._layer, self.shape, str(self._matrix.dtype), self._matrix.n_stored],
            hashlib.sha256("\0".join(self.var_names).encode()).hexdigest(),
            [self.obs_names(row, row + 1)[0] for row in rows.tolist()],
            self._obs.joinids_of(rows).tolist(),
            [stamp_of(one, timestamp) for one in (array, self._experiment.obs)],
        ]
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:32]

    def close(self) -> None:
        if self._process == os.getpid():
            self._experiment.close()
