"""Where the chunks of a one-dimensional HDF5 array are, and how they were encoded.

HDF5 decodes under one lock. Knowing where a chunk lies in the file, threads fetch and decode
chunks side by side, and chunks of a remote file are asked for many at a time.
"""

import threading
from dataclasses import dataclass, field
from typing import Any

import h5py
import numpy as np

from scvi_dist.data.on_disk.chunks import DECODERS, Decoder, Objects, Piece, read_chunks, unshuffled

_DEFLATE, _SHUFFLE = h5py.h5z.FILTER_DEFLATE, h5py.h5z.FILTER_SHUFFLE


@dataclass(frozen=True)
class H5ChunkLayout:
    """How to read a chunked one-dimensional array of numbers without the HDF5 library."""

    dataset: h5py.Dataset
    chunk: int
    decode: Decoder
    lock: threading.RLock
    """Held while HDF5 is asked where a chunk is."""
    _known: dict[int, Piece | None] = field(default_factory=dict, repr=False)

    @staticmethod
    def of(dataset: h5py.Dataset, lock: Any) -> "H5ChunkLayout | None":
        """The layout; ``None`` if the array is one that only HDF5 reads."""
        if dataset.chunks is None or dataset.ndim != 1 or dataset.dtype.kind not in "iuf":
            return None
        plist = dataset.id.get_create_plist()
        filters = [plist.get_filter(i)[0] for i in range(plist.get_nfilters())]
        shuffled = filters[:1] == [_SHUFFLE]
        compressor = {(): "", (_DEFLATE,): "zlib"}.get(tuple(filters[shuffled:]))
        native = dataset.dtype.newbyteorder("=") == dataset.dtype
        if compressor is None or not native or dataset.fillvalue != 0 or dataset.external:
            return None
        decode = DECODERS[compressor]()
        if shuffled:
            decode = unshuffled(decode, dataset.dtype.itemsize)
        return H5ChunkLayout(dataset, int(dataset.chunks[0]), decode, lock)

    def read(self, objects: Objects, spans: np.ndarray, out: np.ndarray) -> None:
        """Fill ``out`` with the members of ascending spans."""
        read_chunks(
            spans,
            out,
            chunk=self.chunk,
            dtype=self.dataset.dtype,
            fetch=lambda numbers: self._fetch(objects, numbers),
            decode=self.decode,
            batch_bytes=objects.batch_bytes,
        )

    def _fetch(self, objects: Objects, numbers: list[int]) -> list[memoryview | None]:
        places = self._locate(numbers)
        fetched = objects.fetch([place for place in places if place is not None])
        if any(content is None for content in fetched):
            raise FileNotFoundError("the file is no longer there")
        contents = iter(fetched)
        return [None if place is None else next(contents) for place in places]

    def _locate(self, numbers: list[int]) -> list[Piece | None]:
        with self.lock:
            for number in numbers:
                if number not in self._known:
                    stored = self.dataset.id.get_chunk_info_by_coord((number * self.chunk,))
                    if stored.filter_mask:
                        raise OSError(f"chunk {number} was stored without its filters")
                    start = stored.byte_offset
                    piece = None if start is None else Piece("", start, start + stored.size)
                    self._known[number] = piece
            return [self._known[number] for number in numbers]
