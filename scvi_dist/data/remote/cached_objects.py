"""Remote objects, with the blocks that were read before taken from a local disk."""

import threading
from collections.abc import Mapping, Sequence
from typing import Any

from scvi_dist.data.filesystem import FileFacts, is_remote, normalise_url
from scvi_dist.data.on_disk.chunks import Piece
from scvi_dist.data.remote.block_cache import BlockCache
from scvi_dist.data.remote.objects import RemoteObjects
from scvi_dist.data.remote.remote_config import split_options

Block = tuple[str, int]
"""Key of an object, and number of a block of it."""


def objects_at(url: str, storage_options: Mapping[str, Any] | None = None) -> "RemoteObjects":
    """The objects below a remote URL, through the cache if the options name one."""
    config, _ = split_options(storage_options)
    objects = RemoteObjects(url, storage_options)
    if config.cache_dir is None:
        return objects
    cache = BlockCache(config.cache_dir, config.cache_bytes)
    return CachedObjects(url, storage_options, cache, config.cache_block_bytes)


class CachedObjects(RemoteObjects):
    """Remote objects whose blocks stay on disk.

    Blocks are kept under URL, size and version (ETag) of their object, so that an object that was
    replaced is read anew; the version is asked for once in the life of this instance.
    """

    def __init__(
        self,
        url: str,
        storage_options: Mapping[str, Any] | None,
        cache: BlockCache,
        block_bytes: int,
    ) -> None:
        assert is_remote(url), "files on this machine need no copy on this machine"
        super().__init__(url, storage_options)
        self._name = normalise_url(url)
        self._cache, self._block_bytes = cache, block_bytes
        self._versions: dict[str, FileFacts | None] = {}
        self._lock = threading.Lock()

    def fetch(self, pieces: Sequence[Piece]) -> list[memoryview | None]:
        versions = self._versions_of({piece.key for piece in pieces})
        bounds = [_bounds(piece, versions[piece.key]) for piece in pieces]
        wanted: dict[Block, None] = {}
        for piece, bound in zip(pieces, bounds, strict=True):
            for number in self._numbers(bound):
                wanted[piece.key, number] = None
        blocks = self._blocks(list(wanted), versions)
        return [
            None if bound is None else self._cut(piece.key, bound, blocks)
            for piece, bound in zip(pieces, bounds, strict=True)
        ]

    def _versions_of(self, keys: set[str]) -> dict[str, FileFacts | None]:
        with self._lock:
            new = [key for key in keys if key not in self._versions]
        found = dict(zip(new, self.facts(new), strict=True))
        with self._lock:
            self._versions.update(found)
            return {key: self._versions[key] for key in keys}

    def _numbers(self, bound: tuple[int, int] | None) -> range:
        if bound is None or bound[0] >= bound[1]:
            return range(0)
        return range(bound[0] // self._block_bytes, (bound[1] - 1) // self._block_bytes + 1)

    def _blocks(
        self, wanted: list[Block], versions: dict[str, FileFacts | None]
    ) -> dict[Block, memoryview]:
        found: dict[Block, memoryview] = {}
        missing: list[tuple[Block, str, Piece]] = []
        for key, number in wanted:
            facts = versions[key]
            assert facts is not None, "only objects that are there have blocks"
            name = f"{self._name}|{key}|{facts.size}|{facts.stamp}|{self._block_bytes}|{number}"
            # Without a version an object may be replaced unnoticed by one of equal size.
            block = self._cache.get(name) if facts.stamp else None
            if block is not None:
                found[key, number] = memoryview(block)
                continue
            start = number * self._block_bytes
            stop = min(start + self._block_bytes, facts.size)
            missing.append(((key, number), name if facts.stamp else "", Piece(key, start, stop)))
        fetched = super().fetch([piece for _, _, piece in missing])
        for (block_of, name, _), content in zip(missing, fetched, strict=True):
            if content is None:
                raise FileNotFoundError(f"{block_of[0] or 'the object'} was removed")
            found[block_of] = content
            if name:
                self._cache.put(name, content)
        return found

    def _cut(self, key: str, bound: tuple[int, int], blocks: dict[Block, memoryview]) -> memoryview:
        start, stop = bound
        parts = []
        for number in self._numbers(bound):
            base = number * self._block_bytes
            block = blocks[key, number]
            parts.append(block[max(start - base, 0) : max(stop - base, 0)])
        return parts[0] if len(parts) == 1 else memoryview(b"".join(parts))


def _bounds(piece: Piece, facts: FileFacts | None) -> tuple[int, int] | None:
    """From and to, within the object; ``None`` if there is no such object."""
    if facts is None:
        return None
    start, stop = piece.start or 0, piece.stop
    start = max(0, facts.size + start) if start < 0 else min(start, facts.size)
    return start, facts.size if stop is None else max(start, min(stop, facts.size))
