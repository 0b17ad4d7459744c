"""A copy of a store as a TileDB-SOMA experiment, which tiledbsoma's own readers open.

Layout: ``obs`` with the names in ``obs_id``; ``ms/<measurement>`` with ``var`` (names in
``var_id``), ``X/data``, further layers beside it, and ``obsm``. A table of obsm whose columns have
names (proteins) becomes a measurement of its own, raw the measurement ``raw``.

Rows of X are stored whole, one after the other, in tiles of some fifty cells, so that reading any
cells touches few tiles; TileDB's own default cuts rows at every 2,048 genes.
"""

import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import tiledbsoma

from scvi_dist.data.filesystem import is_remote, normalise_url
from scvi_dist.data.open import store_at_layer
from scvi_dist.data.soma.columns import IDS, JOINID, WRITER_MARK, arrow_column, arrow_field
from scvi_dist.data.soma.context import context_of, refuse_secret_config, shown
from scvi_dist.data.soma.kernels import sorted_rows
from scvi_dist.data.store import Store
from scvi_dist.data.writing.anndata_writer import pieces
from scvi_dist.errors import ConfigError, OutputExists

OnProgress = Callable[[int, int], None]

_BLOCK_BYTES = 32 << 20
_FRAME_ROWS = 1 << 17
_TILE_ENTRIES = 1 << 16
_TILE_ROWS = 2048
_ZSTD = {"_type": "ZstdFilter", "level": 3}
_SHUFFLED = ["ByteShuffleFilter", _ZSTD]
_GLOBAL_ORDER = {"tiledb": {"write": {"sort_coords": False}}}
_INDEX_NAME = "soma_dataframe_original_index_name"


def write_soma(
    store: Store,
    uri: str | os.PathLike[str],
    *,
    measurement: str = "RNA",
    layers: Sequence[str] = (),
    overwrite: bool = False,
    on_progress: OnProgress | None = None,
    storage_options: Mapping[str, Any] | None = None,
) -> None:
    """Copy a store to a TileDB-SOMA experiment, block by block.

    A local experiment appears under its name when it is complete; behind a URL its parts are
    joined last, so that half a copy is never taken for a store.

    Parameters
    ----------
    store
        What to copy. Its matrix keeps its dtype (bool becomes uint8, float16 float32), obs its
        columns and categories.
    uri
        Local path, ``s3://`` or ``tiledb://``.
    measurement
        Name of the measurement that holds the counts.
    layers
        Further layers of the store to copy, each beside X; ``"raw"`` becomes a measurement.
    overwrite
        Replace a local SOMA experiment that is there.
    on_progress
        Hears of cells copied and cells in all; every layer counts as the whole of them.
    storage_options
        TileDB options that are not secrets.

    Raises
    ------
    OutputExists
        Something is at ``uri``, or, with ``overwrite``, something that is no SOMA experiment.
    ConfigError
        A column of obs has a name that SOMA keeps for itself.
    """
    url = normalise_url(os.fspath(uri).removeprefix("soma://"))
    options = dict(storage_options or {})
    refuse_secret_config(url, options)
    for name in store.obs_columns:
        if name.startswith("soma_") or name == IDS["obs"]:
            raise ConfigError(
                f"obs column {name!r} of {store.locator.redacted_url}: SOMA keeps that name for "
                "itself. Rename the column."
            )
    with _target(url, overwrite, options) as target, ExitStack() as stack:
        _Experiment(target, store, context_of(options), stack, on_progress).write(
            measurement, tuple(layers)
        )


@contextmanager
def _target(url: str, overwrite: bool, options: Mapping[str, Any]) -> Iterator[str]:
    """Where to write; takes its final name when the block ends well."""
    if is_remote(url):
        if tiledbsoma.Experiment.exists(url, context=context_of(options)):
            raise OutputExists(f"{shown(url)} exists. Remove it first, or choose another URI.")
        yield url
        return
    final = Path(url)
    if final.exists() and not overwrite:
        raise OutputExists(f"{final} exists. Pass overwrite=True to replace it.")
    is_ours = final.is_dir() and (
        (final / "__tiledb_group.tdb").exists() or not any(final.iterdir())
    )
    if final.exists() and not is_ours:
        raise OutputExists(
            f"{final} exists and is not a SOMA experiment, so it is not removed even with "
            "overwrite=True. Choose another path."
        )
    final.parent.mkdir(parents=True, exist_ok=True)
    partial = final.with_name(f"{final.name}.partial-{os.getpid()}")
    try:
        yield str(partial)
        if final.exists():
            shutil.rmtree(final)
        os.replace(partial, final)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


