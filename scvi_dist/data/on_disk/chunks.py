"""Reading one-dimensional compressed arrays chunk by chunk, past the array library.

Both HDF5 (one lock for all threads) and zarr's Python pipeline (several tasks of an event loop per
chunk) spend more time around a chunk than in it. Here a chunk's bytes are fetched with its
neighbours' in one read, decoded without the GIL, and copied to where they belong. What this module
cannot decode, the array library reads (see ``DECODERS``).
"""

import itertools
import os
import zlib
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import Any, NamedTuple, Protocol

import numpy as np

from scvi_dist.data.spans import expand

Decoder = Callable[[Any, np.ndarray], None]
"""``decode(stored bytes, out)`` fills ``out`` (uint8) or raises :class:`ChunkDamaged`."""

_LOCAL_BATCH_BYTES, REMOTE_BATCH_BYTES = 2 << 20, 16 << 20
"""What is fetched in one go, decoded: what still is in the processor's cache when it is decoded, or
enough to keep a network busy."""
_LEAST_BATCH_BYTES = 1 << 20
_LOCAL_GAP_BYTES = 64 << 10
REMOTE_GAP_BYTES = 1 << 20
"""Bytes between two pieces of a remote object that are read rather than asked for apart."""


class ChunkDamaged(Exception):
    """The stored bytes of a chunk are not what its codec expects."""


class Piece(NamedTuple):
    """Bytes ``start … stop - 1`` of an object; a negative start counts from its end."""

    key: str
    start: int | None = None
    stop: int | None = None

    @property
    def is_bounded(self) -> bool:
        """Whether both ends are known without knowing the size of the object."""
        return self.start is not None and self.stop is not None and self.start >= 0


class Objects(Protocol):
    """Files below one place."""

    batch_bytes: int
    """Bytes of decoded chunks that are best fetched in one go."""

    def fetch(self, pieces: Sequence[Piece]) -> list[memoryview | None]:
        """The bytes of each piece; ``None`` where there is no such object."""


class LocalObjects:
    """Files of a folder (or one file, if all keys are empty)."""

    batch_bytes = _LOCAL_BATCH_BYTES

    def __init__(self, root: str) -> None:
        self._root = root

    def fetch(self, pieces: Sequence[Piece]) -> list[memoryview | None]:
        return fetch_joined(pieces, self._read, _LOCAL_GAP_BYTES)

    def _read(self, pieces: Sequence[Piece]) -> list[bytes | None]:
        answers: list[bytes | None] = []
        for key, group in itertools.groupby(pieces, key=lambda piece: piece.key):
            try:
                handle = os.open(os.path.join(self._root, key) if key else self._root, os.O_RDONLY)
            except FileNotFoundError:
                answers.extend(None for _ in group)
                continue
            try:
                answers.extend(_read_piece(handle, piece) for piece in group)
            finally:
                os.close(handle)
        return answers


def _read_piece(handle: int, piece: Piece) -> bytes:
    size = os.fstat(handle).st_size
    start = piece.start or 0
    start = max(0, size + start) if start < 0 else start
    stop = max(start, size if piece.stop is None else min(piece.stop, size))
    raw = os.pread(handle, stop - start, start)
    if len(raw) == stop - start:
        return raw
    parts = [raw]  # One call gives at most 2 GiB.
    while raw:
        start += len(raw)
        raw = os.pread(handle, stop - start, start)
        parts.append(raw)
    return b"".join(parts)


def fetch_joined(
    pieces: Sequence[Piece],
    read: Callable[[Sequence[Piece]], list[bytes | None]],
    max_gap: int,
) -> list[memoryview | None]:
    """Fetch pieces; those of one object that lie close together are read as one."""
    joined: list[Piece] = []
    place = [(0, 0)] * len(pieces)
    for i in sorted(range(len(pieces)), key=lambda i: _reading_order(pieces[i])):
        piece = pieces[i]
        last = joined[-1] if joined else None
        if last is not None and _lie_close(last, piece, max_gap):
            joined[-1] = Piece(piece.key, last.start, max(last.stop or 0, piece.stop or 0))
        else:
            joined.append(piece)
        offset = (piece.start or 0) - (joined[-1].start or 0)
        place[i] = (len(joined) - 1, offset)
    answers = read(joined)
    out: list[memoryview | None] = []
    for (where, offset), piece in zip(place, pieces, strict=True):
        answer = answers[where]
        view = None if answer is None else memoryview(answer)
        if view is not None and piece.is_bounded:
            view = view[offset : offset + (piece.stop or 0) - (piece.start or 0)]
        out.append(view)
    return out


def _reading_order(piece: Piece) -> tuple[str, bool, int]:
    return piece.key, piece.is_bounded, piece.start or 0


def _lie_close(one: Piece, other: Piece, max_gap: int) -> bool:
    bounded = one.is_bounded and other.is_bounded and one.key == other.key
    return bounded and (other.start or 0) - (one.stop or 0) <= max_gap


