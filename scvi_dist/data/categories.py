"""Categories of an obs column: which there are, in which order, and the code of each cell.

The rules are pandas' (and so scvi-tools'): a categorical column keeps its declared order, unused
levels included; any other column has its distinct values in sorted order. Neither depends on the
order of the rows, so codes are the same however a store is cut into shards.
"""

import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from scvi_dist.errors import SchemaMismatch

Category = str | int | float | bool
"""A category as a plain Python value, which JSON can hold."""

_FEW_CELLS = 3
_SHOWN = 5


def plain(value: Any, where: str) -> Category:
    """The category as a plain Python value.

    Raises
    ------
    SchemaMismatch
        The value is neither text, number nor bool.
    """
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, str | bool | int | float):
        return value
    raise SchemaMismatch(
        f"{where}: categories are text, numbers or bools; "
        f"seen {value!r} of type {type(value).__name__}. Convert the column with .astype(str)."
    )


def kind_of(value: Category) -> str:
    """``text``, ``bool`` or ``number``: values of different kinds are never the same category."""
    if isinstance(value, str):
        return "text"
    return "bool" if isinstance(value, bool) else "number"


def without(counted: Mapping[Category, int], known: Iterable[Category]) -> dict[Category, int]:
    """What is counted but not known; ``True`` is not ``1``, ``1.0`` is."""
    keys = {(kind_of(value), value) for value in known}
    return {value: n for value, n in counted.items() if (kind_of(value), value) not in keys}


def check_one_kind(values: Sequence[Category], where: str) -> None:
    """Raise :class:`SchemaMismatch` unless all values are text, all numbers, or all bools."""
    first_of_kind = {kind_of(v): v for v in reversed(values)}
    if len(first_of_kind) > 1:
        seen = ", ".join(f"{v!r} ({kind})" for kind, v in sorted(first_of_kind.items()))
        raise SchemaMismatch(
            f"{where}: categories must be all text, all numbers or all bools, because values of "
            f"different kinds have no order; seen {seen}. Convert the column with .astype(str)."
        )


def in_order(values: Iterable[Category], where: str) -> tuple[Category, ...]:
    """Distinct values, sorted; raises :class:`SchemaMismatch` for a mixture of kinds."""
    distinct = list(values)
    check_one_kind(distinct, where)
    return tuple(sorted(distinct))


def category_array(categories: Sequence[Category]) -> np.ndarray:
    """The categories as scvi-tools' registry holds them: text as object, else a numeric dtype."""
    if all(isinstance(c, str) for c in categories):
        return np.array(categories, dtype=object)
    return np.array(categories)


def code_dtype(n_categories: int) -> type[np.signedinteger]:
    """The smallest signed integer type that holds the codes."""
    for dtype in (np.int8, np.int16):
        if n_categories <= np.iinfo(dtype).max + 1:
            return dtype
    return np.int32


def levels_of(
    values: pd.Series, where: str, first_row: int
) -> tuple[np.ndarray, tuple[Category, ...]]:
    """Code of each value, and what the codes stand for, as this column alone has it.

    Raises
    ------
    SchemaMismatch
        A value is missing; names the first rows (``first_row`` is the row of ``values[0]``).
    """
    if isinstance(values.dtype, pd.CategoricalDtype):
        codes, levels = values.cat.codes.to_numpy(), values.cat.categories
    else:
        codes, levels = pd.factorize(values)
    missing = np.flatnonzero(codes < 0)
    if len(missing):
        raise SchemaMismatch(
            f"{where}: every cell needs a category; {len(missing)} of rows {first_row} to "
            f"{first_row + len(values) - 1} have none (row {_list(missing + first_row)}). "
            "Fill them with a category of their own, or leave those cells out."
        )
    return codes, tuple(plain(v, where) for v in levels)


def encode(
    values: pd.Series, categories: Sequence[Category], where: str, first_row: int = 0
) -> np.ndarray:
    """Position of each value in ``categories``; the smallest signed integer type, ``[n]``.

    Raises
    ------
    SchemaMismatch
        A value is missing, or is none of the categories.
    """
    codes, levels = levels_of(values, where, first_row)
    # The kind is part of the key, because a dict holds True and 1 to be the same.
    position = {(kind_of(c), c): i for i, c in enumerate(categories)}
    table = np.array([position.get((kind_of(v), v), -1) for v in levels], dtype=np.int64)
    used = np.bincount(codes, minlength=len(levels))
    unknown = {v: int(used[i]) for i, v in enumerate(levels) if used[i] and table[i] < 0}
    if unknown:
        raise unknown_categories(unknown, categories, where)
    return table.astype(code_dtype(len(categories)))[codes]


def unknown_categories(
    unknown: dict[Category, int], known: Sequence[Category], where: str
) -> SchemaMismatch:
    """The error for categories that the schema does not have; ``unknown`` maps them to cells."""
    named = ", ".join(f"{v!r} ({n} cells)" for v, n in list(unknown.items())[:_SHOWN])
    return SchemaMismatch(
        f"{where}: {len(unknown)} categories are not in the schema: {named}"
        f"{', …' if len(unknown) > _SHOWN else ''}. It has {len(known)}: "
        f"{_list([repr(c) for c in known])}. Pass extend_categories=True to add batches or "
        "covariates, or rename or leave out those cells."
    )


class CategoryCount:
    """Cells of each category of one column, fed chunk by chunk."""

    def __init__(self, where: str) -> None:
        self.where = where
        self.cells: dict[Category, int] = {}
        """Category -> cells; declared categories may have none."""
        self._declared: tuple[Category, ...] | None = None
        self._n_chunks = 0

    def add(self, values: pd.Series, first_row: int) -> None:
        """Count the next chunk. Raises :class:`SchemaMismatch` where a value is missing."""
        codes, levels = levels_of(values, self.where, first_row)
        declared = levels if isinstance(values.dtype, pd.CategoricalDtype) else None
        if self._n_chunks and declared != self._declared:
            raise SchemaMismatch(
                f"{self.where}: one column has one list of categories; rows from {first_row} "
                f"declare {declared}, the rows before them {self._declared}."
            )
        self._declared = declared
        self._n_chunks += 1
        for level, n in zip(levels, np.bincount(codes, minlength=len(levels)), strict=True):
            self.cells[level] = self.cells.get(level, 0) + int(n)

    @property
    def used(self) -> dict[Category, int]:
        """Category -> cells, without the categories that have none."""
        return {value: n for value, n in self.cells.items() if n}

    def categories(self) -> tuple[Category, ...]:
        """The declared order, or the distinct values sorted."""
        if self._declared is not None:
            check_one_kind(self._declared, self.where)
            return self._declared
        return in_order(self.cells, self.where)

    def warn_if_few(self) -> None:
        """A ``UserWarning`` that names the categories with fewer than 3 cells."""
        few = [f"{v!r} ({n})" for v, n in self.used.items() if n < _FEW_CELLS]
        if few:
            warnings.warn(
                f"{self.where}: {len(few)} categories have fewer than {_FEW_CELLS} cells: "
                f"{_list(few)}. Models may not train properly.",
                UserWarning,
                stacklevel=3,
            )


def _list(values: Sequence[Any] | np.ndarray) -> str:
    shown = ", ".join(str(v) for v in values[:_SHOWN])
    return f"{shown}, …" if len(values) > _SHOWN else shown
