"""What the files of a sparse TileDB array on this machine say about themselves.

Only what can be read without loss of meaning is accepted: matrices of two int64 dimensions and
one plain attribute, whose fragments neither overwrite each other nor hide deleted cells.
:class:`NotPlain` says why another one is left to TileDB.

Source: format versions 16 to 22, https://github.com/TileDB-Inc/TileDB/tree/main/format_spec
"""

import itertools
import json
import os
import re
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

FILES = ("a0", "d0", "d1")
"""Values, rows and columns of the entries."""

_VERSIONS = range(16, 23)
_COMPRESSORS = {"ZSTD": "zstd", "GZIP": "zlib"}
_FRAGMENT = re.compile(r"^__(\d+)_(\d+)_[0-9a-f]{32}_(\d+)$")
_GENERIC_HEADER = struct.Struct("<IQQBQBI")
_CHUNK_HEADER = struct.Struct("<III")
_GZIP_PIPELINE = bytes.fromhex("000001000100000001050000000101000000")
"""The filters of metadata, the same in every fragment: gzip in blocks of 64 KiB."""


class NotPlain(Exception):
    """An array whose files are not read directly; the message says why."""


@dataclass(frozen=True, slots=True)
class TileFilters:
    """How a file's tiles are encoded."""

    compressor: str
    """Key of ``chunks.DECODERS``; empty for none."""
    is_shuffled: bool
    """Whether bytes were shuffled before they were compressed."""


@dataclass(frozen=True, slots=True)
class Fragment:
    """One fragment: where its tiles are, and what rows and columns they cover. ``t`` tiles."""

    folder: str
    n_entries: np.ndarray
    """int64 ``[t]``."""
    bounds: np.ndarray
    """int64 ``[t, 4]``: lowest and highest row, lowest and highest column."""
    offsets: dict[str, np.ndarray]
    """Name of each of :data:`FILES` -> int64 ``[t + 1]``: where tiles begin, and the file's end."""


def filters_of(config: Any) -> dict[str, TileFilters]:
    """Name of each of :data:`FILES` -> its filters, from TileDB-SOMA's schema options."""
    dims, attrs = json.loads(config.dims), json.loads(config.attrs)
    return {
        "a0": _filters(attrs["soma_data"]["filters"]),
        "d0": _filters(dims["soma_dim_0"]["filters"]),
        "d1": _filters(dims["soma_dim_1"]["filters"]),
    }


def _filters(described: Sequence[dict[str, Any]] | None) -> TileFilters:
    names = [str(one["name"]) for one in described or ()]
    is_shuffled = names[:1] == ["BYTESHUFFLE"]
    rest = names[1:] if is_shuffled else names
    if len(rest) == 1 and rest[0] in _COMPRESSORS:
        return TileFilters(_COMPRESSORS[rest[0]], is_shuffled)
    if not names:
        return TileFilters("", False)
    raise NotPlain(f"filters {' + '.join(names)}")


def read_fragments(
    folder: str, capacity: int, allows_duplicates: bool, timestamp_ms: int
) -> list[Fragment]:
    """The fragments of an array as it was at a time, oldest first.

    Raises
    ------
    NotPlain
        If reading them one by one would not give what TileDB gives.
    """
    root = Path(folder)
    committed = _committed(root, timestamp_ms)
    schemas = [entry for entry in os.scandir(root / "__schema") if entry.is_file()]
    if len(schemas) != 1:
        raise NotPlain(f"{len(schemas)} schemas")
    fragments = [read_fragment(root / "__fragments" / name, capacity) for name in committed]
    fragments = [fragment for fragment in fragments if len(fragment.n_entries)]
    if not allows_duplicates:
        _check_apart(fragments)
    return fragments


def _committed(root: Path, timestamp_ms: int) -> list[str]:
    """Names of the fragments that count at a time."""
    times = []
    names = _commits(root / "__commits")
    for name in names:
        match = _FRAGMENT.match(name)
        if match is None or int(match[3]) not in _VERSIONS:
            raise NotPlain(f"fragment {name}")
        first, last = int(match[1]), int(match[2])
        if first != last and (first <= timestamp_ms < last or len(names) > 1):
            raise NotPlain("consolidated fragments beside others")
        if last <= timestamp_ms:
            times.append((first, name))
    return [name for _, name in sorted(times)]


def _commits(folder: Path) -> set[str]:
    """Names of all fragments that were written to their end.

    Each has a file, or a line in a file that lists many of them.
    """
    found = set()
    for path in folder.iterdir():
        listed = path.read_text().split("\n") if path.suffix == ".con" else [path.name]
        for line in filter(None, listed):
            name = line.removeprefix("__commits/")
            if not name.endswith(".wrt"):
                raise NotPlain(f"commits such as {name[:80]}")
            found.add(name.removesuffix(".wrt"))
    return found


