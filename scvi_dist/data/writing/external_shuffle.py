"""A store in random order, however large it is: the two passes of an external shuffle.

Each cell has a key, a hash of its row and the seed; the new order is that of the keys. The first
pass reads the store in stretches and writes the cells of each, sorted by key, to a file in which
ranges of keys (buckets) can be found. The second reads a range of keys from all files, sorts it
and writes whole shards of the result. Nothing but one stretch or one range is in memory, every
task can be done again, and the result depends on the seed alone: not on memory, workers, or on
how often the run was interrupted.
"""

import io
import json
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa

from scvi_dist.batch import CsrRows
from scvi_dist.data.filesystem import exists, filesystem_of, join_url
from scvi_dist.data.hashing import splitmix64
from scvi_dist.data.store import Store, StoreLocator
from scvi_dist.data.writing.containers import ZarrContainer
from scvi_dist.data.writing.content import Content, index_type
from scvi_dist.data.writing.output import STATE, put_whole
from scvi_dist.data.writing.row_tables import (
    counts_columns,
    entries_of,
    from_streams,
    lengths_of,
    rows_table,
    table_of,
    to_stream,
)

_COPIES = 6
"""Times that a task holds its cells, at most: read, sorted, as a table, as bytes."""
_BUCKETS_PER_RANGE = 16
_LEAST_BUCKET_ROWS = 8
_MOST_BUCKETS = 1 << 16
_TAG = 0x5AFF


def row_keys(rows: np.ndarray, seed: int) -> np.ndarray:
    """uint64: what rows are sorted by. No two rows have the same."""
    offset = np.random.SeedSequence([seed, _TAG]).generate_state(1, np.uint64)
    return splitmix64(rows.astype(np.uint64) + offset)