@dataclass(frozen=True, slots=True)
class _Experiment:
    """One experiment that is being written."""

    url: str
    store: Store
    context: tiledbsoma.SOMATileDBContext
    stack: ExitStack
    on_progress: OnProgress | None

    def write(self, measurement: str, layers: tuple[str, ...]) -> None:
        store = self.store
        root = self._entered(tiledbsoma.Experiment.create(self.url, context=self.context))
        kinds = store.read_obs(list(store.obs_columns), 0, 0)
        self._frame(f"{self.url}/obs", "obs", store.n_obs, kinds, store.read_obs, store.obs_names)
        groups = self._entered(root.add_new_collection("ms"))
        main = self._measurement(groups, measurement, store.var_names)
        counts = self._entered(main.add_new_collection("X"))
        self._matrix(counts, "data", store)
        for layer in (name for name in layers if name != "raw"):
            with store_at_layer(store, layer) as other:
                self._matrix(counts, layer, other)
        if "raw" in layers:
            with store_at_layer(store, "raw") as raw:
                home = self._measurement(groups, "raw", raw.var_names)
                self._matrix(self._entered(home.add_new_collection("X")), "data", raw)
        arrays = self._entered(main.add_new_collection("obsm"))
        for key, width in store.obsm_keys.items():
            names = store.obsm_columns(key)
            if names is None:
                self._dense(arrays, key, width)
            else:
                home = self._measurement(groups, key, np.array(names, dtype=object))
                self._table(self._entered(home.add_new_collection("X")), key, width)
        uri = f"{self.url}/obs"
        root.set("obs", self._entered(tiledbsoma.DataFrame.open(uri, context=self.context)))

    def _entered(self, made: Any) -> Any:
        return self.stack.enter_context(made)

    def _measurement(self, groups: Any, name: str, var_names: np.ndarray) -> Any:
        """A new measurement with its var."""
        made = self._entered(groups.add_new_collection(name, tiledbsoma.Measurement))
        uri = f"{made.uri}/var"
        self._frame(
            uri,
            "var",
            len(var_names),
            pd.DataFrame(index=range(0)),
            lambda columns, start, stop: pd.DataFrame(index=range(stop - start)),
            lambda start, stop: var_names[start:stop],
        )
        made.set("var", self._entered(tiledbsoma.DataFrame.open(uri, context=self.context)))
        return made

    def _frame(
        self,
        uri: str,
        axis: str,
        n: int,
        kinds: pd.DataFrame,
        read: Callable[[Sequence[str], int, int], pd.DataFrame],
        names: Callable[[int, int], np.ndarray],
    ) -> None:
        """A table of obs or var, with the names of its rows."""
        fields = [arrow_field(str(name), column) for name, column in kinds.items()]
        schema = pa.schema(
            [
                pa.field(JOINID, pa.int64(), nullable=False),
                pa.field(IDS[axis], pa.large_string(), nullable=False),
                *fields,
            ]
        )
        frame = tiledbsoma.DataFrame.create(
            uri, schema=schema, domain=[(0, max(0, n - 1))], context=self.context
        )
        with frame:
            frame.metadata[_INDEX_NAME] = "null"
            frame.metadata[WRITER_MARK] = "1"
            declared = {
                str(name): arrow_column(column, schema.field(str(name))).dictionary
                for name, column in kinds.items()
                if isinstance(column.dtype, pd.CategoricalDtype)
            }
            # All categories, also those without a cell; they count for a handle opened later.
            filled = {name: values for name, values in declared.items() if len(values)}
            if filled:
                frame.extend_enumeration_values(filled)
        columns = [field.name for field in fields]
        with tiledbsoma.DataFrame.open(uri, "w", context=self.context) as frame:
            for start, stop in pieces(n, _FRAME_ROWS):
                table = read(columns, start, stop)
                parts = [
                    pa.array(np.arange(start, stop)),
                    pa.array(names(start, stop), pa.large_string()),
                    *(arrow_column(table[field.name], field) for field in fields),
                ]
                frame.write(pa.table(parts, schema=schema))

    def _matrix(self, home: Any, name: str, store: Store) -> None:
        """A sparse matrix, rows in order; every block becomes a fragment of its own."""
        dtype = _storable(store.read_rows([(0, min(1, store.n_obs))]).data.dtype)
        array = self._sparse(home, name, dtype, store.shape)
        rows = int(_BLOCK_BYTES // max(store.bytes_per_cell, 1.0))
        rows = max(1, rows // store.chunk_rows) * store.chunk_rows
        for start, stop in pieces(store.n_obs, rows):
            block = store.read_rows([(start, stop)])
            if len(block.data):
                block, twice = sorted_rows(block)
                if twice >= 0:
                    raise ConfigError(
                        f"{store.locator.redacted_url}: row {start + twice} has a gene twice; "
                        "SOMA keeps one value of it. Call sum_duplicates() on the matrix first."
                    )
                cells = np.repeat(np.arange(start, stop), np.diff(block.indptr))
                _write_entries(array, cells, block.indices, block.data.astype(dtype, copy=False))
            if self.on_progress:
                self.on_progress(stop, store.n_obs)

    def _table(self, home: Any, key: str, width: int) -> None:
        """A table of obsm as a sparse float32 matrix of its own measurement."""
        array = self._sparse(home, "data", np.dtype(np.float32), (self.store.n_obs, width))
        for start, stop in self._table_pieces(width):
            values_nk = self.store.read_obsm(key, [(start, stop)])
            cells, columns = np.nonzero(values_nk)
            if len(cells):
                _write_entries(array, cells + start, columns, values_nk[cells, columns])

    def _dense(self, home: Any, key: str, width: int) -> None:
        """A table of obsm without column names, as it is."""
        shape = (max(1, self.store.n_obs), max(1, width))
        array = self._entered(home.add_new_dense_ndarray(key, type=pa.float32(), shape=shape))
        for start, stop in self._table_pieces(width):
            values_nk = np.ascontiguousarray(self.store.read_obsm(key, [(start, stop)]))
            array.write(
                (slice(start, stop - 1), slice(0, width - 1)), pa.Tensor.from_numpy(values_nk)
            )

    def _table_pieces(self, width: int) -> list[tuple[int, int]]:
        rows = max(1, _BLOCK_BYTES // (4 * max(1, width)) // _TILE_ROWS) * _TILE_ROWS
        return pieces(self.store.n_obs, rows) if width else []

    def _sparse(self, home: Any, name: str, dtype: np.dtype, shape: tuple[int, int]) -> Any:
        create = {
            "capacity": _TILE_ENTRIES,
            "dims": {
                "soma_dim_0": {"tile": _TILE_ROWS, "filters": [_ZSTD]},
                "soma_dim_1": {"tile": max(1, shape[1]), "filters": _SHUFFLED},
            },
            "attrs": {"soma_data": {"filters": _SHUFFLED}},
            "cell_order": "row-major",
            "tile_order": "row-major",
        }
        made = home.add_new_sparse_ndarray(
            name,
            type=pa.from_numpy_dtype(dtype),
            shape=(max(1, shape[0]), max(1, shape[1])),
            platform_config={"tiledb": {"create": create}},
        )
        return self._entered(made)


def _write_entries(array: Any, rows: np.ndarray, columns: np.ndarray, values: np.ndarray) -> None:
    """Entries that are sorted by row and column."""
    table = pa.table(
        {
            "soma_dim_0": rows.astype(np.int64, copy=False),
            "soma_dim_1": columns.astype(np.int64, copy=False),
            "soma_data": values,
        }
    )
    array.write(table, platform_config=_GLOBAL_ORDER)


def _storable(dtype: np.dtype) -> np.dtype:
    """The same type, or the nearest that TileDB has."""
    if dtype == np.bool_:
        return np.dtype(np.uint8)
    return np.dtype(np.float32) if dtype == np.float16 else dtype
