"""AnnData in an HDF5 file (``.h5ad``), on this machine or behind any fsspec URL."""

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import h5py
import numpy as np

from scvi_dist.data.big_arrays import new_array
from scvi_dist.data.filesystem import (
    file_facts,
    is_folder,
    is_remote,
    normalise_url,
    not_found,
    open_file,
    redact_text,
    redact_url,
    unreadable,
)
from scvi_dist.data.on_disk.anndata_store import open_anndata
from scvi_dist.data.on_disk.chunks import ChunkDamaged, LocalObjects, Objects
from scvi_dist.data.on_disk.h5_chunks import H5ChunkLayout
from scvi_dist.data.on_disk.h5_plain import H5Plain
from scvi_dist.data.on_disk.layout import as_text, native
from scvi_dist.data.remote.cached_objects import objects_at
from scvi_dist.data.remote.objects import RemoteFile, no_garbage_collection
from scvi_dist.data.spans import read_joined, total_length
from scvi_dist.data.store import Store, StoreLocator
from scvi_dist.errors import StoreChanged, StoreCorrupt, StoreError, UnsupportedStore

_SIGNATURE = b"\x89HDF\r\n\x1a\n"
_KNOWS_USER_BLOCK = (2, 0, 0)
_LOCAL_GAP_BYTES = 32 << 10
_REMOTE_GAP_BYTES = 1 << 20


def open_h5ad(locator: StoreLocator) -> Store:
    """The store of a locator of kind ``h5ad``; opening reads metadata only."""
    tree = H5Tree(locator.url, locator.fsspec_options())
    try:
        return open_anndata(tree, locator)
    except BaseException:
        tree.close()
        raise


