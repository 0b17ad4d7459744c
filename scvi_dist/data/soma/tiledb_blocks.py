"""Tiles of TileDB as they lie in a file: blocks of 64 KiB, each filtered for itself."""

import struct

import numpy as np

from scvi_dist.data.on_disk.chunks import DECODERS, ChunkDamaged, Decoder
from scvi_dist.data.soma.kernels import mark_blocks, unshuffle_bytes
from scvi_dist.data.soma.tiledb_metadata import TileFilters

BLOCK_BYTES = 64 << 10
"""Size of a block before filtering; TileDB's own default, which tiledbsoma does not change."""

_HEADER = struct.Struct("<III")


def decode_tile(
    raw: memoryview,
    out: np.ndarray,
    filters: TileFilters,
    itemsize: int,
    n_entries: int,
    wanted: tuple[np.ndarray, np.ndarray] | None,
) -> None:
    """Fill ``out`` (uint8) with a tile's blocks, or with those that hold an entry of wanted runs.

    A stored tile is a number of blocks, each with its lengths before and after filtering.
    """
    (n_blocks,) = struct.unpack_from("<Q", raw)
    decode = _zstd if filters.compressor == "zstd" else DECODERS[filters.compressor]()
    marks: np.ndarray | None = None
    at, done = 8, 0
    for i in range(n_blocks):
        size, length, length_of_facts = _HEADER.unpack_from(raw, at)
        if i == 0:
            first = size
            _check_blocks(n_blocks, first, len(raw), len(out), itemsize)
            if wanted is not None:
                marks = np.zeros(n_blocks, dtype=np.bool_)
                mark_blocks(*wanted, n_entries, first // itemsize, marks)
        elif size != first and i + 1 < n_blocks:
            raise ChunkDamaged(f"blocks of {first} and {size} bytes in one tile")
        facts = at + _HEADER.size
        at = facts + length_of_facts + length
        if marks is None or marks[i]:
            if at > len(raw) or done + size > len(out):
                raise ChunkDamaged("a block is longer than its tile")
            _decode_block(
                raw[facts : facts + length_of_facts],
                raw[at - length : at],
                out[done : done + size],
                filters,
                itemsize,
                decode,
            )
        done += size
    if done != len(out) or at != len(raw):
        raise ChunkDamaged(f"a tile of {len(out)} bytes has blocks of {done}")


def _check_blocks(n_blocks: int, size: int, n_stored: int, n_bytes: int, itemsize: int) -> None:
    """Whether so many blocks of this size can be a tile: loops that trust them check nothing."""
    if size < itemsize or n_blocks * _HEADER.size > n_stored or n_blocks * size < n_bytes:
        raise ChunkDamaged(f"{n_blocks} blocks of {size} bytes for a tile of {n_bytes}")


def _decode_block(
    facts: memoryview,
    stored: memoryview,
    out: np.ndarray,
    filters: TileFilters,
    itemsize: int,
    decode: Decoder,
) -> None:
    if not filters.compressor:
        out[:] = np.frombuffer(stored, np.uint8)
        return
    # A compressor also compresses what the filter before it noted (one note, or none).
    n_notes, n_parts = struct.unpack_from("<II", facts)
    sizes = struct.unpack_from(f"<{2 * (n_notes + n_parts)}I", facts, 8)
    at, done = sum(sizes[1 : 2 * n_notes : 2]), 0
    target = np.empty_like(out) if filters.is_shuffled else out
    for part in range(n_notes, n_notes + n_parts):
        size, length = sizes[2 * part : 2 * part + 2]
        decode(stored[at : at + length], target[done : done + size])
        at, done = at + length, done + size
    if done != len(out):
        raise ChunkDamaged(f"a block of {len(out)} bytes has parts of {done}")
    if filters.is_shuffled:
        unshuffle_bytes(target, out, itemsize)


def _zstd(stored: memoryview, out: np.ndarray) -> None:
    """Decode a frame that tells its size straight into ``out``."""
    from numcodecs import zstd

    if _size_of_frame(stored) != len(out):
        raise ChunkDamaged(f"zstd: another size than the {len(out)} bytes expected")
    try:
        zstd.decompress(stored, out)
    except RuntimeError as error:
        raise ChunkDamaged(f"zstd: {error}") from error


def _size_of_frame(stored: memoryview) -> int:
    """Size of a zstd frame's content; -1 where it is not told. Source: RFC 8878, 3.1.1.1."""
    if bytes(stored[:4]) != b"\x28\xb5\x2f\xfd":
        return -1
    flags = stored[4]
    is_single = flags >> 5 & 1
    width = (is_single, 2, 4, 8)[flags >> 6]
    at = 5 + (not is_single) + (0, 1, 2, 4)[flags & 3]
    size = int.from_bytes(stored[at : at + width], "little")
    return size + 256 if width == 2 else (size if width else -1)
