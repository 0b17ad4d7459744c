"""An HDF5 array that lies in its file in one piece, as it would in memory: read past HDF5.

HDF5 serves one thread at a time, and what it reads goes through an array of its own. Such an array
needs neither: where it begins is known, and the system copies its members to where they belong.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod

import h5py
import numpy as np

from scvi_dist.data.on_disk.entry_check import narrowed

_SCRATCH_BYTES = 256 << 10
"""Members of another type than is asked for wait here: still in the cache when they are copied."""


@dataclass(frozen=True, slots=True)
class H5Contiguous:
    """Where the members of an array are in a local file."""

    path: str
    offset: int
    shape: tuple[int, ...]
    dtype: np.dtype

    @staticmethod
    def of(dataset: h5py.Dataset, path: str) -> "H5Contiguous | None":
        """The place; ``None`` if the array is one that only HDF5 reads."""
        plain = dataset.chunks is None and dataset.ndim > 0 and dataset.dtype.kind in "iuf"
        native = dataset.dtype.newbyteorder("=") == dataset.dtype
        if not plain or not native or dataset.external or dataset.is_virtual:
            return None
        # None for arrays that nothing was written to, and for small ones in their own header.
        offset = dataset.id.get_offset()
        return None if offset is None else H5Contiguous(path, offset, dataset.shape, dataset.dtype)

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
        wanted = memoryview(out.view(np.uint8))  # type: ignore[arg-type]
        place, done = self.offset + start * self.dtype.itemsize, 0
        while done < len(wanted):
            # One call gives at most 2 GiB.
            n = os.preadv(handle, [wanted[done:]], place + done)
            if n == 0:
                raise OSError(
                    f"the file ends {len(wanted) - done} bytes before what it should hold"
                )
            done += n
