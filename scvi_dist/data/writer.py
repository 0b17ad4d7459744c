"""Writing: copies of whole stores; :class:`ShardedWriter` for results that survive a crash.

Everything comes out as an AnnData that ``anndata.read_zarr`` or ``anndata.read_h5ad`` opens, and is
written in bounded memory. Nothing that exists is overwritten unless asked for.
"""

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from scvi_dist.data.anndata_writer import (
    CsrWriter,
    finish_anndata,
    pieces,
    rows_in_chunk,
    start_anndata,
    write_frame,
    write_names,
)
from scvi_dist.data.containers import Container, H5Container, ZarrContainer
from scvi_dist.data.filesystem import is_remote, normalise_url, redact_url
from scvi_dist.data.output import make_way
from scvi_dist.data.sharded_writer import ShardedWriter
from scvi_dist.data.store import Store
from scvi_dist.errors import OutputExists

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
    final = Path(normalise_url(path))
    if is_remote(path):
        raise ValueError(f"h5ad files are written to local paths; seen {redact_url(path)}.")
    if final.exists() and not overwrite:
        raise OutputExists(f"{final} exists. Pass overwrite=True to replace it.")
    final.parent.mkdir(parents=True, exist_ok=True)
    partial = final.with_name(f"{final.name}.partial-{os.getpid()}")
    try:
        with H5Container(str(partial), "w") as container:
            _copy(store, container, chunk_rows, on_progress)
        os.replace(partial, final)
    finally:
        partial.unlink(missing_ok=True)


def _copy(
    store: Store, container: Container, chunk_rows: int, on_progress: OnProgress | None
) -> None:
    """Matrix, obs, var and obsm of a store, block by block."""
    n_obs, n_vars = store.shape
    start_anndata(container)
    # bytes_per_cell counts 8 bytes an entry and 8 a row.
    entries_per_row = max(1.0, store.bytes_per_cell / 8 - 1)
    chunk_entries = max(_MIN_CHUNK_ENTRIES, round(chunk_rows * entries_per_row))
    block_rows = max(1, int(_BLOCK_BYTES // max(store.bytes_per_cell, 1)))
    block_rows = max(1, block_rows // store.chunk_rows) * store.chunk_rows
    dtype = store.read_rows([(0, min(1, n_obs))]).data.dtype
    counts = CsrWriter(container, "X", (n_obs, n_vars), dtype, chunk_entries)
    for start, stop in pieces(n_obs, block_rows):
        counts.append(store.read_rows([(start, stop)]))
        if on_progress:
            on_progress(stop, n_obs)
    counts.finish()
    write_frame(container, "obs", n_obs, list(store.obs_columns), store.read_obs, store.obs_names)
    write_names(container, "var", store.var_names)
    for key, width in store.obsm_keys.items():
        rows = rows_in_chunk(4 * width, min(block_rows, max(1, n_obs)))
        array = container.numbers(f"obsm/{key}", (n_obs, width), np.float32, (rows, width))
        for start, stop in pieces(n_obs, block_rows):
            array[start:stop] = store.read_obsm(key, [(start, stop)])
    finish_anndata(container)
