"""Writing: copies of whole stores; :class:`ShardedWriter` for results that survive a crash.

Everything comes out as an AnnData that ``anndata.read_zarr`` or ``anndata.read_h5ad`` opens, and is
written in bounded memory. Nothing that exists is overwritten unless asked for.
"""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from scvi_dist.batch import CsrRows
from scvi_dist.data.filesystem import is_remote, normalise_url, redact_url
from scvi_dist.data.store import Store
from scvi_dist.data.writing.anndata_writer import (
    CsrWriter,
    MatrixLayout,
    finish_anndata,
    pieces,
    plain_layout,
    rows_in_chunk,
    start_anndata,
    write_frame,
    write_names,
)
from scvi_dist.data.writing.containers import Codec, Container, H5Container, ZarrContainer
from scvi_dist.data.writing.content import index_type, pointer_type
from scvi_dist.data.writing.output import make_way
from scvi_dist.data.writing.sharded_writer import ShardedWriter
from scvi_dist.errors import ConfigError, OutputExists

__all__ = ["OnProgress", "ShardedWriter", "write_h5ad", "write_zarr"]

OnProgress = Callable[[int, int], None]
"""Called with the cells written so far and the cells in all."""

_BLOCK_BYTES = 16 << 20
_MIN_CHUNK_ENTRIES = 1 << 12


def write_zarr(
    store: Store,
    url: str | os.PathLike[str],
    *,
    chunk_rows: int = 64,
    overwrite: bool = False,
    on_progress: OnProgress | None = None,
    storage_options: Mapping[str, Any] | None = None,
) -> None:
    """Copy a store to an AnnData Zarr v3 store: its matrix as CSR in X, with obs, obsm and genes.

    Parameters
    ----------
    store
        What to copy. Its matrix keeps its dtype, obs its columns and categories.
    url
        Local path or fsspec URL.
    chunk_rows
        Rows in a chunk, the least that a reader decodes. CSR chunks have equal numbers of
        entries, so this holds on average. Chunks are packed into shards of a few dozen MB.
    overwrite
        Replace a Zarr store that is there.
    on_progress
        Hears how far it is.
    storage_options
        fsspec options that are not secrets.

    Raises
    ------
    OutputExists
        Something is at ``url``, or, with ``overwrite``, something that is not a Zarr store.
    """
    make_way(url, overwrite, storage_options)
    with ZarrContainer(normalise_url(url), "w-", storage_options) as container:
        _copy(store, container, chunk_rows, on_progress)


def write_h5ad(
    store: Store,
    path: str | os.PathLike[str],
    *,
    chunk_rows: int = 64,
    overwrite: bool = False,
    on_progress: OnProgress | None = None,
) -> None:
    """Copy a store to an h5ad file at a local path; see :func:`write_zarr`.

    The file appears under its name when it is complete.

    Raises
    ------
    OutputExists
        A file is there and ``overwrite`` is False.
    """
    with h5ad_file(path, overwrite) as container:
        _copy(store, container, chunk_rows, on_progress)


@contextmanager
def h5ad_file(path: str | os.PathLike[str], overwrite: bool) -> Iterator[H5Container]:
    """A new h5ad file, which appears under its name when the block ends without an error.

    Raises
    ------
    OutputExists
        A file is there and ``overwrite`` is False.
    """
    if is_remote(path):
        raise ConfigError(f"h5ad files are written to local paths; seen {redact_url(path)}.")
    final = Path(normalise_url(path))
    if final.exists() and not overwrite:
        raise OutputExists(f"{final} exists. Pass overwrite=True to replace it.")
    final.parent.mkdir(parents=True, exist_ok=True)
    partial = final.with_name(f"{final.name}.partial-{os.getpid()}")
    try:
        with H5Container(str(partial), "w") as container:
            yield container
        os.replace(partial, final)
    finally:
        partial.unlink(missing_ok=True)


def _copy(
    store: Store, container: Container, chunk_rows: int, on_progress: OnProgress | None
) -> None:
    """Matrix, obs, names of genes and obsm of a store, block by block."""
    start_anndata(container)
    copy_matrix(store, container, "X", same_layout(store, chunk_rows), on_progress)
    copy_cells(store, container)
    write_names(container, "var", store.var_names)
    finish_anndata(container)


