"""From whatever a user hands over to a :class:`Store`."""

import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, get_args

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
from scvi_dist.data.joined.alignment import Join, check_join
from scvi_dist.data.soma.options import MARKS, SomaOptions, is_soma_url, soma_locator
from scvi_dist.data.sources import is_pattern, urls_in_folder, urls_matching
from scvi_dist.data.store import Store, StoreLocator, freeze
from scvi_dist.errors import ConfigError, StoreError, UnsupportedStore, did_you_mean

if TYPE_CHECKING:
    from anndata import AnnData
    from mudata import MuData

Unpaired = Literal["refuse", "drop", "zeros"]
_HDF5_SIGNATURE = b"\x89HDF\r\n\x1a\n"
_KIND_OF_SUFFIX = {
    ".h5mu": "h5mu",
    ".h5ad": "h5ad",
    ".h5": "h5ad",
    ".hdf5": "h5ad",
    ".zarr": "zarr",
    ".soma": "soma",
}
_ZARR_METADATA = ("zarr.json", ".zgroup", ".zmetadata")
_FILE_KINDS = ("h5ad", "h5mu", "zarr", "soma")


def open_store(
    source: "str | os.PathLike[str] | Sequence[Any] | AnnData | MuData | Store",
    *,
    layer: str | None = None,
    kind: str | None = None,
    storage_options: Mapping[str, Any] | None = None,
    obs_filter: str | None = None,
    genes: Sequence[str] | str | None = None,
    join: Join | None = None,
    modality: str | None = None,
    unpaired: Unpaired = "refuse",
    soma: SomaOptions | Mapping[str, Any] | None = None,
) -> Store:
    """A store: one matrix of counts with its obs table, read lazily, never written.

    Parameters
    ----------
    source
        A path or URL of an h5ad or h5mu file, a Zarr group or a TileDB-SOMA experiment (also
        ``soma://…``, ``tiledb://…``, ``census:homo_sapiens``); an ``AnnData`` or ``MuData``; a
        store; or many of them as one: a pattern (``"shards/*.h5ad"``, sorted by name), a folder
        of stores, or a list of any of these.
    layer
        ``None`` is X, ``"raw"`` is raw.X, anything else the layer of that name.
    kind
        ``h5ad``, ``h5mu``, ``zarr`` or ``soma``, where name and content do not tell.
    storage_options
        For fsspec; for SOMA, TileDB's own (``vfs.s3.region``). Secrets are refused; they belong
        in the environment.
    obs_filter
        Keep the cells for which this pandas expression over obs columns holds.
    genes
        Keep these genes, in this order; ``"inner"`` and ``"outer"`` say the same as ``join``.
    join
        For many stores: the genes that all of them have (``inner``) or that any has (``outer``;
        its cells have 0 in the others). ``None``: stores whose genes differ are refused; their
        order may differ. Columns of obsm that have names are joined likewise.
    modality
        For a MuData: which modality the counts are of; ``None``: ``rna``, ``gex`` or the only
        one. Each other modality is a key of obsm.
    unpaired
        For a MuData whose modalities hold different cells: ``refuse`` to read the others,
        ``drop`` cells that a modality lacks, or let them have ``zeros`` there.
    soma
        For SOMA: measurement, value filters, timestamp, release of the Census; see
        :class:`~scvi_dist.data.soma.options.SomaOptions`. Every other measurement is a key of
        obsm.

    Raises
    ------
    StoreNotFound, StoreCorrupt, UnsupportedStore, FieldNotFound, SchemaMismatch, ConfigError
    """
    from scvi_dist.data.views.subset import subset_store

    if isinstance(genes, str):
        if join not in (None, genes):
            raise ConfigError(f"genes={genes!r} and join={join!r} contradict each other.")
        join, genes = check_join(genes), None
    if unpaired not in get_args(Unpaired):
        raise ConfigError(f"unpaired={unpaired!r}; {did_you_mean(unpaired, get_args(Unpaired))}")
    how = _How(layer, kind, storage_options, _mudata_options(modality, unpaired), soma)
    found = list(_found(source, how))
    if len(found) == 1 and not _is_many(source, found[0]):
        store = found[0] if isinstance(found[0], Store) else found[0].open()
    else:
        from scvi_dist.data.joined.collection import collect

        store = collect(found, check_join(join), genes)
        genes = None  # The parts have been brought to these genes.
    if genes is None and obs_filter is None:
        return store
    return subset_store(store, obs_filter=obs_filter, genes=genes)


@dataclass(frozen=True, slots=True)
class _How:
    """How each of the stores that a source stands for is opened."""

    layer: str | None
    kind: str | None
    storage_options: Mapping[str, Any] | None
    options: tuple[tuple[str, Any], ...]
    soma: SomaOptions | Mapping[str, Any] | None = None


def _mudata_options(modality: str | None, unpaired: Unpaired) -> tuple[tuple[str, Any], ...]:
    given = (("modality", modality), ("unpaired", unpaired))
    return tuple((name, value) for name, value in given if value not in (None, "refuse"))


def _is_many(source: Any, found: Store | StoreLocator) -> bool:
    """Whether the one store found is what a list, a pattern or a folder stands for."""
    if isinstance(source, (str, os.PathLike)):
        if isinstance(found, Store) or is_soma_url(source):
            return False
        return normalise_url(source) != found.url
    return isinstance(source, Sequence)


