"""From whatever a user hands over to a :class:`Store`."""

import os
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from scvi_dist.data.filesystem import (
    exists,
    is_folder,
    join_url,
    normalise_url,
    not_found,
    open_file,
    redact_url,
    refuse_secrets,
)
from scvi_dist.data.store import Store, StoreLocator, freeze
from scvi_dist.errors import ConfigError, StoreError, UnsupportedStore, did_you_mean

if TYPE_CHECKING:
    from anndata import AnnData

_OPENING_THREADS = 8
_HDF5_SIGNATURE = b"\x89HDF\r\n\x1a\n"
_KIND_OF_SUFFIX = {".h5ad": "h5ad", ".h5": "h5ad", ".hdf5": "h5ad", ".zarr": "zarr"}
_ZARR_METADATA = ("zarr.json", ".zgroup", ".zmetadata")
_FILE_KINDS = ("h5ad", "zarr")


def open_store(
    source: "str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | AnnData | Store",
    *,
    layer: str | None = None,
    kind: str | None = None,
    storage_options: Mapping[str, Any] | None = None,
    obs_filter: str | None = None,
    genes: Sequence[str] | None = None,
) -> Store:
    """A store: one matrix of counts with its obs table, read lazily, never written.

    Parameters
    ----------
    source
        A path or URL of an h5ad file or a Zarr group; a list of them, which then are one store
        (the same genes in the same order); an ``AnnData``; or a store.
    layer
        ``None`` is X, ``"raw"`` is raw.X, anything else the layer of that name.
    kind
        ``h5ad`` or ``zarr``, where name and content do not tell.
    storage_options
        For fsspec. Secrets are refused; they belong in the environment.
    obs_filter
        Keep the cells for which this pandas expression over obs columns holds.
    genes
        Keep these genes, in this order.

    Raises
    ------
    StoreNotFound, StoreCorrupt, UnsupportedStore, FieldNotFound, ConfigError
    """
    from scvi_dist.data.subset import subset_store

    if isinstance(source, Store):
        same = layer is None or layer == source.locator.layer
        store = source if same else store_at_layer(source, str(layer))
    elif is_anndata(source):
        store = _open_anndata(source, layer)
    elif isinstance(source, (str, os.PathLike)):
        store = locate(source, layer, kind, storage_options).open()
    elif isinstance(source, Sequence):
        store = _open_list(source, layer, kind, storage_options, genes)
        genes = None  # The parts have been brought to these genes.
    else:
        raise ConfigError(
            f"expected a path, a URL, a list of them, an AnnData or a Store as data; got "
            f"{type(source).__name__}."
        )
    if genes is None and obs_filter is None:
        return store
    return subset_store(store, obs_filter=obs_filter, genes=genes)


def as_store(source: Any) -> Store:
    """The source itself if it is a store, else :func:`open_store` of it."""
    return source if isinstance(source, Store) else open_store(source)


def is_anndata(source: Any) -> bool:
    """Whether this is an ``AnnData``; does not import anndata."""
    anndata = sys.modules.get("anndata")
    return anndata is not None and isinstance(source, anndata.AnnData)


def locate(
    url: str | os.PathLike[str],
    layer: str | None = None,
    kind: str | None = None,
    storage_options: Mapping[str, Any] | None = None,
) -> StoreLocator:
    """The locator of a file or a group; the kind is guessed where it is not given."""
    refuse_secrets(url, storage_options)
    if kind is not None and kind not in _FILE_KINDS:
        raise ConfigError(f"no store is of kind {kind!r}; {did_you_mean(kind, _FILE_KINDS)}")
    options = dict(storage_options or {})
    return StoreLocator(
        kind=kind or guess_kind(url, options),
        url=normalise_url(url),
        layer=layer,
        storage_options=tuple(freeze(options)),
    )


def guess_kind(
    url: str | os.PathLike[str], storage_options: Mapping[str, Any] | None = None
) -> str:
    """``h5ad`` or ``zarr``, from the end of the name or else from the content."""
    name = normalise_url(url).partition("?")[0]
    known = _KIND_OF_SUFFIX.get(os.path.splitext(name)[1].lower())
    if known is not None:
        return known
    if not exists(url, storage_options):
        raise not_found(url)
    if any(exists(join_url(url, entry), storage_options) for entry in _ZARR_METADATA):
        return "zarr"
    if not is_folder(url, storage_options):
        with open_file(url, storage_options=storage_options) as file:
            if file.read(len(_HDF5_SIGNATURE)) == _HDF5_SIGNATURE:
                return "h5ad"
    raise UnsupportedStore(
        f"{redact_url(normalise_url(url))} is neither an h5ad file nor a Zarr group; those are "
        "the kinds of stores that are read. Write one with anndata (write_h5ad or write_zarr)."
    )


def store_at_layer(store: Store, layer: str) -> Store:
    """The same cells (and, in a view, the same genes by name) of another layer; a new store."""
    from scvi_dist.data.collection import CollectionStore
    from scvi_dist.data.subset import SubsetStore

    if isinstance(store, SubsetStore):
        return store.on(store_at_layer(store.base, layer))
    if isinstance(store, CollectionStore):
        return CollectionStore([store_at_layer(part, layer) for part in store.parts])
    return replace(store.locator, layer=layer).open()


def _open_anndata(adata: "AnnData", layer: str | None) -> Store:
    from scvi_dist.data.memory import MemoryStore

    if not adata.isbacked:
        return MemoryStore(adata, layer)
    if adata.is_view:
        raise UnsupportedStore(
            f"a view of the backed AnnData {adata.filename}: open the file itself with "
            "open_store(path, obs_filter=..., genes=...), or call .to_memory() on the view."
        )
    store = locate(str(adata.filename), layer, "h5ad").open()
    added = [name for name in adata.obs.columns if str(name) not in store.obs_columns]
    if added:
        store.close()
        raise StoreError(
            f"{adata.filename}: the obs column(s) {', '.join(map(repr, added))} were added in "
            "memory and are not in the file. Write the AnnData with them first (adata.write())."
        )
    return store


def _open_list(
    sources: Sequence[Any],
    layer: str | None,
    kind: str | None,
    storage_options: Mapping[str, Any] | None,
    genes: Sequence[str] | None,
) -> Store:
    from scvi_dist.data.collection import CollectionStore

    if not sources:
        raise ConfigError("the list of stores is empty; give at least one path or URL.")

    def open_one(source: Any) -> Store:
        is_url = isinstance(source, (str, os.PathLike))
        if not is_url and not isinstance(source, Store) and not is_anndata(source):
            raise ConfigError(f"expected a path or a URL in the list, got {source!r:.80}.")
        return open_store(
            source,
            layer=layer,
            kind=kind if is_url else None,
            storage_options=storage_options if is_url else None,
            genes=genes,
        )

    with ThreadPoolExecutor(min(_OPENING_THREADS, len(sources))) as pool:
        return CollectionStore(list(pool.map(open_one, sources)))