def read_chunks(
    spans: np.ndarray,
    out: np.ndarray,
    *,
    chunk: int,
    dtype: np.dtype,
    fetch: Callable[[list[int]], list[memoryview | None]],
    decode: Decoder,
    batch_bytes: int,
) -> list[int]:
    """Fill ``out`` with the members of ascending spans; each chunk is decoded once.

    Parameters
    ----------
    chunk, dtype
        Of the stored array; ``out`` may have another type.
    fetch
        The stored bytes of chunks by number, ``None`` for a chunk that is not there.
    batch_bytes
        Decoded size of the chunks that are fetched in one go.

    Returns
    -------
    Numbers of the chunks that are not there; their members are 0.
    """
    starts, stops = spans[:, 0], spans[:, 1]
    places = np.cumsum(stops - starts) - (stops - starts)
    wanted = np.unique(expand(np.stack([starts // chunk, (stops - 1) // chunk + 1], axis=1)))
    firsts = np.searchsorted(stops, wanted * chunk, side="right")
    lasts = np.searchsorted(starts, (wanted + 1) * chunk, side="left").tolist()
    # A chunk that is wanted as a whole is decoded to where it belongs.
    bases = wanted * chunk
    all_of_it = (starts[firsts] <= bases) & (stops[firsts] >= bases + chunk) & (out.dtype == dtype)
    whole_at = np.where(all_of_it, places[firsts] + bases - starts[firsts], -1).tolist()
    firsts, numbers = firsts.tolist(), wanted.tolist()
    scratch = np.empty(chunk, dtype=dtype)
    absent: list[int] = []
    # Stored bytes wait beside the result: no more of them than it, or a small window of scattered
    # rows would hold most of a store.
    waiting = min(batch_bytes, max(out.nbytes, _LEAST_BATCH_BYTES))
    batch = max(1, waiting // max(1, chunk * dtype.itemsize))
    for i in range(len(numbers)):
        if i % batch == 0:
            stored = fetch(numbers[i : i + batch])
        raw, place = stored[i % batch], whole_at[i]
        target = scratch if place < 0 else out[place : place + chunk]
        if raw is None:
            absent.append(numbers[i])
            target[:] = 0
        else:
            decode(raw, target.view(np.uint8))
        if place < 0:
            here = slice(firsts[i], lasts[i])
            for low, high, at in _pieces_of(numbers[i] * chunk, chunk, spans[here], places[here]):
                out[at : at + high - low] = scratch[low:high]
    return absent


def _pieces_of(
    base: int, chunk: int, spans: np.ndarray, places: np.ndarray
) -> list[tuple[int, int, int]]:
    """What spans want of the chunk that begins at ``base``: from, to, and place in the result."""
    return [
        (max(start - base, 0), min(stop - base, chunk), place + max(base - start, 0))
        for (start, stop), place in zip(spans.tolist(), places.tolist(), strict=True)
    ]


# Codecs


def _raw(raw: Any, out: np.ndarray) -> None:
    if len(raw) != len(out):
        raise ChunkDamaged(f"{len(raw)} bytes stored, expected {len(out)}")
    out[:] = np.frombuffer(raw, dtype=np.uint8)


def _numcodecs(name: str, size_at: int | None, length_at: int | None = None) -> Decoder:
    """``size_at``: where in the stored bytes their decoded size is, as 4 bytes; if it is nowhere,
    they are decoded before their size is known, at the price of a copy. ``length_at``: where their
    own number is; the codec believes it, and would read beyond the end of a chunk that is cut off.
    """
    # Not the codec object, which looks at every buffer twice more: as long as a small chunk takes.
    decompress = import_module(f"numcodecs.{name}").decompress

    def decode(raw: Any, out: np.ndarray) -> None:
        try:
            if size_at is None:
                _raw(decompress(raw), out)
                return
            size = int.from_bytes(raw[size_at : size_at + 4], "little")
            if size != len(out):
                raise ChunkDamaged(f"{name}: {size} bytes stored, expected {len(out)}")
            if length_at is not None:
                length = int.from_bytes(raw[length_at : length_at + 4], "little")
                if length != len(raw):
                    raise ChunkDamaged(f"{name}: {len(raw)} bytes of {length} are there")
            decompress(raw, out)
        except (RuntimeError, ValueError, OSError) as error:
            raise ChunkDamaged(f"{name}: {error}") from error

    return decode


def _deflate(wbits: int) -> Callable[[], Decoder]:
    def decode(raw: Any, out: np.ndarray) -> None:
        try:
            _raw(zlib.decompress(raw, wbits, out.nbytes), out)
        except zlib.error as error:
            raise ChunkDamaged(f"deflate: {error}") from error

    return lambda: decode


DECODERS: Mapping[str, Callable[[], Decoder]] = {
    "": lambda: _raw,
    "blosc": lambda: _numcodecs("blosc", size_at=4, length_at=12),
    "zstd": lambda: _numcodecs("zstd", size_at=None),
    "lz4": lambda: _numcodecs("lz4", size_at=0),
    "gzip": _deflate(31),
    "zlib": _deflate(15),
}
"""Name of the one compressor of a chunk (none: the empty name) -> what makes its decoder."""


def unshuffled(decode: Decoder, itemsize: int) -> Decoder:
    """The decoder for bytes that were shuffled (HDF5's filter) before they were compressed."""

    def decode_shuffled(raw: Any, out: np.ndarray) -> None:
        planes = np.empty_like(out)
        decode(raw, planes)
        out.reshape(-1, itemsize)[:] = planes.reshape(itemsize, -1).T

    return decode_shuffled
