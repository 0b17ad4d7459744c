"""A view of a store: some of its cells, some of its genes."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd

from scvi_dist.batch import CsrRows
from scvi_dist.data.names import names_digest
from scvi_dist.data.on_disk.matrix import gene_lookup
from scvi_dist.data.packing import pack_numbers, unpack_numbers
from scvi_dist.data.spans import Range, check_rows, expand, in_order, spans_of
from scvi_dist.data.store import StorageFacts, Store, StoreLocator, ranges_of
from scvi_dist.data.views.obs_filter import cells_matching
from scvi_dist.errors import ConfigError, FieldNotFound, StoreChanged, did_you_mean

_SAMPLED_ROWS = 256
_WINDOW_ROWS = 1 << 20


def open_subset(locator: StoreLocator) -> "SubsetStore":
    """The view of a locator; its filter is applied again. Raises :class:`StoreChanged`."""
    options = dict(locator.options)
    base = locator.parts[0].open()
    rows = genes = None
    obs_filter = options.get("obs_filter")
    if obs_filter is not None:
        rows = cells_matching(base, obs_filter)
        if len(rows) != options["n_obs"]:
            raise StoreChanged(
                f"{locator.redacted_url}: {len(rows)} cells match {obs_filter!r}, but "
                f"{options['n_obs']} did when the view was made. The store was changed since."
            )
    elif "row_steps" in options:
        rows = np.cumsum(unpack_numbers(options["row_steps"]))
    if "genes" in options:
        genes = unpack_numbers(options["genes"])
        in_range = len(genes) == 0 or int(genes.max()) < base.n_vars
        if not in_range or names_digest(base.var_names[genes]) != options["gene_names"]:
            raise StoreChanged(
                f"{locator.redacted_url}: the genes are not those that the view was made of. The "
                "store was changed since."
            )
    return SubsetStore(base, rows=rows, genes=genes, obs_filter=obs_filter)


def subset_store(
    base: Store, *, obs_filter: str | None = None, genes: Sequence[str] | None = None
) -> "SubsetStore":
    """The cells for which a pandas expression over obs columns holds, and the genes of the given
    names, in the given order.

    Raises :class:`FieldNotFound` for genes and columns that are not in the store, and
    :class:`ConfigError` for what is not an expression, or if no cell is left.
    """
    chosen = None if genes is None else gene_positions(base, genes)
    if obs_filter is None:
        return SubsetStore(base, genes=chosen)
    rows = cells_matching(base, obs_filter)
    if len(rows) == 0:
        raise ConfigError(
            f"{base.locator.redacted_url}: the filter {obs_filter!r} leaves none of the "
            f"{base.n_obs} cells."
        )
    return SubsetStore(base, rows=rows, genes=chosen, obs_filter=obs_filter)


def gene_positions(base: Store, genes: Sequence[str]) -> np.ndarray:
    """int64: column of each gene. Raises :class:`FieldNotFound` and :class:`ConfigError`."""
    where = base.locator.redacted_url
    names = pd.Index([str(gene) for gene in genes], dtype=object)
    if len(names) == 0:
        raise ConfigError(f"{where}: the list of genes is empty.")
    if names.has_duplicates:
        raise ConfigError(f"{where}: gene {names[names.duplicated()][0]!r} was asked for twice.")
    have = pd.Index(base.var_names, dtype=object)
    missing = names[~names.isin(have)]
    if len(missing):
        raise FieldNotFound(
            f"{where}: {len(missing)} of {len(names)} genes are not in the store, among them "
            f"{missing[0]!r}; {did_you_mean(missing[0], have)}"
        )
    repeated = have[have.duplicated()]
    ambiguous = names[names.isin(repeated)]
    if len(ambiguous):
        raise ConfigError(f"{where}: more than one gene of the store is named {ambiguous[0]!r}.")
    unique = np.flatnonzero(~have.duplicated())
    return unique[have[unique].get_indexer(names)].astype(np.int64)


class SubsetStore(Store):
    """Rows ``0 … m - 1`` are rows of the base store, ascending; genes in any order."""

    def __init__(
        self,
        base: Store,
        *,
        rows: np.ndarray | None = None,
        genes: np.ndarray | None = None,
        obs_filter: str | None = None,
    ) -> None:
        """``rows`` and ``genes`` are positions in the base store, rows strictly increasing."""
        self.base = base
        self._where = f"view of {base.locator.redacted_url}"
        self._rows = None if rows is None else _checked_rows(rows, base.n_obs, self._where)
        if genes is not None:
            gene_lookup(genes, base.n_vars)  # refuses what is repeated or does not exist
        self._genes = None if genes is None else np.asarray(genes, dtype=np.int64)
        self._obs_filter = obs_filter

    @cached_property
    def locator(self) -> StoreLocator:  # type: ignore[override]
        options: dict[str, str | int] = {}
        if self._obs_filter is not None:
            options |= {"obs_filter": self._obs_filter, "n_obs": self.n_obs}
        elif self._rows is not None:
            options["row_steps"] = pack_numbers(np.diff(self._rows.astype(np.int64), prepend=0))
        if self._genes is not None:
            options |= {
                "genes": pack_numbers(self._genes),
                "gene_names": names_digest(self.var_names),
            }
        base = self.base.locator
        return StoreLocator(
            kind="subset",
            url=base.url,
            layer=base.layer,
            parts=(base,),
            options=tuple(options.items()),
        )

    @property
    def genes(self) -> np.ndarray | None:
        """int64: columns of the base store; ``None`` for all."""
        return self._genes

    def on(self, base: Store) -> "SubsetStore":
        """The same rows, and genes of the same names, of another store."""
        genes = None if self._genes is None else gene_positions(base, self.var_names.tolist())
        return SubsetStore(base, rows=self._rows, genes=genes, obs_filter=self._obs_filter)

    def base_rows(self, rows: np.ndarray) -> np.ndarray:
        """int64: rows of the base store behind rows of this view."""
        wanted = check_rows(rows, self.n_obs, self._where)
        return wanted if self._rows is None else self._rows[wanted].astype(np.int64)

    @property
    def n_obs(self) -> int:
        return self.base.n_obs if self._rows is None else len(self._rows)

    @property
    def n_vars(self) -> int:
        return self.base.n_vars if self._genes is None else len(self._genes)

    @cached_property
    def var_names(self) -> np.ndarray:
        names = self.base.var_names
        return names if self._genes is None else names[self._genes]

    @property
    def obs_columns(self) -> dict[str, str]:
        return self.base.obs_columns

    @property
    def layers(self) -> tuple[str, ...]:
        return self.base.layers

    @property
    def part_sizes(self) -> tuple[int, ...]:
        if self._rows is None:
            return self.base.part_sizes
        ends = np.searchsorted(self._rows, np.cumsum(self.base.part_sizes))
        return tuple(np.diff(ends, prepend=0).tolist())

    @property
    def layer_name(self) -> str | None:
        return self.base.layer_name

    @property
    def obsm_keys(self) -> dict[str, int]:
        return self.base.obsm_keys

    def obsm_columns(self, key: str) -> tuple[str, ...] | None:
        return self.base.obsm_columns(key)

    def read_uns(self, key: str) -> Any:
        return self.base.read_uns(key)

    def obs_names(self, start: int = 0, stop: int | None = None) -> np.ndarray:
        parts = [
            self.base.obs_names(low, high)[rows] for low, high, rows in self._windows(start, stop)
        ]
        return np.concatenate([np.zeros(0, dtype=object), *parts])

    def read_obs(
        self, columns: Sequence[str], start: int = 0, stop: int | None = None
    ) -> pd.DataFrame:
        parts = [
            self.base.read_obs(columns, low, high).take(rows)
            for low, high, rows in self._windows(start, stop)
        ]
        if not parts:
            return self.base.read_obs(columns, 0, 0)
        return (
            pd.concat(parts, ignore_index=True)
            if len(parts) > 1
            else parts[0].reset_index(drop=True)
        )

    def _windows(self, start: int, stop: int | None) -> Iterator[tuple[int, int, np.ndarray]]:
        """Windows of the base with the wanted rows relative to each, for rows of this view."""
        end = self.n_obs if stop is None else stop
        spans_of([(start, end)], self.n_obs, self._where)
        while start < end:
            first = int(self.base_rows(np.array([start]))[0])
            if self._rows is None:
                after = min(end, start + _WINDOW_ROWS)
            else:
                after = int(np.searchsorted(self._rows, first + _WINDOW_ROWS))
                after = min(end, after)
            rows = self.base_rows(np.arange(start, after))
            yield first, int(rows[-1]) + 1, rows - first
            start = after

    def read_rows(self, ranges: Sequence[Range], genes: np.ndarray | None = None) -> CsrRows:
        chosen = self._genes
        if genes is not None:
            gene_lookup(genes, self.n_vars)
            chosen = np.asarray(genes) if chosen is None else chosen[genes]
        spans, back = in_order(spans_of(ranges, self.n_obs, self._where))
        block = self.base.read_rows(self._base_ranges(spans), chosen)
        return block if back is None else block.take(back)

    def _base_ranges(self, spans: np.ndarray) -> list[Range]:
        if self._rows is None:
            return [(start, stop) for start, stop in spans.tolist()]
        return ranges_of(self.base_rows(expand(spans)))

    def read_obsm(self, key: str, ranges: Sequence[Range]) -> np.ndarray:
        spans, back = in_order(spans_of(ranges, self.n_obs, self._where))
        values_nk = self.base.read_obsm(key, self._base_ranges(spans))
        return values_nk if back is None else values_nk[back]

    @property
    def chunk_rows(self) -> int:
        # Rows of the view that share a chunk of the base, on average.
        share = self.n_obs / max(1, self.base.n_obs)
        return max(1, round(self.base.chunk_rows * share))

    @property
    def is_shuffled(self) -> bool:
        return self.base.is_shuffled

    @property
    def bytes_per_cell(self) -> float:
        return self.base.bytes_per_cell if self._genes is None else self._sampled_bytes

    @cached_property
    def _sampled_bytes(self) -> float:
        picks = np.unique(
            np.linspace(0, self.n_obs - 1, min(self.n_obs, _SAMPLED_ROWS)).astype(int)
        )
        if len(picks) == 0:
            return 8.0
        return 8.0 + 8.0 * float(self.read_rows(ranges_of(picks)).indptr[-1]) / len(picks)

    def storage_facts(self) -> StorageFacts:
        facts = self.base.storage_facts()
        return StorageFacts(dtype=facts.dtype, encoding=facts.encoding, size_bytes=facts.size_bytes)

    def digest(self) -> str:
        hashed = [
            None if part is None else hashlib.sha256(part.astype("<i8").tobytes()).hexdigest()
            for part in (self._rows, self._genes)
        ]
        facts = json.dumps([self.base.digest(), *hashed])
        return hashlib.sha256(facts.encode()).hexdigest()[:32]

    def version(self) -> str:
        return self.base.version()

    def close(self) -> None:
        self.base.close()


def _checked_rows(rows: np.ndarray, n_rows: int, where: str) -> np.ndarray:
    wanted = check_rows(rows, n_rows, where)
    if len(wanted) > 1 and int(np.diff(wanted).min()) <= 0:
        raise ValueError(f"{where}: rows have to be strictly increasing")
    return wanted.astype(np.uint32) if n_rows <= np.iinfo(np.uint32).max else wanted
