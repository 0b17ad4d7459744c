"""Columns of obs of several stores as one: kinds, categories and values.

Categories of all stores are merged: where all have the same ones in the same order they stay so,
else they are sorted, so that codes do not depend on the order of the stores.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from scvi_dist.errors import FieldNotFound, SchemaMismatch, did_you_mean


@dataclass(frozen=True)
class ObsJoin:
    """What the columns of several obs tables have in common."""

    kinds: Sequence[dict[str, str]]
    """For each store: column -> ``category``, ``string``, ``number`` or ``bool``."""
    where: str
    """The stores together, for messages."""
    where_of: Callable[[int], str]
    """One store, for messages."""

    def columns(self) -> dict[str, str]:
        """Columns that all stores have, as the same kind or as text and categories."""
        merged = {name: merged_kind(self.kinds_of(name)) for name in self.kinds[0]}
        return {name: kind for name, kind in merged.items() if kind is not None}

    def kinds_of(self, name: str) -> list[str | None]:
        """Kind of a column in each store; ``None`` where it is not."""
        return [kinds.get(name) for kinds in self.kinds]

    def kind(self, name: str) -> str:
        """Kind of a column.

        Raises :class:`FieldNotFound` if no store has it, :class:`SchemaMismatch` that names a
        store which has it not or in another form.
        """
        kinds = self.kinds_of(name)
        merged = merged_kind(kinds)
        if merged is not None:
            return merged
        if all(kind is None for kind in kinds):
            raise FieldNotFound(
                f"{self.where}: obs has no column {name!r}; {did_you_mean(name, self.columns())}"
            )
        odd = kinds.index(None) if None in kinds else _first_odd(kinds)
        have = kinds[0] if odd else next(kind for kind in kinds if kind is not None)
        seen = "does not have it" if kinds[odd] is None else f"has it as {kinds[odd]}"
        lacking = sum(kind is None for kind in kinds)
        more = f" (nor do {lacking - 1} others)" if lacking > 1 else ""
        raise SchemaMismatch(
            f"{self.where}: column {name!r} has to be in every store; it is a {have} column "
            f"elsewhere, and {self.where_of(odd)} {seen}{more}. Write it into that store, or "
            "leave the column or the store out."
        )

    def merge(self, empty: Sequence[pd.DataFrame]) -> "dict[str, MergedColumn]":
        """The form of each column over all stores, from each store's columns without rows.

        Raises as :meth:`kind` does.
        """
        merged = {}
        for name in empty[0].columns:
            kind = self.kind(name)
            is_coded = kind == "category"
            dtypes = [table[name].dtype for table in empty] if is_coded else []
            merged[name] = MergedColumn(kind, self._categories(name, dtypes) if is_coded else None)
        return merged

    def _categories(self, name: str, found: Sequence[pd.CategoricalDtype]) -> pd.CategoricalDtype:
        """The categories of all stores; raises :class:`SchemaMismatch` where types differ."""
        first = next((dtype for dtype in found if len(dtype.categories)), found[0])
        filled = [dtype for dtype in found if len(dtype.categories)] or [first]
        if all(first.categories.equals(dtype.categories) for dtype in filled):
            return pd.CategoricalDtype(first.categories, all(dtype.ordered for dtype in filled))
        kind = first.categories.inferred_type
        for i, dtype in enumerate(found):
            if len(dtype.categories) and dtype.categories.inferred_type != kind:
                raise SchemaMismatch(
                    f"{self.where}: the categories of {name!r} are {kind} values in one store "
                    f"and {dtype.categories.inferred_type} values in {self.where_of(i)}; write "
                    "them as the same type."
                )
        union = np.unique(np.concatenate([dtype.categories for dtype in filled]))
        return pd.CategoricalDtype(pd.Index(union).astype(first.categories.dtype))


def merged_kind(kinds: Sequence[str | None]) -> str | None:
    """Kind of a column that has these kinds in the stores; ``None`` if they do not go together."""
    found = set(kinds)
    if len(found) == 1:
        return kinds[0]
    # anndata writes text as a category unless every value is different.
    return "string" if found == {"string", "category"} else None


def kinds_of(table: pd.DataFrame) -> dict[str, str]:
    """Kind of each column of a table that a store has read."""
    return {str(name): _kind_of(column.dtype) for name, column in table.items()}


def _kind_of(dtype: Any) -> str:
    if isinstance(dtype, pd.CategoricalDtype):
        return "category"
    if pd.api.types.is_bool_dtype(dtype):
        return "bool"
    return "number" if pd.api.types.is_numeric_dtype(dtype) else "string"


@dataclass(frozen=True, slots=True)
class MergedColumn:
    """The form that a column has over all stores."""

    kind: str
    dtype: pd.CategoricalDtype | None
    """All categories; ``None`` for a column of another kind."""

    def join(self, pieces: Sequence[pd.Series]) -> pd.Series:
        """The values of several stores, one after the other."""
        if self.dtype is not None:
            codes = [_recoded(piece, self.dtype) for piece in pieces]
            return pd.Series(pd.Categorical.from_codes(np.concatenate(codes), dtype=self.dtype))
        if self.kind == "string":
            pieces = [piece.astype(object).where(piece.notna(), None) for piece in pieces]
        return pd.concat(pieces, ignore_index=True)


def _recoded(values: pd.Series, merged: pd.CategoricalDtype) -> np.ndarray:
    places = merged.categories.get_indexer(values.cat.categories)
    return np.append(places, -1)[values.cat.codes.to_numpy()]


def _first_odd(values: Sequence[object]) -> int:
    return next((i for i, value in enumerate(values) if value != values[0]), 0)