@dataclass(frozen=True, kw_only=True, slots=True)
class Sizes:
    """How much a task takes on; part of an unfinished output, which goes on with the same."""

    stretch_rows: int
    """Rows of a task of the first pass."""
    n_buckets: int
    """Ranges of keys that can be told apart; a power of two."""
    range_entries: int
    """Entries of the matrix that a task of the second pass writes: whole shards."""

    @staticmethod
    def within(store: Store, memory_bytes: int, workers: int, shard_entries: int) -> "Sizes":
        """Sizes with which so many workers stay within ``memory_bytes`` together."""
        task_bytes = memory_bytes / workers / _COPIES
        rows = max(1, int(task_bytes / store.bytes_per_cell))
        rows = max(1, rows // store.chunk_rows) * store.chunk_rows
        n_shards = max(1, int(task_bytes / 8) // shard_entries)
        n_ranges = max(1, store.n_obs * store.bytes_per_cell / (8 * n_shards * shard_entries))
        wanted = min(n_ranges * _BUCKETS_PER_RANGE, rows / _LEAST_BUCKET_ROWS, _MOST_BUCKETS)
        return Sizes(
            stretch_rows=min(rows, max(1, store.n_obs)),
            n_buckets=1 << max(0, int(np.ceil(np.log2(max(1.0, wanted))))),
            range_entries=n_shards * shard_entries,
        )


@dataclass(frozen=True, kw_only=True)
class SpillFacts:
    """What a task of the first pass wrote."""

    offsets: np.ndarray
    """int64 ``[n_buckets + 1]``: where the cells of each bucket begin in the file."""
    rows: np.ndarray
    """int64 ``[n_buckets]``: cells."""
    entries: np.ndarray
    """int64 ``[n_buckets]``: entries of the matrix."""
    content: Content


@dataclass(frozen=True, kw_only=True)
class KeyRange:
    """A task of the second pass: some consecutive buckets, and what to write of them."""

    number: int
    bounds: np.ndarray
    """int64 ``[n_stretches, 2]``: the bytes of these buckets in each file."""
    first_entry: int
    """Place of the first bucket's first entry in the result."""
    start: int
    stop: int
    """Entries of the result that this task writes."""
    is_last: bool
    value_type: str


@dataclass(frozen=True, kw_only=True)
class Shuffle:
    """The work of both passes; picklable, and safe to do again."""

    locator: StoreLocator
    url: str
    seed: int
    sizes: Sizes
    storage_options: dict[str, Any] = field(default_factory=dict)
    given: Store | None = None
    """The open store; other processes open their own."""

    def __getstate__(self) -> dict[str, Any]:
        return {**{k: v for k, v in self.__dict__.items() if k != "store"}, "given": None}

    def elsewhere(self) -> "Shuffle":
        """The same for other processes."""
        return replace(self, given=None)

    @cached_property
    def store(self) -> Store:
        return self.given if self.given is not None else self.locator.open()

    @property
    def n_stretches(self) -> int:
        """Tasks of the first pass."""
        return -(-self.store.n_obs // self.sizes.stretch_rows)

    # first pass

    def spill(self, number: int) -> SpillFacts:
        """Write the cells of a stretch, sorted; what was written before is taken as it is."""
        known = self.spilled(number)
        if known is not None:
            return known
        start = number * self.sizes.stretch_rows
        stop = min(start + self.sizes.stretch_rows, self.store.n_obs)
        keys = row_keys(np.arange(start, stop), self.seed)
        order = np.argsort(keys)
        block = self.store.read_rows([(start, stop)]).take(order)
        content = Content.of(block)
        rows = rows_table(self.store, start, stop)
        columns = {name: column.take(pa.array(order)) for name, column in rows.items()}
        table = table_of(
            {
                "key": pa.array(keys[order]),
                **columns,
                **counts_columns(block, index_type(self.store.n_vars)),
            }
        )
        bounds = self._bucket_bounds(keys[order])
        content_bytes, offsets = _in_buckets(table, bounds)
        facts = SpillFacts(
            offsets=offsets,
            rows=np.diff(bounds),
            entries=np.diff(block.indptr[bounds]),
            content=content,
        )
        self._put(f"spill/{number:06d}.bin", content_bytes)
        self._put(f"spill/{number:06d}.npz", _packed(facts))
        return facts

    def spilled(self, number: int) -> SpillFacts | None:
        """What a stretch was written with; ``None`` if it has not been."""
        name = f"spill/{number:06d}.npz"
        return _unpacked(self.get(name)) if self.has(name) else None

    def _bucket_bounds(self, sorted_keys: np.ndarray) -> np.ndarray:
        n = self.sizes.n_buckets
        if n == 1:
            return np.array([0, len(sorted_keys)])
        width = (1 << 64) // n
        edges = np.arange(1, n, dtype=np.uint64) * np.uint64(width)
        inner = np.searchsorted(sorted_keys, edges)
        return np.concatenate([[0], inner, [len(sorted_keys)]]).astype(np.int64)

    # second pass

    def gather(self, task: KeyRange) -> int:
        """Write the entries of a range of keys, and its rows for the tables; cells written."""
        name = f"rows/{task.number:06d}.arrow"
        tables = self._tables(task)
        n_cells, order, block = self._sorted(tables, np.dtype(task.value_type))
        firsts = task.first_entry + block.indptr[:-1]
        low, high = task.start - task.first_entry, task.stop - task.first_entry
        root = ZarrContainer(self.url, "a", self.storage_options).root
        if task.stop > task.start:
            root["X/indices"][task.start : task.stop] = block.indices[low:high]
            root["X/data"][task.start : task.stop] = block.data[low:high]
        # A row belongs to the range in which it begins.
        mine = firsts >= task.start
        if not task.is_last:
            mine &= firsts < task.stop
        kept = np.flatnonzero(mine)
        rows = _rows_of(tables, order[kept], np.diff(block.indptr)[kept])
        self._put(name, to_stream(rows))
        return len(kept) if n_cells else 0

    def _tables(self, task: KeyRange) -> list[pa.Table]:
        tables = []
        for number, (start, stop) in enumerate(task.bounds.tolist()):
            if stop > start:
                fs, path = self._place(f"spill/{number:06d}.bin")
                tables += from_streams(fs.cat_file(path, start=start, end=stop))
        return tables

    def _sorted(
        self, tables: list[pa.Table], value_type: np.dtype
    ) -> tuple[int, np.ndarray, CsrRows]:
        """Number of cells, their order by key, and their counts in this order."""
        keys = np.concatenate(
            [np.empty(0, np.uint64), *(table.column("key").to_numpy() for table in tables)]
        )
        order = np.argsort(keys)
        lengths = lengths_of(tables)
        indptr = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        n_vars = self.store.n_vars
        block = CsrRows(
            indptr,
            entries_of(tables, "indices", index_type(n_vars)),
            entries_of(tables, "data", value_type),
            n_vars,
        )
        return len(keys), order, block.take(order)

    # state

    def _place(self, name: str) -> tuple[Any, str]:
        return filesystem_of(join_url(self.url, STATE, *name.split("/")), self.storage_options)

    def has(self, name: str) -> bool:
        """Whether a file of the state is there."""
        return exists(join_url(self.url, STATE, *name.split("/")), self.storage_options)

    def get(self, name: str) -> bytes:
        """A file of the state."""
        fs, path = self._place(name)
        return fs.cat_file(path)

    def _put(self, name: str, content: bytes) -> None:
        put_whole(join_url(self.url, STATE, *name.split("/")), content, self.storage_options)


def _in_buckets(table: pa.Table, bounds: np.ndarray) -> tuple[bytes, np.ndarray]:
    sink = io.BytesIO()
    offsets = np.zeros(len(bounds), dtype=np.int64)
    for k, (low, high) in enumerate(zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True)):
        if high > low:
            sink.write(to_stream(table.slice(low, high - low)))
        offsets[k + 1] = sink.tell()
    return sink.getvalue(), offsets


def _rows_of(tables: list[pa.Table], picks: np.ndarray, lengths: np.ndarray) -> pa.Table:
    """Names, obs and obsm of the picked rows of all tables, and how many entries each has."""
    dropped = ["key", "indices", "data"]
    whole = pa.concat_tables([table.drop_columns(dropped) for table in tables]) if tables else None
    if whole is None:
        return pa.table({"length": pa.array(lengths, pa.int64())})
    return whole.take(pa.array(picks)).append_column("length", pa.array(lengths, pa.int64()))


def _packed(facts: SpillFacts) -> bytes:
    buffer = io.BytesIO()
    told = np.frombuffer(json.dumps(facts.content.to_json()).encode(), dtype=np.uint8)
    np.savez(buffer, offsets=facts.offsets, rows=facts.rows, entries=facts.entries, content=told)
    return buffer.getvalue()


def _unpacked(content: bytes) -> SpillFacts:
    with np.load(io.BytesIO(content)) as parts:
        return SpillFacts(
            offsets=parts["offsets"],
            rows=parts["rows"],
            entries=parts["entries"],
            content=Content.from_json(json.loads(parts["content"].tobytes())),
        )