class H5Tree:
    """The elements of an HDF5 file. One handle and one lock: HDF5 serves one thread at a time."""

    def __init__(self, url: str, storage_options: dict[str, Any]) -> None:
        self.where = redact_url(url)
        self._url = url
        self.is_remote = is_remote(url)
        self.path = "" if self.is_remote else normalise_url(url)
        """Of a local file."""
        self.objects: Objects = (
            objects_at(url, storage_options) if self.is_remote else LocalObjects(self.path)
        )
        self.gap_bytes = _REMOTE_GAP_BYTES if is_remote(url) else _LOCAL_GAP_BYTES
        self.lock = threading.RLock()
        self._source: RemoteFile | None = None
        self._facts = file_facts(url, storage_options)
        self._file = self._open(url, storage_options)
        # What comes before the HDF5 in a file (a line of text in .h5mu) shifts its chunks, which
        # older versions of HDF5 do not say.
        self.misplaces_chunks = (
            h5py.version.hdf5_version_tuple < _KNOWS_USER_BLOCK and self._file.userblock_size > 0
        )
        self._arrays: dict[str, H5Array] = {}

    def _open(self, url: str, storage_options: dict[str, Any]) -> h5py.File:
        try:
            if not is_remote(url):
                # Many network file systems have no locks; reading goes on without one there.
                return h5py.File(normalise_url(url), "r", locking="best-effort")
            self._source = RemoteFile(self.objects, self._facts.size)
            with no_garbage_collection():
                return h5py.File(self._source, "r")
        except FileNotFoundError:
            raise not_found(url) from None
        except OSError as error:
            failure = None if self._source is None else self._source.failure
            if failure is not None:
                raise unreadable(self.where, "it", failure)  # noqa: B904 (it sets the cause)
            raise self._cannot_open(url, storage_options, error) from error

    def _cannot_open(self, url: str, options: dict[str, Any], error: OSError) -> StoreError:
        if isinstance(error, PermissionError):
            return StoreError(f"{self.where}: not allowed to read it.")
        if is_folder(url, options):
            return UnsupportedStore(f"{self.where} is a folder, expected an h5ad file.")
        with open_file(url, storage_options=options) as file:
            start = file.read(len(_SIGNATURE))
        if len(start) == len(_SIGNATURE) and start != _SIGNATURE:
            return UnsupportedStore(
                f"{self.where} is not an HDF5 file (it begins with {start!r}); expected an h5ad "
                "file as anndata writes it."
            )
        return StoreCorrupt(
            f"{self.where} cannot be opened: {redact_text(str(error))}. Its size is "
            f"{self._facts.size} bytes; it was probably not copied or written to its end."
        )

    @contextmanager
    def reading(self, path: str, what: str = "") -> Iterator[h5py.File]:
        """The open file, for one thread at a time; HDF5's errors become ours."""
        with self.lock, self.damage_of(path, what):
            yield self._file

    @contextmanager
    def damage_of(self, path: str, what: str) -> Iterator[None]:
        """Errors of HDF5 and of codecs become :class:`StoreCorrupt`."""
        if not self._file:
            raise StoreError(f"{self.where} was closed; open it again with its locator.")
        try:
            yield
        except StoreError:
            raise
        except (OSError, RuntimeError, KeyError, ChunkDamaged) as error:
            self.check_unchanged()
            failure = self._source and self._source.failure  # HDF5 only says that reading failed.
            cause = failure if isinstance(failure, Exception) else error
            raise unreadable(self.where, path + what, cause)  # noqa: B904 (it sets the cause)

    def kind(self, path: str) -> Literal["group", "array"] | None:
        with self.reading(path) as file:
            found = file.get(path, getclass=True)
        if found is None:
            return None
        return "group" if found is h5py.Group else "array"

    def children(self, path: str) -> list[str]:
        with self.reading(path) as file:
            return list(file[path or "/"])

    def attributes(self, path: str) -> "H5Attributes":
        return H5Attributes(self, path)

    def array(self, path: str) -> "H5Array":
        with self.reading(path) as file:
            if path not in self._arrays:
                self._arrays[path] = H5Array(self, path, file[path])
            return self._arrays[path]

    def element(self, path: str) -> Any:
        """A whole element as anndata reads it."""
        from anndata.io import read_elem

        with self.reading(path) as file:
            return read_elem(file[path])

    def check_unchanged(self) -> None:
        """Raise :class:`StoreChanged` if the local file is not the one that was opened."""
        if self.is_remote:
            return  # whoever fetches from there compares versions
        seen = file_facts(self._url)
        if seen != self._facts:
            raise StoreChanged(
                f"{self.where} was changed while it was read: it had {self._facts.size} bytes, now "
                f"it has {seen.size}, or it was written to. What was read from it may be wrong; "
                "start again with the file as it is now, and write to other files only."
            )

    def stamp(self, paths: Sequence[str]) -> str:
        return self.version()

    def version(self) -> str:
        return f"{self._facts.size} {self._facts.stamp}"

    def size_on_disk(self) -> int:
        return self._facts.size

    def close(self) -> None:
        with self.lock:
            # HDF5 closes a file with its last object. File.close() looks through all objects of
            # all open files for those of this one, which takes longer than opening it.
            for array in self._arrays.values():
                array.forget()
            self._arrays.clear()
            self._file = None
            if self._source is not None:
                self._source.close()


class H5Attributes(Mapping[str, Any]):
    """Attributes of an element; each is read when it is asked for, which most never are."""

    def __init__(self, tree: H5Tree, path: str) -> None:
        self._tree, self._path = tree, path or "/"

    def __getitem__(self, name: str) -> Any:
        with self._tree.reading(self._path) as file:
            attributes = file[self._path or "/"].attrs
            if name in attributes:
                return _plain(attributes[name], file)
        raise KeyError(name)

    def __contains__(self, name: object) -> bool:
        with self._tree.reading(self._path) as file:
            return name in file[self._path or "/"].attrs

    def __iter__(self) -> Iterator[str]:
        with self._tree.reading(self._path) as file:
            return iter(list(file[self._path or "/"].attrs))

    def __len__(self) -> int:
        return len(list(iter(self)))


