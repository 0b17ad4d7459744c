"""Where the chunks of a one-dimensional Zarr array are, and how they were encoded."""

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import google_crc32c
import numpy as np

from scvi_dist.data.on_disk.chunks import (
    DECODERS,
    ChunkDamaged,
    Decoder,
    Objects,
    Piece,
    read_chunks,
)

if TYPE_CHECKING:
    from zarr import Array

_NOT_STORED = np.iinfo(np.uint64).max
_CHECKSUM_BYTES = 4


@dataclass(frozen=True)
class ChunkLayout:
    """How to read a one-dimensional array of numbers without the zarr library."""

    chunk: int
    """Entries of a chunk (the inner one, if sharded)."""
    dtype: np.dtype
    decode: Decoder
    key_of: Callable[[int], str]
    """Object of a chunk, or of a shard."""
    chunks_per_shard: int = 0
    """0 if the array is not sharded."""
    index_at_end: bool = True
    index_has_checksum: bool = True
    _indexes: dict[int, np.ndarray | None] = field(default_factory=dict, repr=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    @staticmethod
    def of(array: "Array", path: str) -> "ChunkLayout | None":
        """The layout; ``None`` if the array is one that only the zarr library reads."""
        if len(array.shape) != 1 or np.dtype(array.dtype).kind not in "biuf":
            return None
        metadata = array.metadata.to_dict()
        reader = _layout_v2 if metadata["zarr_format"] == 2 else _layout_v3
        return reader(array, metadata, path)

    def read(self, objects: Objects, spans: np.ndarray, out: np.ndarray) -> list[int]:
        """Fill ``out`` with the members of ascending spans; numbers of the chunks not there."""
        return read_chunks(
            spans,
            out,
            chunk=self.chunk,
            dtype=self.dtype,
            fetch=lambda numbers: self._fetch(objects, numbers),
            decode=self.decode,
            batch_bytes=objects.batch_bytes,
        )

    def _fetch(self, objects: Objects, numbers: list[int]) -> list[memoryview | None]:
        if not self.chunks_per_shard:
            return objects.fetch([Piece(self.key_of(number)) for number in numbers])
        shards = sorted({number // self.chunks_per_shard for number in numbers})
        self._load_indexes(objects, shards)
        pieces: list[Piece] = []
        places: list[int | None] = []
        for number in numbers:
            shard, inner = divmod(number, self.chunks_per_shard)
            index = self._indexes[shard]
            if index is None or index[inner, 0] == _NOT_STORED:
                places.append(None)
                continue
            start, size = int(index[inner, 0]), int(index[inner, 1])
            places.append(len(pieces))
            pieces.append(Piece(self.key_of(shard), start, start + size))
        fetched = objects.fetch(pieces)
        return [None if place is None else fetched[place] for place in places]

    def _load_indexes(self, objects: Objects, shards: Sequence[int]) -> None:
        with self._lock:
            new = [shard for shard in shards if shard not in self._indexes]
        size = 16 * self.chunks_per_shard + (_CHECKSUM_BYTES if self.index_has_checksum else 0)
        bounds = (-size, None) if self.index_at_end else (0, size)
        raws = objects.fetch([Piece(self.key_of(shard), *bounds) for shard in new])
        found = {
            shard: None if raw is None else self._parse_index(raw, size, shard)
            for shard, raw in zip(new, raws, strict=True)
        }
        with self._lock:
            self._indexes.update(found)

    def _parse_index(self, raw: memoryview, size: int, shard: int) -> np.ndarray:
        table = raw[: 16 * self.chunks_per_shard]
        intact = len(raw) == size
        if intact and self.index_has_checksum:
            stored = int.from_bytes(raw[-_CHECKSUM_BYTES:], "little")
            intact = _crc32c(table) == stored
        if not intact:
            raise ChunkDamaged(f"the index of shard {self.key_of(shard)} is damaged")
        return np.frombuffer(table, dtype="<u8").reshape(-1, 2)


def _layout_v2(array: "Array", metadata: dict[str, Any], path: str) -> ChunkLayout | None:
    compressor = metadata.get("compressor") or {"id": ""}
    compressor = compressor if isinstance(compressor, dict) else compressor.get_config()
    decoder = DECODERS.get(compressor["id"])
    if decoder is None or metadata.get("filters") or not _is_native(np.dtype(metadata["dtype"])):
        return None
    if not _fills_with_zero(metadata):
        return None
    return ChunkLayout(
        chunk=array.chunks[0],
        dtype=np.dtype(array.dtype),
        decode=decoder(),
        key_of=lambda number: f"{path}/{array.metadata.encode_chunk_key((number,))}",
    )


def _layout_v3(array: "Array", metadata: dict[str, Any], path: str) -> ChunkLayout | None:
    codecs = list(metadata["codecs"])
    per_shard, at_end, checksum = 0, True, True
    chunk = int(metadata["chunk_grid"]["configuration"]["chunk_shape"][0])
    if codecs[0]["name"] == "sharding_indexed":
        setting = codecs[0]["configuration"]
        index_names = [codec["name"] for codec in setting["index_codecs"]]
        if len(codecs) > 1 or index_names not in (["bytes"], ["bytes", "crc32c"]):
            return None
        inner = int(setting["chunk_shape"][0])
        per_shard, chunk = chunk // inner, inner
        at_end, checksum = setting["index_location"] == "end", len(index_names) == 2
        codecs = list(setting["codecs"])
    first, *compressors = codecs
    checked = bool(compressors) and compressors[-1]["name"] == "crc32c"
    compressors = compressors[:-1] if checked else compressors
    if first["name"] != "bytes" or len(compressors) > 1 or not _fills_with_zero(metadata):
        return None
    big = first.get("configuration", {}).get("endian") == "big"
    decoder = DECODERS.get(compressors[0]["name"] if compressors else "")
    if decoder is None or big or not _is_native(np.dtype(array.dtype)):
        return None
    return ChunkLayout(
        chunk=chunk,
        dtype=np.dtype(array.dtype),
        decode=_checked(decoder()) if checked else decoder(),
        key_of=lambda number: f"{path}/{array.metadata.encode_chunk_key((number,))}",
        chunks_per_shard=per_shard,
        index_at_end=at_end,
        index_has_checksum=checksum,
    )


def _checked(decode: Decoder) -> Decoder:
    """The decoder for chunks that end with a CRC32C of what comes before."""

    def decode_checked(raw: Any, out: np.ndarray) -> None:
        content = raw[:-_CHECKSUM_BYTES]
        stored = int.from_bytes(raw[-_CHECKSUM_BYTES:], "little")
        if len(raw) < _CHECKSUM_BYTES or _crc32c(content) != stored:
            raise ChunkDamaged("the checksum (CRC32C) of a chunk is wrong")
        decode(content, out)

    return decode_checked


def _crc32c(content: Any) -> int:
    # The library takes bytes only; a copy costs far less than decoding.
    return google_crc32c.value(bytes(content))


def _is_native(dtype: np.dtype) -> bool:
    return dtype.newbyteorder("=") == dtype


def _fills_with_zero(metadata: dict[str, Any]) -> bool:
    return metadata.get("fill_value") in (None, 0)


def object_keys(array: "Array", limit: int) -> list[str]:
    """Keys, below the array, of at most ``limit`` of its objects, evenly spread, with the last."""
    objects = array.shards or array.chunks
    counts = [-(-n // max(1, c)) for n, c in zip(array.shape, objects, strict=True)]
    total = int(np.prod(counts))
    if total == 0:
        return []
    picks = np.unique(np.linspace(0, total - 1, min(total, limit)).astype(np.int64))
    coordinates = np.stack(np.unravel_index(picks, counts), axis=1).tolist()
    return [array.metadata.encode_chunk_key(tuple(c)) for c in coordinates]
