"""Several stores as one row space: the cells of the first, then those of the second, and so on."""

import hashlib
import itertools
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, TypeVar

import numpy as np
import pandas as pd

from scvi_dist.batch import CsrRows
from scvi_dist.data.joined.alignment import Join
from scvi_dist.data.joined.collection_index import CollectionIndex
from scvi_dist.data.joined.obs_join import MergedColumn, ObsJoin, kinds_of
from scvi_dist.data.joined.obsm_join import JoinedObsm, ObsmJoin, obsm_of
from scvi_dist.data.joined.parts import LazyParts
from scvi_dist.data.names import names_digest
from scvi_dist.data.on_disk.matrix import gene_lookup
from scvi_dist.data.spans import Range, expand, in_order, spans_of
from scvi_dist.data.store import StorageFacts, Store, StoreLocator, ranges_of
from scvi_dist.errors import ConfigError, FieldNotFound

_SAMPLED_PLACES = 8
_SAMPLED_ROWS = 32
_T = TypeVar("_T")


def open_collection(locator: StoreLocator) -> "CollectionStore":
    """The collection of a locator; its parts are opened when they are read."""
    parts = LazyParts(locator.parts)
    if not locator.options:
        return CollectionStore(parts, CollectionIndex.of(parts, None, None))
    index = CollectionIndex.from_options(dict(locator.options))
    parts.check = index.check
    return CollectionStore(parts, index)


def collect(
    sources: Sequence[StoreLocator | Store],
    join: Join | None = None,
    genes: Sequence[str] | None = None,
    max_open: int | None = None,
) -> "CollectionStore":
    """Stores as one. Every store is opened once, for its number of cells and its gene names.

    Parameters
    ----------
    sources
        Locators, or stores that are open (they stay so until the collection is closed).
    join
        Genes that it has where stores differ: ``inner``, those that all stores have; ``outer``,
        those that any has (zeros where a store lacks one); ``None``: differing genes are refused,
        their order may differ.
    genes
        These of them, in this order.
    max_open
        Stores that are kept open.

    Raises
    ------
    ConfigError, SchemaMismatch, FieldNotFound
        No store; genes that differ, repeat or are missing: names the store and the genes.
    """
    if not sources:
        raise ConfigError("a collection needs at least one store.")
    given = {i: source for i, source in enumerate(sources) if isinstance(source, Store)}
    locators = [s.locator if isinstance(s, Store) else s for s in sources]
    parts = LazyParts(locators, given, max_open=max_open)
    try:
        index = CollectionIndex.of(parts, join, genes)
    except BaseException:
        parts.close()
        raise
    parts.check = index.check
    return CollectionStore(parts, index)


@dataclass(frozen=True)
class _Part:
    """One store, held open for a read, with the rows wanted of it."""

    number: int
    store: Store
    ranges: list[Range]


