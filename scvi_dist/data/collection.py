"""Several stores as one row space: the cells of the first, then those of the second, and so on."""

import hashlib
import itertools
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from typing import TypeVar

import numpy as np
import pandas as pd

from scvi_dist.batch import CsrRows
from scvi_dist.data.spans import Range, in_order, spans_of
from scvi_dist.data.store import StorageFacts, Store, StoreLocator
from scvi_dist.errors import ConfigError, FieldNotFound, SchemaMismatch, did_you_mean

_OPENING_THREADS = 8
_T = TypeVar("_T")


def open_collection(locator: StoreLocator) -> "CollectionStore":
    """The collection of a locator's parts."""
    with ThreadPoolExecutor(min(_OPENING_THREADS, len(locator.parts))) as pool:
        return CollectionStore(list(pool.map(StoreLocator.open, locator.parts)))


class CollectionStore(Store):
    """Stores with the same genes in the same order. Categories of obs columns are merged:

    where all parts have the same ones in the same order they stay so, else they are sorted, so
    that their order does not depend on the order of the parts.
    """

    def __init__(self, parts: Sequence[Store]) -> None:
        """Raises :class:`SchemaMismatch` naming the first part whose genes differ."""
        if not parts:
            raise ConfigError("a collection needs at least one store.")
        self.parts = tuple(parts)
        _check_genes(self.parts)
        self._starts = np.cumsum([0, *(part.n_obs for part in parts)])
        self.locator = _locator_of(self.parts)
        self._where = f"collection of {len(parts)} stores at {self.locator.redacted_url}"
        self._merged: dict[str, pd.CategoricalDtype] = {}

    @property
    def n_obs(self) -> int:
        return int(self._starts[-1])

    @property
    def n_vars(self) -> int:
        return self.parts[0].n_vars

    @property
    def var_names(self) -> np.ndarray:
        return self.parts[0].var_names

    @property
    def layers(self) -> tuple[str, ...]:
        common = set.intersection(*(set(part.layers) for part in self.parts))
        return tuple(name for name in self.parts[0].layers if name in common)

    @cached_property
    def obs_columns(self) -> dict[str, str]:
        """Columns that all parts have, as the same kind or as text and categories."""
        kinds = {name: self._kinds_of(name) for name in self.parts[0].obs_columns}
        merged = {name: _merge_kinds(found) for name, found in kinds.items()}
        return {name: kind for name, kind in merged.items() if kind is not None}

    def _kinds_of(self, name: str) -> list[str | None]:
        return [part.obs_columns.get(name) for part in self.parts]

    def _check_columns(self, columns: Sequence[str]) -> None:
        for name in columns:
            if name in self.obs_columns:
                continue
            kinds = self._kinds_of(name)
            if all(kind is None for kind in kinds):
                raise FieldNotFound(
                    f"{self._where}: obs has no column {name!r}; "
                    f"{did_you_mean(name, self.obs_columns)}"
                )
            odd = kinds.index(None) if None in kinds else _first_odd(kinds)
            have = kinds[0] if odd else next(k for k in kinds if k is not None)
            seen = "does not have it" if kinds[odd] is None else f"has it as {kinds[odd]}"
            raise SchemaMismatch(
                f"{self._where}: column {name!r} has to be in every store; it is a {have} column "
                f"elsewhere, and {self.parts[odd].locator.redacted_url} {seen}. Write it into "
                "that store, or leave the column or the store out."
            )

    def obs_names(self, start: int = 0, stop: int | None = None) -> np.ndarray:
        pieces = self._pieces([(start, self.n_obs if stop is None else stop)])
        names = [part.obs_names(*spans[0]) for part, spans in pieces]
        return np.concatenate([np.zeros(0, dtype=object), *names])

    def read_obs(
        self, columns: Sequence[str], start: int = 0, stop: int | None = None
    ) -> pd.DataFrame:
        self._check_columns(columns)
        pieces = list(self._pieces([(start, self.n_obs if stop is None else stop)]))
        tables = [part.read_obs(columns, *spans[0]) for part, spans in pieces]
        tables = tables or [self.parts[0].read_obs(columns, 0, 0)]
        series = {
            name: self._merge_column(name, [table[name] for table in tables]) for name in columns
        }
        return pd.DataFrame(series, columns=list(columns))

    def _merge_column(self, name: str, values: list[pd.Series]) -> pd.Series:
        kind = self.obs_columns[name]
        if kind == "category":
            merged = self._categories(name)
            values = [_recode(part, merged) for part in values]
        elif kind == "string":
            values = [part.astype(object).where(part.notna(), None) for part in values]
        return pd.concat(values, ignore_index=True)

    def _categories(self, name: str) -> pd.CategoricalDtype:
        if name not in self._merged:
            found = [part.read_obs([name], 0, 0)[name].dtype for part in self.parts]
            self._merged[name] = self._merge_categories(name, found)
        return self._merged[name]

    def _merge_categories(self, name: str, found: list[pd.CategoricalDtype]) -> pd.CategoricalDtype:
        first = found[0]
        if all(first.categories.equals(other.categories) for other in found[1:]):
            return pd.CategoricalDtype(first.categories, all(other.ordered for other in found))
        for part, other in zip(self.parts, found, strict=True):
            if other.categories.inferred_type != first.categories.inferred_type and len(
                other.categories
            ):
                raise SchemaMismatch(
                    f"{self._where}: the categories of {name!r} are "
                    f"{first.categories.inferred_type} values in the first store and "
                    f"{other.categories.inferred_type} values in {part.locator.redacted_url}; "
                    "write them as the same type."
                )
        union = pd.Index(np.unique(np.concatenate([other.categories for other in found])))
        return pd.CategoricalDtype(union.astype(first.categories.dtype))

    # rows

    def _pieces(self, ranges: Sequence[Range]) -> Iterator[tuple[Store, list[Range]]]:
        """Parts with the ranges to read of each, for ascending ranges."""
        spans = spans_of(ranges, self.n_obs, self._where)
        for part, low, high in zip(self.parts, self._starts[:-1], self._starts[1:], strict=True):
            first = int(np.searchsorted(spans[:, 1], low, side="right"))
            last = int(np.searchsorted(spans[:, 0], high, side="left"))
            if first < last and low < high:
                inside = np.clip(spans[first:last], low, high) - low
                yield part, [(start, stop) for start, stop in inside.tolist()]

    def _gather(
        self, ranges: Sequence[Range], read: Callable[[Store, list[Range]], _T]
    ) -> tuple[list[_T], np.ndarray | None]:
        spans, back = in_order(spans_of(ranges, self.n_obs, self._where))
        ascending = [(start, stop) for start, stop in spans.tolist()]
        return [read(part, inside) for part, inside in self._pieces(ascending)], back

    def read_rows(self, ranges: Sequence[Range], genes: np.ndarray | None = None) -> CsrRows:
        blocks, back = self._gather(ranges, lambda part, inside: part.read_rows(inside, genes))
        if not blocks:
            return self.parts[0].read_rows([], genes)
        block = CsrRows.concatenate(blocks)
        return block if back is None else block.take(back)

    @cached_property
    def obsm_keys(self) -> dict[str, int]:
        """Keys that all parts have, with the same number of columns."""
        first = self.parts[0].obsm_keys
        return {
            key: width
            for key, width in first.items()
            if all(part.obsm_keys.get(key) == width for part in self.parts)
        }

    def obsm_columns(self, key: str) -> tuple[str, ...] | None:
        self._check_obsm(key)
        return self.parts[0].obsm_columns(key)

    def _check_obsm(self, key: str) -> None:
        if key in self.obsm_keys:
            first = self.parts[0].obsm_columns(key)
            for part in self.parts[1:]:
                if part.obsm_columns(key) != first:
                    raise SchemaMismatch(
                        f"{self._where}: the columns of obsm[{key!r}] in "
                        f"{part.locator.redacted_url} are not those of the first store."
                    )
            return
        widths = [part.obsm_keys.get(key) for part in self.parts]
        if all(width is None for width in widths):
            raise FieldNotFound(
                f"{self._where}: obsm has no {key!r}; {did_you_mean(key, self.obsm_keys)}"
            )
        odd = widths.index(None) if None in widths else _first_odd(widths)
        raise SchemaMismatch(
            f"{self._where}: obsm[{key!r}] has to have the same columns in every store; "
            f"{self.parts[odd].locator.redacted_url} has {widths[odd] or 'none'}."
        )

    def read_obsm(self, key: str, ranges: Sequence[Range]) -> np.ndarray:
        self._check_obsm(key)
        blocks, back = self._gather(ranges, lambda part, inside: part.read_obsm(key, inside))
        empty = np.zeros((0, self.obsm_keys[key]), dtype=np.float32)
        values_nk = np.concatenate([empty, *blocks])
        return values_nk if back is None else values_nk[back]

    # facts

    @property
    def chunk_rows(self) -> int:
        return max(part.chunk_rows for part in self.parts)

    @cached_property
    def bytes_per_cell(self) -> float:
        weights = np.diff(self._starts)
        if weights.sum() == 0:
            return 8.0
        return float(np.average([part.bytes_per_cell for part in self.parts], weights=weights))

    def storage_facts(self) -> StorageFacts:
        facts = [part.storage_facts() for part in self.parts]
        stored = [fact.n_stored for fact in facts]
        sizes = [fact.size_bytes for fact in facts]
        return StorageFacts(
            dtype=_only({fact.dtype for fact in facts}),
            encoding=_only({fact.encoding for fact in facts}),
            n_stored=None if None in stored else sum(n for n in stored if n is not None),
            size_bytes=None if None in sizes else sum(n for n in sizes if n is not None),
        )

    def digest(self) -> str:
        digests = " ".join(part.digest() for part in self.parts)
        return hashlib.sha256(digests.encode()).hexdigest()[:32]

    def close(self) -> None:
        for part in self.parts:
            part.close()