def _found(source: Any, how: _How) -> Iterator[Store | StoreLocator]:
    """What a source stands for, in order; files are not opened yet."""
    if isinstance(source, Store):
        same = how.layer is None or how.layer == source.locator.layer
        yield source if same else store_at_layer(source, str(how.layer))
    elif is_anndata(source):
        yield _open_anndata(source, how.layer)
    elif is_mudata(source):
        from scvi_dist.data.multimodal.mudata_memory import open_in_memory

        yield open_in_memory(source, how.layer, dict(how.options))
    elif isinstance(source, (str, os.PathLike)):
        yield from _found_at(source, how)
    elif isinstance(source, Sequence):
        if not source:
            raise ConfigError("the list of stores is empty; give at least one path or URL.")
        for one in source:
            yield from _found(one, how)
    else:
        raise ConfigError(
            f"expected a path, a URL, a list of them, an AnnData, a MuData or a Store as data; "
            f"got {type(source).__name__}: {source!r:.80}."
        )


def _found_at(url: str | os.PathLike[str], how: _How) -> Iterator[StoreLocator]:
    options = how.storage_options
    if is_pattern(url):
        refuse_secrets(url, options)
        for match in urls_matching(url, options):
            yield _locate(match, how)
        return
    try:
        yield _locate(url, how)
    except UnsupportedStore:
        # A folder that is no store may be a folder of stores.
        inside = [entry for entry in urls_in_folder(url, options) if _is_store(entry, options)]
        if not inside:
            raise
        for entry in inside:
            yield _locate(entry, how)


def _locate(url: str | os.PathLike[str], how: _How) -> StoreLocator:
    located = locate(url, how.layer, how.kind, how.storage_options, how.soma)
    return replace(located, options=(*located.options, *how.options)) if how.options else located


def _is_store(url: str, storage_options: Mapping[str, Any] | None) -> bool:
    try:
        guess_kind(url, storage_options)
    except UnsupportedStore:
        return False
    return True


def as_store(source: Any) -> Store:
    """The source itself if it is a store, else :func:`open_store` of it."""
    return source if isinstance(source, Store) else open_store(source)


def is_anndata(source: Any) -> bool:
    """Whether this is an ``AnnData``; does not import anndata."""
    anndata = sys.modules.get("anndata")
    return anndata is not None and isinstance(source, anndata.AnnData)


def is_mudata(source: Any) -> bool:
    """Whether this is a ``MuData``; does not import mudata."""
    mudata = sys.modules.get("mudata")
    return mudata is not None and isinstance(source, mudata.MuData)


def locate(
    url: str | os.PathLike[str],
    layer: str | None = None,
    kind: str | None = None,
    storage_options: Mapping[str, Any] | None = None,
    soma: SomaOptions | Mapping[str, Any] | None = None,
) -> StoreLocator:
    """The locator of a file or a group; the kind is guessed where it is not given."""
    refuse_secrets(url, storage_options)
    if kind is not None and kind not in _FILE_KINDS:
        raise ConfigError(f"no store is of kind {kind!r}; {did_you_mean(kind, _FILE_KINDS)}")
    options = dict(storage_options or {})
    kind = "soma" if is_soma_url(url) else kind or guess_kind(url, options)
    if kind == "soma":
        return soma_locator(url, layer, options, soma)
    return StoreLocator(
        kind=kind,
        url=normalise_url(url),
        layer=layer,
        storage_options=tuple(freeze(options)),
    )


def guess_kind(
    url: str | os.PathLike[str], storage_options: Mapping[str, Any] | None = None
) -> str:
    """``h5ad``, ``h5mu``, ``zarr`` or ``soma``, by the end of the name or else the content."""
    name = normalise_url(url).partition("?")[0]
    known = _KIND_OF_SUFFIX.get(os.path.splitext(name)[1].lower())
    if known is not None:
        return known
    if not exists(url, storage_options):
        raise not_found(url)
    if any(exists(join_url(url, entry), storage_options) for entry in _ZARR_METADATA):
        return "zarr"
    if any(exists(join_url(url, entry), storage_options) for entry in MARKS):
        return "soma"
    if not is_folder(url, storage_options):
        with open_file(url, storage_options=storage_options) as file:
            if file.read(len(_HDF5_SIGNATURE)) == _HDF5_SIGNATURE:
                return "h5ad"
    raise UnsupportedStore(
        f"{redact_url(normalise_url(url))} is neither an h5ad file nor a Zarr group nor a "
        "TileDB-SOMA experiment; those are the kinds of stores that are read. Write one with "
        "anndata (write_h5ad or write_zarr)."
    )


def store_at_layer(store: Store, layer: str) -> Store:
    """The same cells (and, in a view, the same genes by name) of another layer; a new store."""
    from scvi_dist.data.joined.collection import CollectionStore
    from scvi_dist.data.joined.padded import PaddedStore
    from scvi_dist.data.views.obs_column import ObsColumnStore
    from scvi_dist.data.views.subset import SubsetStore

    if isinstance(store, SubsetStore | PaddedStore | ObsColumnStore):
        return store.on(store_at_layer(store.base, layer))
    if isinstance(store, CollectionStore):
        return store.at_layer(layer)
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
