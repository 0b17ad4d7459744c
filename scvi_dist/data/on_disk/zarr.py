"""AnnData in a Zarr group, format 2 or 3, sharded or not, local or behind any fsspec URL.

Metadata, tables and dense matrices are read by the zarr library. The one-dimensional arrays of a
CSR matrix are read chunk by chunk where their codecs are known to ``chunks``.
"""

import os
import threading
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import zarr
from zarr.storage import LocalStore

from scvi_dist.data.big_arrays import new_array
from scvi_dist.data.filesystem import (
    exists,
    is_remote,
    normalise_url,
    not_found,
    redact_url,
    unreadable,
)
from scvi_dist.data.on_disk.anndata_store import open_anndata
from scvi_dist.data.on_disk.chunks import ChunkDamaged, LocalObjects
from scvi_dist.data.on_disk.layout import as_text, native
from scvi_dist.data.on_disk.zarr_chunks import ChunkLayout, object_keys
from scvi_dist.data.remote.cached_objects import objects_at
from scvi_dist.data.remote.objects import RemoteObjects
from scvi_dist.data.remote.remote_zarr import RemoteZarrStore
from scvi_dist.data.spans import read_joined, total_length
from scvi_dist.data.store import Store, StoreLocator
from scvi_dist.errors import StoreChanged, StoreCorrupt, StoreError, UnsupportedStore

_STAMPED_LOCALLY = 4096
_STAMPED_REMOTELY = 8
# What zarr, its codecs and its stores raise for damaged metadata or chunks.
_DAMAGE = (RuntimeError, ValueError, KeyError, TypeError, EOFError, OSError)


def open_zarr(locator: StoreLocator) -> Store:
    """The store of a locator of kind ``zarr``; opening reads metadata only."""
    return open_anndata(ZarrTree(locator.url, locator.fsspec_options()), locator)


class ZarrTree:
    """The elements of a Zarr group."""

    def __init__(self, url: str, storage_options: dict[str, Any]) -> None:
        self.where = redact_url(url)
        self._url = normalise_url(url)
        self._options = storage_options
        self._lock = threading.RLock()
        self._closed = False
        self.objects: LocalObjects | RemoteObjects
        if is_remote(self._url):
            if "?" in self._url:
                raise UnsupportedStore(
                    f"{self.where}: the URL has a query; a Zarr group is many objects, and a "
                    "signed URL leads to one. Use the storage service's own scheme (s3://, gs://, "
                    "abfs://) with credentials from the environment."
                )
            self.objects = objects_at(self._url, storage_options)
        else:
            self.objects = LocalObjects(self._url)
        self._root = self._open()
        self._nodes: dict[str, zarr.Group | zarr.Array | None] = {"": self._root}
        self._arrays: dict[str, ZarrArray] = {}

    def _open(self) -> zarr.Group:
        try:
            store: Any
            if isinstance(self.objects, RemoteObjects):
                store = RemoteZarrStore(self.objects)
            else:
                store = LocalStore(self._url, read_only=True)
            return zarr.open_group(store, mode="r")
        except (FileNotFoundError, zarr.errors.ContainsArrayError) as error:
            if not exists(self._url, self._options):
                raise not_found(self._url) from None
            raise UnsupportedStore(
                f"{self.where} is not a Zarr group; expected a store as anndata writes it with "
                "write_zarr (a folder with zarr.json, .zgroup or .zmetadata)."
            ) from error
        except _DAMAGE as error:
            raise unreadable(self.where, "its Zarr metadata", error)  # noqa: B904 (sets the cause)

    def _node(self, path: str) -> zarr.Group | zarr.Array | None:
        self.check_open()
        with self._lock:
            if path not in self._nodes:
                try:
                    self._nodes[path] = self._root.get(path)
                except _DAMAGE as error:
                    raise unreadable(  # noqa: B904 (it sets the cause)
                        self.where, f"the metadata of {path}", error
                    )
            return self._nodes[path]

    def check_open(self) -> None:
        """Raise :class:`StoreError` after ``close``."""
        if self._closed:
            raise StoreError(f"{self.where} was closed; open it again with its locator.")

    def kind(self, path: str) -> Literal["group", "array"] | None:
        node = self._node(path)
        if node is None:
            return None
        return "group" if isinstance(node, zarr.Group) else "array"

    def children(self, path: str) -> list[str]:
        node = self._node(path)
        return list(node.keys()) if isinstance(node, zarr.Group) else []

    def attributes(self, path: str) -> dict[str, Any]:
        node = self._node(path)
        return {} if node is None else dict(node.attrs)

    def array(self, path: str) -> "ZarrArray":
        node = self._node(path)
        if not isinstance(node, zarr.Array):
            raise StoreCorrupt(f"{self.where}: expected an array at {path}.")
        with self._lock:
            if path not in self._arrays:
                self._arrays[path] = ZarrArray(self, path, node)
            return self._arrays[path]

    def element(self, path: str) -> Any:
        """A whole element as anndata reads it."""
        from anndata.io import read_elem

        try:
            return read_elem(self._node(path))
        except _DAMAGE as error:
            raise unreadable(self.where, path, error)  # noqa: B904 (it sets the cause)

    def is_matrix_part(self, path: str) -> bool:
        """Whether an array holds the values of a sparse matrix."""
        parent, _, name = path.rpartition("/")
        encoding = str(self.attributes(parent).get("encoding-type", ""))
        return name == "data" and encoding.startswith("cs")

    def stamp(self, paths: Sequence[str]) -> str:
        local = not is_remote(self._url)
        limit = _STAMPED_LOCALLY if local else _STAMPED_REMOTELY
        nodes = [(path, self._node(path)) for path in paths]
        keys = [
            f"{path}/{key}"
            for path, node in nodes
            if isinstance(node, zarr.Array)
            for key in object_keys(node, limit)
        ]
        if isinstance(self.objects, RemoteObjects):
            try:
                found = self.objects.facts(keys)
            except OSError as error:
                raise unreadable(self.where, "the versions of its objects", error)  # noqa: B904
            return " ".join("-" if f is None else f"{f.size}:{f.stamp}" for f in found)
        return " ".join(self._local_stamp(key) for key in keys)

    def version(self) -> str:
        # Who writes an AnnData writes the metadata of its root.
        names = () if is_remote(self._url) else ("zarr.json", ".zgroup", ".zmetadata")
        return " ".join(map(self._local_stamp, names))

    def stamp_of_metadata(self, path: str, array: zarr.Array) -> str:
        """What changes when a local array is written anew; remote ones are compared as fetched."""
        if is_remote(self._url):
            return ""
        name = "zarr.json" if array.metadata.zarr_format == 3 else ".zarray"
        return self._local_stamp(f"{path}/{name}")

    def _local_stamp(self, key: str) -> str:
        try:
            status = os.stat(os.path.join(self._url, key))
        except FileNotFoundError:
            return "-"
        return f"{status.st_size}:{status.st_mtime_ns}"

    def size_on_disk(self) -> int | None:
        if is_remote(self._url):
            return None
        return sum(
            os.stat(os.path.join(folder, name)).st_size
            for folder, _, names in os.walk(self._url)
            for name in names
        )

    def close(self) -> None:
        self._closed = True


