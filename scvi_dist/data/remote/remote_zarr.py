"""A read-only store for the zarr library over our own way to remote objects."""

import asyncio
from collections.abc import AsyncIterator, Iterable
from typing import Any

from zarr.abc.store import (
    ByteRequest,
    OffsetByteRequest,
    RangeByteRequest,
    Store,
    SuffixByteRequest,
)
from zarr.core.buffer import Buffer, BufferPrototype

from scvi_dist.data.on_disk.chunks import Piece
from scvi_dist.data.remote.objects import RemoteObjects


class RemoteZarrStore(Store):
    """Objects below a URL, as the zarr library asks for them; tried again while it is busy."""

    supports_writes = False
    supports_deletes = False
    supports_listing = True

    def __init__(self, objects: RemoteObjects) -> None:
        super().__init__(read_only=True)
        self._objects = objects

    def __eq__(self, other: object) -> bool:
        return isinstance(other, RemoteZarrStore) and self._objects is other._objects

    __hash__ = None  # type: ignore[assignment]

    async def get(
        self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        return (await self.get_partial_values(prototype, [(key, byte_range)]))[0]

    async def get_partial_values(
        self,
        prototype: BufferPrototype,
        key_ranges: Iterable[tuple[str, ByteRequest | None]],
    ) -> list[Buffer | None]:
        pieces = [_piece(key, byte_range) for key, byte_range in key_ranges]
        found = await asyncio.to_thread(self._objects.fetch, pieces)
        return [None if raw is None else prototype.buffer.from_bytes(raw) for raw in found]

    async def exists(self, key: str) -> bool:
        return (await asyncio.to_thread(self._objects.facts, [key]))[0] is not None

    async def list_dir(self, prefix: str) -> AsyncIterator[str]:
        for name in await asyncio.to_thread(self._objects.names, prefix.rstrip("/")):
            yield name

    async def list(self) -> AsyncIterator[str]:
        async for key in self.list_prefix(""):
            yield key

    async def list_prefix(self, prefix: str) -> AsyncIterator[str]:
        for key in await asyncio.to_thread(self._objects.keys, prefix.rstrip("/")):
            yield key

    async def set(self, key: str, value: Buffer) -> None:
        self._check_writable()

    async def delete(self, key: str) -> None:
        self._check_writable()


def _piece(key: str, byte_range: Any) -> Piece:
    if isinstance(byte_range, RangeByteRequest):
        return Piece(key, byte_range.start, byte_range.end)
    if isinstance(byte_range, OffsetByteRequest):
        return Piece(key, byte_range.offset)
    if isinstance(byte_range, SuffixByteRequest):
        return Piece(key, -byte_range.suffix)
    return Piece(key)