class H5Array:
    """A data set of an HDF5 file."""

    def __init__(self, tree: H5Tree, path: str, dataset: h5py.Dataset) -> None:
        if not isinstance(dataset, h5py.Dataset):
            raise StoreCorrupt(f"{tree.where}: {path} is a group, expected an array.")
        self._tree = tree
        self._path = path
        self._dataset = dataset
        self.shape: tuple[int, ...] = dataset.shape or ()
        self.dtype: np.dtype = native(dataset.dtype)
        self._chunk = int(dataset.chunks[0]) if dataset.chunks else None
        self._decodes = dataset.id.get_create_plist().get_nfilters() > 0
        knows_chunks = dataset.chunks is None or not tree.misplaces_chunks
        by_chunks = (self._decodes or tree.is_remote) and knows_chunks
        self._layout = H5ChunkLayout.of(dataset, tree.lock) if by_chunks else None
        is_local = knows_chunks and not tree.is_remote
        self._place = H5Plain.of(dataset, tree.path, tree.lock) if is_local else None

    def forget(self) -> None:
        """Let go of the file."""
        self._dataset = self._layout = self._place = None

    @property
    def chunk_rows(self) -> int:
        # Of a chunk that is not compressed HDF5 reads only the part that is asked for.
        return self._chunk if self._chunk is not None and self._decodes else 1

    def read(self, spans: np.ndarray, dtype: Any = None) -> np.ndarray:
        """Members of ascending spans along the first axis."""
        values = self._read(spans, np.dtype(dtype or self.dtype))
        self._tree.check_unchanged()
        return values

    def _read(self, spans: np.ndarray, dtype: np.dtype) -> np.ndarray:
        if self._layout is not None and len(spans):
            return self._read_chunks(self._layout, spans, dtype)
        if self._place is not None and len(spans):
            return self._read_place(self._place, spans, dtype)
        if len(spans) == 1 and self.dtype.kind != "O":
            return self._slice(*spans[0].tolist()).astype(dtype, copy=False)
        out = new_array((total_length(spans), *self.shape[1:]), dtype)
        row_bytes = max(1, self.dtype.itemsize * int(np.prod(self.shape[1:])))
        read_joined(
            self._slice,
            spans,
            out,
            chunk=self._chunk,
            max_gap=self._tree.gap_bytes // row_bytes,
            decodes=self._decodes,
        )
        return as_text(out) if self.dtype.kind == "O" else out

    def _read_chunks(self, layout: H5ChunkLayout, spans: np.ndarray, dtype: np.dtype) -> np.ndarray:
        out = new_array(total_length(spans), dtype)
        bounds = f" (entries {spans[0, 0]} to {spans[-1, 1]})"
        with self._tree.damage_of(self._path, bounds):
            layout.read(self._tree.objects, spans, out)
        return out

    def _read_place(self, place: H5Plain, spans: np.ndarray, dtype: np.dtype) -> np.ndarray:
        out = new_array((total_length(spans), *self.shape[1:]), dtype)
        with self._tree.damage_of(self._path, f" (entries {spans[0, 0]} to {spans[-1, 1]})"):
            place.read(spans, out)
        return out

    def read_narrow(self, spans: np.ndarray) -> np.ndarray | None:
        """Members as uint16; ``None`` where they are not all read so, or one does not fit."""
        if self._place is None or self._layout is not None or self.dtype.kind != "i":
            return None
        # None are as short as some are: what is joined with them stays so.
        out = new_array(total_length(spans), np.uint16)
        if not len(spans):
            return out
        with self._tree.damage_of(self._path, f" (entries {spans[0, 0]} to {spans[-1, 1]})"):
            fits = self._place.read_narrow(spans, out)
        self._tree.check_unchanged()
        return out if fits else None

    def _slice(self, start: int, stop: int) -> np.ndarray:
        with self._tree.reading(self._path, f" (entries {start} to {stop})"):
            return self._dataset[start:stop]


def _plain(value: Any, file: h5py.File) -> Any:
    """An attribute as a Python value; a reference becomes the path it leads to."""
    if isinstance(value, h5py.Reference):
        return str(file[value].name).strip("/")
    if isinstance(value, bytes):
        return value.decode()
    if isinstance(value, np.ndarray):
        return [_plain(member, file) for member in value.tolist()]
    return value.item() if isinstance(value, np.generic) else value
