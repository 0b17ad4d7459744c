"""From any store to a store of another kind or layout, whole, in bounded memory."""

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from scvi_dist.data.filesystem import exists, join_url, normalise_url, open_file, redact_url
from scvi_dist.data.open import store_at_layer
from scvi_dist.data.store import Store
from scvi_dist.data.writing.anndata_writer import finish_anndata, start_anndata
from scvi_dist.data.writing.containers import Container, ZarrContainer
from scvi_dist.data.writing.content import Content
from scvi_dist.data.writing.extras import Extras, read_extras
from scvi_dist.data.writing.output import STATE, make_way, put_whole, remove_state
from scvi_dist.data.writing.writer import (
    OnProgress,
    blocks_of,
    copy_cells,
    copy_matrix,
    h5ad_file,
    same_layout,
    training_layout,
    type_of_values,
)
from scvi_dist.errors import ConfigError, FieldNotFound, did_you_mean

CONTENT = "scvi_dist_content"
"""Attribute of a store's root: JSON text, path of a matrix -> :class:`Content`."""

LAYOUTS = ("anndata", "training")
CODECS = ("lz4", "zstd")
_KIND_OF_SUFFIX = {".h5ad": "h5ad", ".zarr": "zarr", ".soma": "soma", ".tiledb": "soma"}
_MARKER = "convert.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class CopyConfig:
    """How a copy is laid out on disk."""

    layout: str = "anndata"
    """``anndata``: the types that the source has, as anndata writes them. ``training``: counts as
    the smallest unsigned integers that hold them, 16-bit gene numbers, checksums (Zarr only)."""
    chunk_rows: int = 64
    """Rows that a reader decodes at least, on average."""
    codec: str = "lz4"
    """``lz4`` is fast, ``zstd`` is small (training layout)."""

    def __post_init__(self) -> None:
        if self.layout not in LAYOUTS:
            raise ConfigError(
                f"layout {self.layout!r} does not exist; {did_you_mean(self.layout, LAYOUTS)}"
            )
        if self.codec not in CODECS:
            raise ConfigError(
                f"codec {self.codec!r} does not exist; {did_you_mean(self.codec, CODECS)}"
            )
        if self.chunk_rows < 1:
            raise ConfigError(f"chunk_rows must be at least 1, seen {self.chunk_rows}.")


@dataclass(frozen=True, kw_only=True)
class Converted:
    """What was written."""

    url: str
    matrices: tuple[str, ...]
    """Paths: ``X``, ``layers/<name>``, ``raw/X``."""
    lost: tuple[str, ...]
    """What the source has and the copy has not, each in a few words."""
    content: dict[str, Content] = field(default_factory=dict)
    """Path of a matrix -> its facts."""


def convert_store(
    store: Store,
    url: str | os.PathLike[str],
    *,
    kind: str | None = None,
    config: CopyConfig | None = None,
    overwrite: bool = False,
    on_progress: OnProgress | None = None,
    storage_options: Mapping[str, Any] | None = None,
) -> Converted:
    """Copy a store: X, layers and raw, obs, var, obsm, varm and uns, as far as the source has them.

    A store that was opened at a layer gives that layer, as X, and no other matrix. obsp and varp
    are not copied; arrays of obsm become float32. ``Converted.lost`` lists what is left out.

    Parameters
    ----------
    store
        What to copy: of one file, of many, or a view by genes and obs filter.
    url
        Where to: a local path; for Zarr also any fsspec URL, for SOMA any URI of TileDB.
    kind
        ``h5ad``, ``zarr`` or ``soma``; ``None``: as the end of the URL says.
    config
        Layout of the matrices.
    overwrite
        Replace a store that is there. What an interrupted copy of the same source left behind is
        always replaced.
    on_progress
        Hears the cells that are done and the cells in all, over all matrices and passes.
    storage_options
        fsspec options for the copy that are not secrets.

    Raises
    ------
    OutputExists, ConfigError
    """
    kind = kind or kind_of_output(url)
    if kind not in WRITERS:
        raise ConfigError(f"no store of kind {kind!r} is written; {did_you_mean(kind, WRITERS)}")
    config = config or CopyConfig()
    if config.layout == "training" and kind != "zarr":
        raise ConfigError(f"the training layout is one of Zarr stores; {kind} has no such choice.")
    job = _Copy(store, config, overwrite, on_progress, storage_options)
    return WRITERS[kind](job, os.fspath(url))


def kind_of_output(url: str | os.PathLike[str]) -> str:
    """The kind of store that a name asks for. Raises :class:`ConfigError` if it does not tell."""
    name = normalise_url(url).partition("?")[0]
    kind = _KIND_OF_SUFFIX.get(os.path.splitext(name)[1].lower())
    if kind is None:
        raise ConfigError(
            f"{redact_url(name)}: the name does not tell what to write; end it with .h5ad, .zarr "
            "or .soma, or give the kind."
        )
    return kind


@dataclass(frozen=True)
class _Copy:
    """A copy to be made."""

    store: Store
    config: CopyConfig
    overwrite: bool
    on_progress: OnProgress | None
    storage_options: Mapping[str, Any] | None