def _only(values: set[str | None]) -> str | None:
    return values.pop() if len(values) == 1 else None


def _first_odd(values: Sequence[object]) -> int:
    return next((i for i, value in enumerate(values) if value != values[0]), 0)


def _merge_kinds(kinds: Sequence[str | None]) -> str | None:
    found = set(kinds)
    if len(found) == 1:
        return kinds[0]
    # anndata writes text as a category unless every value is different.
    return "string" if found == {"string", "category"} else None


def _recode(values: pd.Series, merged: pd.CategoricalDtype) -> pd.Series:
    places = merged.categories.get_indexer(values.cat.categories)
    codes = np.append(places, -1)[values.cat.codes.to_numpy()]
    return pd.Series(pd.Categorical.from_codes(codes, dtype=merged), index=values.index)


def _check_genes(parts: Sequence[Store]) -> None:
    first = parts[0]
    for part in parts[1:]:
        if np.array_equal(part.var_names, first.var_names):
            continue
        here, there = set(first.var_names), set(part.var_names)
        where = f"{part.locator.redacted_url} (compared with {first.locator.redacted_url})"
        if here == there:
            raise SchemaMismatch(
                f"{where}: the same {len(there)} genes in another order. Give the list of genes "
                "(genes=...) so that every store is brought to its order."
            )
        raise SchemaMismatch(
            f"{where}: {len(there - here)} genes that the other has not and {len(here - there)} "
            f"genes too few, such as {min(here ^ there)!r}. Stores that are used as one need the "
            f"same genes; give those that all have (genes=...): {len(here & there)} are shared."
        )


def _locator_of(parts: Sequence[Store]) -> StoreLocator:
    locators = tuple(part.locator for part in parts)
    layers = {locator.layer for locator in locators}
    return StoreLocator(
        kind="collection",
        url=_common_folder([locator.url for locator in locators]),
        layer=layers.pop() if len(layers) == 1 else None,
        parts=locators,
    )


def _common_folder(urls: Sequence[str]) -> str:
    """The folder that all URLs share; the first URL if there is none."""
    steps = zip(*(url.split("/")[:-1] for url in urls), strict=False)
    shared = itertools.takewhile(lambda step: len(set(step)) == 1, steps)
    folder = "/".join(step[0] for step in shared)
    return folder if folder.strip("/").rpartition(":")[2] else urls[0]