def copy_matrix(
    store: Store,
    container: Container,
    path: str,
    layout: MatrixLayout,
    on_progress: OnProgress | None = None,
    on_block: Callable[[CsrRows], object] | None = None,
) -> None:
    """The matrix of a store as CSR, block by block.

    Parameters
    ----------
    path
        Where it goes in the container.
    on_block
        Sees every block of rows on its way.
    """
    counts = CsrWriter(container, path, store.shape, layout)
    for stop, block in blocks_of(store):
        if on_block:
            on_block(block)
        counts.append(block)
        if on_progress:
            on_progress(stop, store.n_obs)
    counts.finish()


def copy_cells(store: Store, container: Container) -> None:
    """obs and obsm of a store: tables stay tables, arrays become float32."""
    n_obs = store.n_obs
    write_frame(container, "obs", n_obs, list(store.obs_columns), store.read_obs, store.obs_names)
    block_rows = _block_rows(store)
    for key, width in store.obsm_keys.items():
        columns = store.obsm_columns(key)
        if columns is not None:
            _copy_table(store, container, key, columns)
            continue
        rows = rows_in_chunk(4 * width, min(block_rows, max(1, n_obs)))
        array = container.numbers(f"obsm/{key}", (n_obs, width), np.float32, (rows, width))
        for start, stop in pieces(n_obs, block_rows):
            array[start:stop] = store.read_obsm(key, [(start, stop)])


def _copy_table(store: Store, container: Container, key: str, columns: Sequence[str]) -> None:
    places = {name: k for k, name in enumerate(columns)}

    def read(wanted: list[str], start: int, stop: int) -> pd.DataFrame:
        values_nk = store.read_obsm(key, [(start, stop)])
        return pd.DataFrame({name: values_nk[:, places[name]] for name in wanted})

    write_frame(container, f"obsm/{key}", store.n_obs, list(columns), read, store.obs_names)


def blocks_of(store: Store) -> Iterator[tuple[int, CsrRows]]:
    """All rows in order, as blocks of some megabytes; the row after each, and the block."""
    for start, stop in pieces(store.n_obs, _block_rows(store)):
        yield stop, store.read_rows([(start, stop)])


def type_of_values(store: Store) -> np.dtype:
    """Type of the values that the store delivers."""
    return store.read_rows([(0, min(1, store.n_obs))]).data.dtype


def same_layout(store: Store, chunk_rows: int) -> MatrixLayout:
    """The type of values that the store has, and the types that anndata would write beside it."""
    return plain_layout(
        type_of_values(store),
        store.n_vars,
        chunk_entries(store, chunk_rows),
        most_entries(store),
    )


def training_layout(
    store: Store, value_type: np.dtype, chunk_rows: int, codec: str
) -> MatrixLayout:
    """Small integers and checksums: few bytes to fetch and to decode, and damage is noticed."""
    return MatrixLayout(
        value_type=value_type,
        index_type=index_type(store.n_vars),
        chunk_entries=chunk_entries(store, chunk_rows),
        pointer_type=pointer_type(most_entries(store)),
        codec=Codec(name=codec, checksum=True),
    )


def most_entries(store: Store) -> int:
    """Entries of the matrix, or what it cannot have more of."""
    known = store.storage_facts().n_stored
    return store.n_obs * store.n_vars if known is None else known


def chunk_entries(store: Store, chunk_rows: int) -> int:
    """Entries that so many rows have on average."""
    # bytes_per_cell counts 8 bytes an entry and 8 a row.
    entries_per_row = max(1.0, store.bytes_per_cell / 8 - 1)
    return max(_MIN_CHUNK_ENTRIES, round(chunk_rows * entries_per_row))


def _block_rows(store: Store) -> int:
    rows = max(1, int(_BLOCK_BYTES // max(store.bytes_per_cell, 1)))
    return max(1, rows // store.chunk_rows) * store.chunk_rows
