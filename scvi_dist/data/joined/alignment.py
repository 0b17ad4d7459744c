"""Columns of several stores as one list, by name: genes, and proteins or whatever obsm names.

What is joined is decided once, from names; a read then costs at most one lookup of its column
indices, and nothing where the store has the wanted columns in the wanted order.

Axis suffix: ``g`` joined columns.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, get_args

import numpy as np
import pandas as pd

from scvi_dist.batch import CsrRows
from scvi_dist.data.names import listed, repeated
from scvi_dist.errors import ConfigError, FieldNotFound, SchemaMismatch, did_you_mean

Join = Literal["inner", "outer"]


def check_join(join: str | None) -> Join | None:
    """The join; raises :class:`ConfigError` for one that there is not."""
    if join is None or join in get_args(Join):
        return join  # type: ignore[return-value]
    raise ConfigError(
        f"join={join!r}: expected 'inner' (what all stores have), 'outer' (what any store has; "
        f"where one has it not, its cells have 0) or None; {did_you_mean(join, get_args(Join))}"
    )


@dataclass(frozen=True)
class NamedColumns:
    """The columns of several stores, one array of names each.

    Equal ones should be one array (``shared_names``): each different array is compared.
    """

    names: Sequence[np.ndarray]
    where: Callable[[int], str]
    """Name of a store, for messages."""
    what: str = "genes"

    @cached_property
    def distinct(self) -> dict[int, np.ndarray]:
        """Place of the first store with them -> names, for each different list of names."""
        firsts: dict[int, int] = {}
        for i, names in enumerate(self.names):
            firsts.setdefault(id(names), i)
        return {i: self.names[i] for i in firsts.values()}

    def joined(self, join: Join | None, wanted: np.ndarray | None = None) -> np.ndarray:
        """The names of all stores as one list; ``wanted`` chooses from them, in its own order.

        Without a join the stores have to have the same names; their order is the first store's.

        Raises
        ------
        SchemaMismatch
            Names repeat, or differ although no join was asked for, or none is left.
        FieldNotFound
            A wanted name is not in every store (in none, for an outer join).
        """
        for i, names in self.distinct.items():
            self._check_unique(names, self.where(i))
        if wanted is not None:
            self._check_wanted(join, wanted)
            return wanted
        if len(self.distinct) == 1:
            return self.names[0]
        if join is None:
            self._check_same()
            return self.names[0]
        return self._union() if join == "outer" else self._intersection()

    def _check_unique(self, names: np.ndarray, where: str) -> None:
        twice = repeated(names)
        if len(twice):
            raise SchemaMismatch(
                f"{where}: {len(twice)} names of {self.what} occur more than once: "
                f"{listed(twice)}. Stores are joined by these names: make them unique "
                "(adata.var_names_make_unique()) and write the store again."
            )

    def _check_same(self) -> None:
        first, *others = self.distinct.items()
        here = set(first[1])
        for i, names in others:
            there = set(names)
            if there == here:
                continue
            more, less = sorted(there - here), sorted(here - there)
            shared = set.intersection(*map(set, self.distinct.values()))
            raise SchemaMismatch(
                f"{self.where(i)} (compared with {self.where(first[0])}): the {self.what} differ: "
                f"{len(more)} {self.what} more{f' ({listed(more)})' if more else ''} and "
                f"{len(less)} {self.what} too few{f' ({listed(less)})' if less else ''}. Say what "
                f"to do: join='inner' keeps the {len(shared)} that all stores have, join='outer' "
                "has 0 where a store lacks one; or give the list (genes=...)."
            )

    def _union(self) -> np.ndarray:
        return pd.Index(np.concatenate(list(self.distinct.values()))).unique().to_numpy(object)

    def _intersection(self) -> np.ndarray:
        first, *others = self.distinct.values()
        kept = pd.Index(first, dtype=object)
        for names in others:
            kept = kept[kept.isin(names)]
        if len(kept) == 0:
            raise SchemaMismatch(
                f"{self.where(0)} and the stores joined with it have no {self.what} in common; "
                f"its names are like {listed(first, 2)}, others are like "
                f"{listed(others[-1], 2)}. Are they of one kind (symbols or Ensembl ids)?"
            )
        return kept.to_numpy(object)

    def _check_wanted(self, join: Join | None, wanted: np.ndarray) -> None:
        if len(wanted) == 0:
            raise ConfigError(f"{self.where(0)}: the list of {self.what} is empty.")
        if len(repeated(wanted)):
            raise ConfigError(
                f"{self.where(0)}: {self.what} were asked for twice: {listed(repeated(wanted))}."
            )
        index = pd.Index(wanted, dtype=object)
        places = {0: self._union()} if join == "outer" else self.distinct
        for i, names in places.items():
            missing = index[~index.isin(names)]
            if len(missing) == 0:
                continue
            other = self.where(i) if join != "outer" else f"{self.where(i)} and the others"
            hint = "" if join == "outer" else " With join='outer' a store that lacks one has 0."
            raise FieldNotFound(
                f"{other}: {len(missing)} of {len(index)} {self.what} are not there: "
                f"{listed(missing)}; {did_you_mean(missing[0], names)}{hint}"
            )


def source_columns(names: np.ndarray, joined: np.ndarray) -> np.ndarray:
    """int64 ``[g]``: column of a store that each joined name is; -1 where it has not the name."""
    return pd.Index(names, dtype=object).get_indexer(pd.Index(joined, dtype=object))


@dataclass(frozen=True, slots=True)
class ColumnPlan:
    """Which columns of a store to read, and where they belong."""

    read: np.ndarray | None
    """int64: columns to read, in this order; ``None``: all, as they are."""
    places: np.ndarray | None
    """int32: place of each column read among the wanted ones; ``None``: they are in order."""
    n_columns: int
    """Wanted columns."""

    @staticmethod
    def of(source_g: np.ndarray, n_stored: int) -> "ColumnPlan":
        """For wanted columns that are columns ``source_g`` of a store (-1: it has not that one)."""
        n = len(source_g)
        present = np.flatnonzero(source_g >= 0)
        columns = source_g[present].astype(np.int64)
        if len(present) < n_stored:
            whole = len(present) == n
            return ColumnPlan(columns, None if whole else present.astype(np.int32), n)
        # All of the store's columns: reading them as they are spares choosing among them.
        if n == n_stored and np.array_equal(columns, np.arange(n)):
            return ColumnPlan(None, None, n)
        places = np.empty(n_stored, dtype=np.int32)
        places[columns] = present.astype(np.int32)
        return ColumnPlan(None, places, n)

    def place(self, block: CsrRows) -> CsrRows:
        """Rows as read, with their columns where they belong."""
        if self.places is None:
            return block
        indices = self.places.take(block.indices)
        return CsrRows(block.indptr, indices, block.data, self.n_columns)

    def place_dense(self, values_nk: np.ndarray) -> np.ndarray:
        """The same for an array of all columns of a store; missing columns are 0."""
        read = values_nk if self.read is None else values_nk[:, self.read]
        if self.places is None:
            return read
        placed = np.zeros((len(values_nk), self.n_columns), dtype=values_nk.dtype)
        placed[:, self.places] = read
        return placed
