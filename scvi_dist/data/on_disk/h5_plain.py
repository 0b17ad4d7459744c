"""An HDF5 array that lies in its file as in memory, in one piece or several: read past HDF5.

HDF5 serves one thread at a time, and what it reads goes through an array of its own. Such an array
needs neither: where its pieces begin is known, and the system copies its members to where they
belong. So are the sparse matrices that anndata writes without compression: in chunks, of which one
follows the other.
"""

import os
from bisect import bisect_right
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from math import prod
from typing import Any

import h5py
import numpy as np

from scvi_dist.data.on_disk.entry_check import narrowed

_SCRATCH_BYTES = 256 << 10
"""Members of another type than is asked for wait here: still in the cache when they are copied."""


@dataclass(frozen=True, slots=True)
class Pieces:
    """Stretches of an array that lie in one piece."""

    firsts: list[int]
    """First member of each, ascending from 0."""
    places: list[int]
    """Byte of the file where it is."""


@dataclass(frozen=True, slots=True)
class H5Plain:
    """Where the members of an array are in a local file."""

    path: str
    shape: tuple[int, ...]
    dtype: np.dtype
    pieces: Callable[[], Pieces]
    """Asked for when something is read."""

    @staticmethod
    def of(dataset: h5py.Dataset, path: str, lock: Any) -> "H5Plain | None":
        """The place; ``None`` if the array is one that only HDF5 reads.

        Parameters
        ----------
        lock
            Held while HDF5 is asked where chunks are.
        """
        native = dataset.dtype.newbyteorder("=") == dataset.dtype
        if dataset.ndim == 0 or dataset.dtype.kind not in "iuf" or not native:
            return None
        if dataset.external or dataset.is_virtual:
            return None
        if dataset.chunks is None:
            # None for arrays that nothing was written to, and for small ones in their own header.
            offset = dataset.id.get_offset()
            if offset is None:
                return None
            pieces = Pieces([0], [offset])
            return H5Plain(path, dataset.shape, dataset.dtype, lambda: pieces)
        n_chunks = -(-len(dataset) // dataset.chunks[0])
        is_filtered = dataset.id.get_create_plist().get_nfilters() > 0
        if dataset.ndim > 1 or is_filtered or dataset.id.get_num_chunks() != n_chunks:
            return None
        return H5Plain(path, dataset.shape, dataset.dtype, cache(lambda: _chunks(dataset, lock)))

    def read(self, spans: np.ndarray, out: np.ndarray) -> None:
        """Fill ``out`` with the members of ascending spans ``[m, 2]`` along the first axis.

        Raises ``OSError`` where the file ends before the array does.
        """
        with self._opened() as handle:
            for start, piece in self._pieces(spans, out):
                if out.dtype == self.dtype:
                    self._copy(handle, start, piece)
                    continue
                for values, place in self._in_scratch(handle, start, piece):
                    place[:] = values

    def read_narrow(self, spans: np.ndarray, out: np.ndarray) -> bool:
        """Fill ``out``, uint16, with integer members; False where one of them does not fit.

        Raises ``OSError`` where the file ends before the array does.
        """
        with self._opened() as handle:
            return all(
                narrowed(values, place)
                for start, piece in self._pieces(spans, out)
                for values, place in self._in_scratch(handle, start, piece)
            )

    @contextmanager
    def _opened(self) -> Iterator[int]:
        handle = os.open(self.path, os.O_RDONLY)
        try:
            yield handle
        finally:
            os.close(handle)

    def _pieces(self, spans: np.ndarray, out: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
        """First member of each span, counted singly, and its place."""
        flat, done = out.reshape(-1), 0
        for start, stop in (spans * prod(self.shape[1:])).tolist():
            yield start, flat[done : done + stop - start]
            done += stop - start

    def _in_scratch(
        self, handle: int, start: int, out: np.ndarray
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Members as they are stored, some at a time, and the place of each."""
        scratch = np.empty(max(1, _SCRATCH_BYTES // self.dtype.itemsize), dtype=self.dtype)
        for done in range(0, len(out), len(scratch)):
            place = out[done : done + len(scratch)]
            values = scratch[: len(place)]
            self._copy(handle, start + done, values)
            yield values, place

    def _copy(self, handle: int, start: int, out: np.ndarray) -> None:
        firsts, places = self.pieces().firsts, self.pieces().places
        done = 0
        for k in range(bisect_right(firsts, start) - 1, len(firsts)):
            inside = start + done - firsts[k]
            length = firsts[k + 1] - firsts[k] - inside if k + 1 < len(firsts) else len(out)
            piece = out[done : done + length]
            self._copy_bytes(handle, places[k] + inside * self.dtype.itemsize, piece)
            done += len(piece)
            if done == len(out):
                return

    @staticmethod
    def _copy_bytes(handle: int, place: int, out: np.ndarray) -> None:
        wanted, done = memoryview(out.view(np.uint8)), 0  # type: ignore[arg-type]
        while done < len(wanted):
            # One call gives at most 2 GiB.
            n = os.preadv(handle, [wanted[done:]], place + done)
            if n == 0:
                raise OSError(
                    f"the file ends {len(wanted) - done} bytes before what it should hold"
                )
            done += n


def _chunks(dataset: h5py.Dataset, lock: Any) -> Pieces:
    """The chunks of a one-dimensional array; those that follow each other are one piece."""
    chunk = dataset.chunks[0]
    firsts = np.arange(0, len(dataset), chunk)
    with lock:
        infos = (dataset.id.get_chunk_info_by_coord((first,)) for first in firsts.tolist())
        places = np.array([info.byte_offset for info in infos], dtype=np.int64)
    begins = np.diff(places, prepend=-1) != chunk * dataset.dtype.itemsize
    return Pieces(firsts[begins].tolist(), places[begins].tolist())