class CollectionStore(Store):
    """Stores with their genes, obs columns and obsm joined by name; see :func:`collect`."""

    def __init__(self, parts: LazyParts, index: CollectionIndex) -> None:
        self._parts = parts
        self._index = index
        layers = {locator.layer for locator in parts.locators}
        self.locator = StoreLocator(
            kind="collection",
            url=_common_folder([locator.url for locator in parts.locators]),
            layer=layers.pop() if len(layers) == 1 else None,
            parts=parts.locators,
            options=index.options(),
        )
        self._where = f"collection of {len(parts)} stores at {self.locator.redacted_url}"
        self._merged: dict[str, MergedColumn] = {}

    def at_layer(self, layer: str) -> "CollectionStore":
        """The same cells, and genes joined in the same way, of another layer."""
        from scvi_dist.data.open import store_at_layer

        def other(part: int, store: Store) -> Store | StoreLocator:
            if store.locator.parts:
                return store_at_layer(store.locator.open(), layer)
            return replace(store.locator, layer=layer)

        genes = self.var_names.tolist() if self._index.chosen else None
        return collect(self._parts.visit(other), self._index.join, genes)

    @property
    def n_obs(self) -> int:
        return int(self._index.starts[-1])

    @property
    def part_sizes(self) -> tuple[int, ...]:
        return tuple(np.diff(self._index.starts).tolist())

    @property
    def n_vars(self) -> int:
        return len(self._index.var_names)

    @property
    def var_names(self) -> np.ndarray:
        return self._index.var_names

    @property
    def n_open(self) -> int:
        """Stores that the collection has opened and holds open now."""
        return self._parts.n_open

    @cached_property
    def layers(self) -> tuple[str, ...]:
        found = self._parts.visit(lambda _, store: store.layers)
        common = set.intersection(*map(set, found))
        return tuple(name for name in found[0] if name in common)

    # obs

    @cached_property
    def obs_columns(self) -> dict[str, str]:
        return self._obs_join(self._parts.visit(lambda _, store: store.obs_columns)).columns()

    def _obs_join(self, kinds: Sequence[dict[str, str]]) -> ObsJoin:
        return ObsJoin(kinds, self._where, self._parts.where)

    def _merge(self, names: Sequence[str]) -> dict[str, MergedColumn]:
        """The form of columns over all stores; each store is asked once for all new ones."""
        new = [name for name in names if name not in self._merged]
        if new:
            try:
                empty = self._parts.visit(lambda _, store: store.read_obs(new, 0, 0))
            except FieldNotFound:
                self._explain(new)
                raise
            self._merged.update(self._obs_join([kinds_of(table) for table in empty]).merge(empty))
        return {name: self._merged[name] for name in names}

    def _explain(self, names: Sequence[str]) -> None:
        """Raise the error that says which stores have a column and which have it not."""
        join = self._obs_join(self._parts.visit(lambda _, store: store.obs_columns))
        for name in names:
            join.kind(name)

    def obs_names(self, start: int = 0, stop: int | None = None) -> np.ndarray:
        pieces = self._pieces([(start, self.n_obs if stop is None else stop)])
        names = [part.store.obs_names(*part.ranges[0]) for part in pieces]
        return np.concatenate([np.zeros(0, dtype=object), *names])

    def read_obs(
        self, columns: Sequence[str], start: int = 0, stop: int | None = None
    ) -> pd.DataFrame:
        merged = self._merge(columns)
        pieces = self._pieces([(start, self.n_obs if stop is None else stop)])
        tables = [part.store.read_obs(columns, *part.ranges[0]) for part in pieces]
        if not tables:
            with self._parts.lease(0) as store:
                tables = [store.read_obs(columns, 0, 0)]
        series = {name: merged[name].join([table[name] for table in tables]) for name in columns}
        index = pd.RangeIndex(sum(map(len, tables)))
        return pd.DataFrame(series, index=index, columns=list(columns))

    # rows

    def _pieces(self, ranges: Sequence[Range] | np.ndarray) -> Iterator[_Part]:
        """Parts with the rows to read of each, for ascending ranges; open while in use."""
        spans = spans_of(ranges, self.n_obs, self._where)
        starts = self._index.starts
        # First and last part of each span; what lies between them is wanted whole.
        touched = np.stack(
            [
                np.searchsorted(starts, spans[:, 0], side="right") - 1,
                np.searchsorted(starts, spans[:, 1], side="left"),
            ],
            axis=1,
        )
        for number in np.unique(expand(touched)).tolist():
            low, high = int(starts[number]), int(starts[number + 1])
            if low == high:
                continue
            first = int(np.searchsorted(spans[:, 1], low, side="right"))
            last = int(np.searchsorted(spans[:, 0], high, side="left"))
            inside = np.clip(spans[first:last], low, high) - low
            rows = [(start, stop) for start, stop in inside.tolist()]
            with self._parts.lease(number) as store:
                yield _Part(number, store, rows)

    def _gather(
        self, ranges: Sequence[Range], read: Callable[[_Part], _T]
    ) -> tuple[list[_T], np.ndarray | None]:
        spans, back = in_order(spans_of(ranges, self.n_obs, self._where))
        return [read(part) for part in self._pieces(spans)], back

    def read_rows(self, ranges: Sequence[Range], genes: np.ndarray | None = None) -> CsrRows:
        if genes is not None:
            gene_lookup(genes, self.n_vars)  # refuses what is repeated or does not exist
            genes = np.asarray(genes, dtype=np.int64)

        def read(part: _Part) -> CsrRows:
            plan = self._index.plan(part.number, part.store, genes)
            return plan.place(part.store.read_rows(part.ranges, plan.read))

        blocks, back = self._gather(ranges, read)
        if not blocks:
            with self._parts.lease(0) as store:
                return read(_Part(0, store, []))
        block = CsrRows.concatenate(blocks)
        return block if back is None else block.take(back)

    # obsm

    @cached_property
    def _obsm(self) -> ObsmJoin:
        found = self._parts.visit(lambda _, store: obsm_of(store))
        return ObsmJoin(found, self._index.join, self._where, self._parts.where)

    @cached_property
    def obsm_keys(self) -> dict[str, int]:
        return self._obsm.keys()

    def obsm_columns(self, key: str) -> tuple[str, ...] | None:
        return self._obsm.joined(key).names

    def read_uns(self, key: str) -> Any:
        with self._parts.lease(0) as store:
            return store.read_uns(key)

    def read_obsm(self, key: str, ranges: Sequence[Range]) -> np.ndarray:
        joined: JoinedObsm = self._obsm.joined(key)
        blocks, back = self._gather(
            ranges, lambda part: joined.read(part.number, part.store, part.ranges)
        )
        empty = np.zeros((0, joined.width), dtype=np.float32)
        values_nk = np.concatenate([empty, *blocks])
        return values_nk if back is None else values_nk[back]

    # facts

    @cached_property
    def _hints(self) -> list[tuple[int, float]]:
        return self._parts.visit(lambda _, store: (store.chunk_rows, store.bytes_per_cell))

    @property
    def chunk_rows(self) -> int:
        return max(chunk_rows for chunk_rows, _ in self._hints)

    @cached_property
    def bytes_per_cell(self) -> float:
        if self.n_obs == 0:
            return 8.0
        if self._index.chosen or self._index.join == "inner":
            return self._sampled_bytes()
        sizes = [bytes_per_cell for _, bytes_per_cell in self._hints]
        return float(np.average(sizes, weights=self._index.cells))

    def _sampled_bytes(self) -> float:
        """From a few rows at a few places: not all genes of the parts are ours."""
        starts = np.linspace(0, max(0, self.n_obs - _SAMPLED_ROWS), _SAMPLED_PLACES).astype(int)
        rows = np.unique(starts[:, np.newaxis] + np.arange(_SAMPLED_ROWS))
        rows = rows[rows < self.n_obs]
        return 8.0 + 8.0 * float(self.read_rows(ranges_of(rows)).indptr[-1]) / len(rows)

    def storage_facts(self) -> StorageFacts:
        facts = self._parts.visit(lambda _, store: store.storage_facts())
        stored = [fact.n_stored for fact in facts]
        sizes = [fact.size_bytes for fact in facts]
        return StorageFacts(
            dtype=_only({fact.dtype for fact in facts}),
            encoding=_only({fact.encoding for fact in facts}),
            n_stored=None if None in stored else sum(n for n in stored if n is not None),
            size_bytes=None if None in sizes else sum(n for n in sizes if n is not None),
        )

    def digest(self) -> str:
        return self._digest

    @cached_property
    def _digest(self) -> str:
        digests = self._index.part_digests or self._parts.visit(
            lambda _, store: store.digest(), keep=False
        )
        facts = json.dumps([list(digests), self._index.join, names_digest(self.var_names)])
        return hashlib.sha256(facts.encode()).hexdigest()[:32]

    def close(self) -> None:
        self._parts.close()


def _only(values: set[str | None]) -> str | None:
    return values.pop() if len(values) == 1 else None


def _common_folder(urls: Sequence[str]) -> str:
    """The folder that all URLs share; the first URL if there is none."""
    steps = zip(*(url.split("/")[:-1] for url in urls), strict=False)
    shared = itertools.takewhile(lambda step: len(set(step)) == 1, steps)
    folder = "/".join(step[0] for step in shared)
    return folder if folder.strip("/").rpartition(":")[2] else urls[0]