def _check_apart(fragments: Sequence[Fragment]) -> None:
    """Where cells may overwrite each other, no two fragments may hold entries of one row."""
    spans = sorted((int(f.bounds[:, 0].min()), int(f.bounds[:, 1].max())) for f in fragments)
    for (_, high), (low, _) in itertools.pairwise(spans):
        if low <= high:
            raise NotPlain("fragments that may overwrite each other")


def read_fragment(folder: Path, capacity: int) -> Fragment:
    """Tiles of one fragment. Raises :class:`NotPlain`, also for what contradicts itself."""
    try:
        raw = (folder / "__fragment_metadata.tdb").read_bytes()
        return _parse(str(folder), raw, capacity)
    except (OSError, struct.error, zlib.error, ValueError, IndexError) as error:
        raise NotPlain(f"metadata of {folder.name}: {error}") from error


def _parse(folder: str, raw: bytes, capacity: int) -> Fragment:
    (length,) = struct.unpack_from("<Q", raw, len(raw) - 8)
    footer = memoryview(raw)[len(raw) - 8 - length : len(raw) - 8]
    version, name_length = struct.unpack_from("<IQ", footer)
    at = 12 + name_length
    is_dense, is_empty = struct.unpack_from("<BB", footer, at)
    n_tiles, last_entries, has_times, has_deletes = struct.unpack_from("<QQBB", footer, at + 34)
    if version not in _VERSIONS or is_dense or is_empty or has_times or has_deletes:
        raise NotPlain("a fragment with time stamps, deleted cells or another format")
    # Sizes of the files of the attribute, of zipped coordinates (none) and of both dimensions;
    # then of their variable and of their validity parts, which a plain matrix does not have.
    sizes = struct.unpack_from("<12Q", footer, at + 52)
    if any(sizes[4:]) or sizes[1]:
        raise NotPlain("values that may be missing or vary in size")
    places = struct.unpack_from("<5Q", footer, at + 52 + 96)
    bounds = _leaves(_generic_tile(raw, places[0]), n_tiles)
    offsets = {}
    for name, size, place in zip(FILES, (sizes[0], *sizes[2:4]), _without(places), strict=True):
        starts = np.frombuffer(_generic_tile(raw, place), "<u8").astype(np.int64)
        offsets[name] = np.append(starts[1:], size)
        on_disk = os.stat(os.path.join(folder, f"{name}.tdb")).st_size
        if starts[0] != n_tiles or on_disk != size or (np.diff(offsets[name]) <= 0).any():
            raise NotPlain(f"{name}.tdb does not have the size that its metadata tell")
    n_entries = np.full(n_tiles, capacity, dtype=np.int64)
    n_entries[-1:] = last_entries
    return Fragment(folder, n_entries, bounds, offsets)


def _without(places: Sequence[int]) -> tuple[int, int, int]:
    """Places of the tile offsets of the attribute and the dimensions, without the R-tree's and
    those of zipped coordinates."""
    return places[1], places[3], places[4]


def _generic_tile(raw: bytes, at: int) -> bytes:
    """The content of one part of the metadata."""
    _, stored, size, _, _, encryption, n_filters = _GENERIC_HEADER.unpack_from(raw, at)
    at += _GENERIC_HEADER.size
    if encryption or raw[at : at + n_filters] != _GZIP_PIPELINE:
        raise NotPlain("encrypted metadata")
    at += n_filters
    end = at + stored
    (n_chunks,) = struct.unpack_from("<Q", raw, at)
    at += 8
    parts = []
    for _ in range(n_chunks):
        _, length, length_of_facts = _CHUNK_HEADER.unpack_from(raw, at)
        at += _CHUNK_HEADER.size + length_of_facts
        parts.append(zlib.decompress(raw[at : at + length]))
        at += length
    content = b"".join(parts)
    if at != end or len(content) != size:
        raise NotPlain("metadata of another length than they tell")
    return content


def _leaves(tree: bytes, n_tiles: int) -> np.ndarray:
    """int64 ``[t, 4]``: the lowest level of an R-tree, which has one rectangle a tile."""
    _, n_levels = struct.unpack_from("<II", tree)
    at = 8
    for level in range(n_levels):
        (n,) = struct.unpack_from("<Q", tree, at)
        at += 8
        if level == n_levels - 1:
            if n != n_tiles:
                raise NotPlain("an R-tree of other tiles")
            return np.frombuffer(tree, "<i8", 4 * n, at).reshape(n, 4).astype(np.int64)
        at += 32 * n
    raise NotPlain("an empty R-tree")