def _to_zarr(job: _Copy, url: str) -> Converted:
    options = job.storage_options
    marker = join_url(url, STATE, _MARKER)
    digest = job.store.digest().encode()
    ours = exists(marker, options)
    if ours:
        with open_file(marker, "rb", options) as file:
            ours = file.read() == digest
    make_way(url, job.overwrite or ours, options)
    put_whole(marker, digest, options)
    with ZarrContainer(normalise_url(url), "a", options) as container:
        done = _copy_all(job, container, url)
    remove_state(url, options)
    return done


def _to_h5ad(job: _Copy, url: str) -> Converted:
    with h5ad_file(url, job.overwrite) as container:
        return _copy_all(job, container, url)


def _to_soma(job: _Copy, url: str) -> Converted:
    from scvi_dist.data.soma.soma_writer import write_soma

    store = job.store
    layers = other_layers(store)
    write_soma(
        store,
        url,
        layers=layers,
        overwrite=job.overwrite,
        on_progress=job.on_progress,
        storage_options=job.storage_options,
    )
    extras = read_extras(store)
    lost = [
        *extras.lost,
        *(f"var[{name!r}]" for name in extras.var.columns),
        *(f"uns[{key!r}]" for key in extras.uns),
        *(f"varm[{key!r}]" for key in extras.varm),
    ]
    matrices = ("X", *("raw/X" if name == "raw" else f"layers/{name}" for name in layers))
    return Converted(url=redact_url(url), matrices=matrices, lost=tuple(lost))


WRITERS: dict[str, Callable[[_Copy, str], Converted]] = {
    "zarr": _to_zarr,
    "h5ad": _to_h5ad,
    "soma": _to_soma,
}
"""Kind of store -> what writes it."""


def other_layers(store: Store) -> tuple[str, ...]:
    """What is copied beside the matrix: nothing, if it was asked for by name."""
    if store.locator.layer is not None:
        return ()
    return tuple(name for name in store.layers if name != store.layer_name)


def _copy_all(job: _Copy, container: Container, url: str) -> Converted:
    store = job.store
    matrices: dict[str, Store] = {"X": store}
    lost = []
    for name in other_layers(store):
        try:
            matrices["raw/X" if name == "raw" else f"layers/{name}"] = store_at_layer(store, name)
        except FieldNotFound:
            lost.append(f"{name}, which lacks some of the genes")
    tell = _Progress(job.on_progress, len(matrices) * (2 if job.config.layout == "training" else 1))
    start_anndata(container)
    content = {}
    for path, matrix in matrices.items():
        if path == "raw/X":
            _write_raw(container, read_extras(matrix))
        content[path] = _copy_one(matrix, container, path, job.config, tell)
    copy_cells(store, container)
    extras = read_extras(store)
    write_extras(container, extras)
    told = json.dumps({path: facts.to_json() for path, facts in content.items()})
    finish_anndata(container, **{CONTENT: told})
    return Converted(
        url=redact_url(normalise_url(url)),
        matrices=tuple(matrices),
        lost=(*lost, *extras.lost),
        content=content,
    )


def _copy_one(
    store: Store, container: Container, path: str, config: CopyConfig, tell: "_Progress"
) -> Content:
    """One matrix; in the training layout a first pass finds the smallest type."""
    seen = Content()
    if config.layout == "training":
        for stop, block in blocks_of(store):
            seen += Content.of(block)
            tell(stop, store.n_obs)
        tell.next()
        small = seen.value_type(type_of_values(store))
        layout = training_layout(store, small, config.chunk_rows, config.codec)
        copy_matrix(store, container, path, layout, tell)
        tell.next()
        return seen
    blocks: list[Content] = [seen]

    def look(block: Any) -> None:
        blocks[0] = blocks[0] + Content.of(block)

    copy_matrix(store, container, path, same_layout(store, config.chunk_rows), tell, look)
    tell.next()
    return blocks[0]


def write_extras(container: Container, extras: Extras) -> None:
    """var with its columns, varm and uns."""
    container.element("var", extras.var)
    for key, value in extras.varm.items():
        container.element(f"varm/{key}", value)
    if extras.uns:
        container.element("uns", extras.uns)


def _write_raw(container: Container, extras: Extras) -> None:
    container.group("raw", "raw", "0.1.0")
    container.element("raw/var", extras.var)
    container.group("raw/varm", "dict", "0.1.0")
    for key, value in extras.varm.items():
        container.element(f"raw/varm/{key}", value)


class _Progress:
    """Progress over several passes, each of all cells."""

    def __init__(self, on_progress: OnProgress | None, n_passes: int) -> None:
        self._tell, self._n_passes, self._done = on_progress, n_passes, 0

    def next(self) -> None:
        self._done += 1

    def __call__(self, done: int, n_obs: int) -> None:
        if self._tell:
            self._tell(self._done * n_obs + done, self._n_passes * n_obs)


def stored_content(attributes: Mapping[str, Any]) -> dict[str, Content]:
    """The facts that a copy was written with; none for a store that others wrote."""
    told = attributes.get(CONTENT)
    if not isinstance(told, str):
        return {}
    return {path: Content.from_json(tree) for path, tree in json.loads(told).items()}
