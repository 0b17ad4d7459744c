"""A view of a store with other genes, and with columns of obs that it lacks.

Genes are found by name; those that the store does not have are zeros. A column that is added holds
one value for all cells. This is how data from elsewhere is brought to a model's genes.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd

from scvi_dist.batch import CsrRows
from scvi_dist.data.on_disk.matrix import gene_lookup
from scvi_dist.data.spans import Range, spans_of
from scvi_dist.data.store import StorageFacts, Store, StoreLocator, freeze, thaw
from scvi_dist.errors import ConfigError, FieldNotFound, did_you_mean


def open_padded(locator: StoreLocator) -> "PaddedStore":
    """The view of a locator."""
    options = dict(locator.options)
    base = locator.parts[0].open()
    return PaddedStore(base, thaw(options["genes"]), thaw(options["obs"]))


class PaddedStore(Store):
    """All cells of a store, with the given genes in the given order.

    Parameters
    ----------
    base
        The store that is looked at.
    genes
        Names of the genes; those that the store lacks are zeros.
    obs
        Columns of obs that the store lacks, each with the one value of all cells.

    Raises
    ------
    ConfigError
        A gene is asked for twice or is twice in the store, or a column is there already.
    """

    def __init__(
        self, base: Store, genes: Sequence[str], obs: Mapping[str, str | float] | None = None
    ) -> None:
        self.base = base
        self._where = f"view of {base.locator.redacted_url}"
        self._names = np.array([str(gene) for gene in genes], dtype=object)
        self._obs = dict(obs or {})
        self._columns = _columns(base, self._names, self._where)
        """int64 ``[n_vars]``: column of the base; -1 where it has none."""
        already = sorted(set(self._obs) & set(base.obs_columns))
        if already:
            raise ConfigError(f"{self._where}: obs has a column {already[0]!r} already.")

    @cached_property
    def locator(self) -> StoreLocator:  # type: ignore[override]
        base = self.base.locator
        return StoreLocator(
            kind="padded",
            url=base.url,
            layer=base.layer,
            parts=(base,),
            options=(("genes", freeze(self._names.tolist())), ("obs", freeze(self._obs))),
        )

    def on(self, base: Store) -> "PaddedStore":
        """The same genes by name, and the same columns, of another store."""
        return PaddedStore(base, self._names.tolist(), self._obs)

    @property
    def missing_genes(self) -> np.ndarray:
        """Names of the genes that are zeros, object array of str."""
        return self._names[self._columns < 0]

    @property
    def n_obs(self) -> int:
        return self.base.n_obs

    @property
    def n_vars(self) -> int:
        return len(self._names)

    @property
    def var_names(self) -> np.ndarray:
        return self._names

    @property
    def obs_columns(self) -> dict[str, str]:
        added = {c: "category" if isinstance(v, str) else "number" for c, v in self._obs.items()}
        return {**self.base.obs_columns, **added}

    @property
    def layers(self) -> tuple[str, ...]:
        return self.base.layers

    @property
    def obsm_keys(self) -> dict[str, int]:
        return self.base.obsm_keys

    def obsm_columns(self, key: str) -> tuple[str, ...] | None:
        return self.base.obsm_columns(key)

    def read_uns(self, key: str) -> Any:
        return self.base.read_uns(key)

    def obs_names(self, start: int = 0, stop: int | None = None) -> np.ndarray:
        return self.base.obs_names(start, stop)

    def read_obs(
        self, columns: Sequence[str], start: int = 0, stop: int | None = None
    ) -> pd.DataFrame:
        unknown = [c for c in columns if c not in self.obs_columns]
        if unknown:
            raise FieldNotFound(
                f"{self._where}: obs has no column {unknown[0]!r}; "
                f"{did_you_mean(unknown[0], self.obs_columns)}"
            )
        there = self.base.read_obs([c for c in columns if c not in self._obs], start, stop)
        n = (self.n_obs if stop is None else stop) - start
        added = {c: _constant(v, n) for c, v in self._obs.items() if c in columns}
        there = there if len(there.columns) else pd.DataFrame(index=pd.RangeIndex(n))
        return there.assign(**added)[list(columns)]

    def read_rows(self, ranges: Sequence[Range], genes: np.ndarray | None = None) -> CsrRows:
        columns = self._columns
        if genes is not None:
            gene_lookup(genes, self.n_vars)
            columns = columns[np.asarray(genes)]
        spans_of(ranges, self.n_obs, self._where)
        place = np.flatnonzero(columns >= 0)
        block = self.base.read_rows(ranges, columns[place])
        # Its new place may need more bits than a gene's place in the base.
        place = place if len(columns) > np.iinfo(np.int32).max else place.astype(np.int32)
        indices = place[block.indices]
        return CsrRows(block.indptr, indices, block.data, len(columns))

    def read_obsm(self, key: str, ranges: Sequence[Range]) -> np.ndarray:
        return self.base.read_obsm(key, ranges)

    @property
    def chunk_rows(self) -> int:
        return self.base.chunk_rows

    @property
    def is_shuffled(self) -> bool:
        return self.base.is_shuffled

    @property
    def bytes_per_cell(self) -> float:
        # At most: genes of the base that are not shown are not read.
        return self.base.bytes_per_cell

    def storage_facts(self) -> StorageFacts:
        facts = self.base.storage_facts()
        return StorageFacts(dtype=facts.dtype, encoding=facts.encoding, size_bytes=facts.size_bytes)

    def digest(self) -> str:
        facts = json.dumps([self.base.digest(), self._names.tolist(), sorted(self._obs.items())])
        return hashlib.sha256(facts.encode()).hexdigest()[:32]

    def close(self) -> None:
        self.base.close()


def _columns(base: Store, names: np.ndarray, where: str) -> np.ndarray:
    wanted, have = pd.Index(names), pd.Index(base.var_names, dtype=object)
    if wanted.has_duplicates:
        raise ConfigError(f"{where}: gene {wanted[wanted.duplicated()][0]!r} was asked for twice.")
    ambiguous = wanted[wanted.isin(have[have.duplicated()])]
    if len(ambiguous):
        raise ConfigError(f"{where}: more than one gene of the store is named {ambiguous[0]!r}.")
    unique = np.flatnonzero(~have.duplicated())
    found = have[unique].get_indexer(wanted)
    return np.where(found >= 0, unique[found], -1).astype(np.int64)


def _constant(value: str | float, n: int) -> pd.Series:
    if isinstance(value, str):
        return pd.Series(pd.Categorical([value] * n, categories=[value]))
    return pd.Series(np.full(n, value))