class ZarrArray:
    """An array of a Zarr group."""

    def __init__(self, tree: ZarrTree, path: str, array: zarr.Array) -> None:
        self._tree = tree
        self._path = path
        self._array = array
        self.shape: tuple[int, ...] = tuple(array.shape)
        self.dtype: np.dtype = native(np.dtype(array.dtype))
        self._chunk = max(1, int(array.chunks[0])) if array.chunks else 1
        self._layout = ChunkLayout.of(array, path)
        self._stamp = tree.stamp_of_metadata(path, array)

    @property
    def chunk_rows(self) -> int:
        return self._chunk

    def read(self, spans: np.ndarray, dtype: Any = None) -> np.ndarray:
        """Members of ascending spans along the first axis."""
        self._tree.check_open()
        kept = dtype or (object if self.dtype.kind in "OTU" else self.dtype)
        out = new_array((total_length(spans), *self.shape[1:]), kept)
        if len(spans) and self._layout is not None:
            self._read_chunks(self._layout, spans, out)
        elif len(spans):
            read_joined(self._slice, spans, out, chunk=self._chunk, max_gap=0, decodes=True)
        self._check_unchanged()
        return as_text(out) if self.dtype.kind in "OTU" else out

    def _check_unchanged(self) -> None:
        if self._tree.stamp_of_metadata(self._path, self._array) != self._stamp:
            raise StoreChanged(
                f"{self._tree.where}: {self._path} was written anew while it was read. What was "
                "read may be a mixture; start again with the store as it is now, and write to "
                "other places only."
            )

    def _read_chunks(self, layout: ChunkLayout, spans: np.ndarray, out: np.ndarray) -> None:
        try:
            absent = layout.read(self._tree.objects, spans, out)
        except StoreError:
            raise
        except (ChunkDamaged, OSError) as error:
            raise self._damaged(  # noqa: B904 (it sets the cause)
                int(spans[0, 0]), int(spans[-1, 1]), error
            )
        if absent and self._tree.is_matrix_part(self._path):
            self._check_unchanged()
            # Zarr leaves out chunks of nothing but zeros; a sparse matrix stores no zeros.
            raise StoreCorrupt(
                f"{self._tree.where}: chunk {absent[0]} of {self._path} (entries "
                f"{absent[0] * self._chunk} to {(absent[0] + 1) * self._chunk}) is not there. The "
                "store was not copied completely."
            )

    def _slice(self, start: int, stop: int) -> np.ndarray:
        try:
            return np.asarray(self._array[start:stop])
        except _DAMAGE as error:
            raise self._damaged(start, stop, error)  # noqa: B904 (it sets the cause)

    def _damaged(self, start: int, stop: int, error: Exception) -> StoreError:
        self._check_unchanged()
        return unreadable(self._tree.where, f"{self._path} (entries {start} to {stop})", error)
