"""Which cells are compared with which: from columns, masks, rows and queries to strata.

A stratum is a group of cells; strata share no cell. Each side of a comparison is made of some of
them, so that what is known of all strata serves every comparison. Only obs is looked at.

Axis suffixes: ``n`` cells.
"""

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import pandas as pd

from scvi_dist.analysis.selection import Selection
from scvi_dist.data.store import Store
from scvi_dist.data.views.obs_filter import cells_matching
from scvi_dist.errors import ConfigError, FieldNotFound, did_you_mean

Rows: TypeAlias = Sequence[int] | Sequence[bool] | np.ndarray | str
"""Rows of a store, a mask, or a query of columns of obs."""
REST = "Rest"
"""Name of all cells that are not in the first group."""
_OBS_ROWS = 200_000
_NOBODY = -1


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """Two sides, each as the strata that it is made of."""

    group1: Any
    group2: Any
    """Names of the sides."""
    first: tuple[int, ...]
    second: tuple[int, ...]
    """Strata whose expression is compared."""
    counted_first: tuple[int, ...] = ()
    counted_second: tuple[int, ...] = ()
    """Strata whose counts are described."""


@dataclass(frozen=True, slots=True)
class Grouping:
    """The strata of all cells, and what is compared."""

    codes_n: np.ndarray
    """Stratum of each cell of the store; -1 for cells that take no part. Small integers, which
    may not hold sums of strata."""
    comparisons: tuple[Comparison, ...]
    is_named: bool
    """Whether the sides have names that belong into a table."""

    @property
    def n_strata(self) -> int:
        """Strata that some side is made of."""
        return int(self.codes_n.max()) + 1

    @property
    def cells_s(self) -> np.ndarray:
        """int64: cells of each stratum."""
        return cells_of(self.codes_n, self.n_strata)

    def rows(self, strata: tuple[int, ...]) -> np.ndarray:
        """int64: rows of the cells of some strata, ascending."""
        is_wanted = np.zeros(self.n_strata + 1, dtype=bool)
        is_wanted[list(strata)] = True
        return np.flatnonzero(is_wanted[self.codes_n])  # -1, of nobody, is the last entry


def cells_of(codes_n: np.ndarray, n_codes: int) -> np.ndarray:
    """int64: cells of each code; those of -1 are not counted. In pieces: numpy takes copies."""
    cells = np.zeros(n_codes, dtype=np.int64)
    for start in range(0, len(codes_n), _OBS_ROWS):
        piece_n = codes_n[start : start + _OBS_ROWS]
        cells += np.bincount(piece_n[piece_n >= 0], minlength=n_codes)
    return cells


def _code_type(n_codes: int) -> np.dtype:
    """The smallest integers that hold -1 and as many codes."""
    return np.min_scalar_type(-n_codes)


def grouping_of(
    store: Store,
    *,
    groupby: str | None = None,
    group1: Any = None,
    group2: Any = None,
    idx1: Rows | None = None,
    idx2: Rows | None = None,
) -> Grouping:
    """What scvi-tools' arguments of these names ask for.

    Raises
    ------
    ConfigError
        A side has no cells, or the arguments do not say what to compare.
    FieldNotFound
        There is no such column or group.
    """
    if idx1 is not None:
        return _of_rows(store, idx1, idx2)
    if idx2 is not None:
        raise ConfigError("idx2 is compared with idx1, which is missing.")
    if groupby is None:
        raise ConfigError("say what is compared: groupby=…, a column of obs, or idx1=….")
    return _of_column(store, groupby, group1, group2)


def _of_rows(store: Store, idx1: Rows, idx2: Rows | None) -> Grouping:
    first_n = _mask(store, idx1)
    second_n = ~first_n if idx2 is None else _mask(store, idx2)
    for name, mask_n in (("idx1", first_n), ("idx2", second_n)):
        if not mask_n.any():
            raise ConfigError(f"{name} has no cells among the {store.n_obs} of the store.")
    # Cells of both sides are a stratum of their own.
    marks_n = first_n.astype(np.int8) + second_n.astype(np.int8) * np.int8(2)
    present = [mark for mark in (1, 2, 3) if (marks_n == mark).any()]
    code_of = np.full(4, _NOBODY, dtype=np.int8)
    code_of[present] = np.arange(len(present))
    first = tuple(int(code_of[mark]) for mark in present if mark & 1)
    second = tuple(int(code_of[mark]) for mark in present if mark & 2)
    one = Comparison(group1="one", group2="two", first=first, second=second)
    return Grouping(code_of[marks_n], (one,), is_named=False)


def _mask(store: Store, rows: Rows) -> np.ndarray:
    mask_n = np.zeros(store.n_obs, dtype=bool)
    if isinstance(rows, str):
        mask_n[cells_matching(store, rows)] = True
        return mask_n
    given = np.asarray(rows).ravel()
    if given.dtype == bool and len(given) == store.n_obs:
        return given
    if len(given):
        mask_n[Selection(store.n_obs, given).rows()] = True
    return mask_n


def _of_column(store: Store, groupby: str, group1: Any, group2: Any) -> Grouping:
    column_n, names = read_groups(store, groupby)
    where = f"obs[{groupby!r}] of {store.locator.redacted_url}"
    cells = cells_of(column_n, len(names))
    if group1 is None:
        firsts = [i for i in range(len(names)) if cells[i]]
        if len(firsts) < 2:
            raise ConfigError(
                f"{where} has a single group, {names[firsts[0]]!r}: there is nothing to compare it "
                "with."
                if firsts
                else f"{where} has no values: there is nothing to compare."
            )
    else:
        firsts = [_code_of(name, names, where) for name in _listed(group1)]
    second = None if group2 is None else _code_of(group2, names, where)
    if group1 is None:
        firsts = [first for first in firsts if first != second]
    for code in (*firsts, *(() if second is None else (second,))):
        if cells[code] == 0:
            raise ConfigError(f"{where}: the group {names[code]!r} has no cells.")
    if second in firsts:
        raise ConfigError(f"{where}: {names[second]!r} cannot be compared with itself.")
    return _compared(column_n, names, firsts, second, where)


def _compared(
    column_n: np.ndarray,
    names: Sequence[Hashable],
    firsts: list[int],
    second: int | None,
    where: str,
) -> Grouping:
    """Strata are the groups that are named and, where they are part of a rest, all others."""
    named = list(dict.fromkeys([*firsts, *(() if second is None else (second,))]))
    others = _NOBODY if second is not None else len(named)
    stratum = np.full(len(names) + 1, others, _code_type(len(named) + 1))
    stratum[named] = np.arange(len(named))
    codes_n = stratum[column_n]  # a missing value, -1, is the last entry
    present = tuple(np.flatnonzero(cells_of(codes_n, len(named) + 1)).tolist())
    comparisons = []
    for first in firsts:
        own = int(stratum[first])
        other = tuple(s for s in present if s != own)
        if second is not None:
            other = (int(stratum[second]),)
        if not other:
            raise ConfigError(f"{where}: all cells are in {names[first]!r}; there is no rest.")
        name2 = REST if second is None else names[second]
        comparisons.append(
            Comparison(group1=names[first], group2=name2, first=(own,), second=other)
        )
    return Grouping(codes_n, tuple(comparisons), is_named=True)


def read_groups(store: Store, column: str) -> tuple[np.ndarray, list[Hashable]]:
    """The group of each cell, int32 ``[n]`` (-1 for a missing value), and the groups' names.

    Names are in the order of the categories, or sorted where the column has none.
    """
    codes_n = np.empty(store.n_obs, dtype=np.int32)
    known: dict[Hashable, int] = {}
    for start in range(0, max(store.n_obs, 1), _OBS_ROWS):
        stop = min(start + _OBS_ROWS, store.n_obs)
        values = store.read_obs([column], start, stop)[column]
        if isinstance(values.dtype, pd.CategoricalDtype):
            names = values.cat.categories.tolist()
            codes_n[start:stop] = values.cat.codes
            known = {name: i for i, name in enumerate(names)}
        else:
            local, found = pd.factorize(values, use_na_sentinel=True)
            to_known = [known.setdefault(name, len(known)) for name in found.tolist()]
            codes_n[start:stop] = np.array([*to_known, _NOBODY])[local]
    names = list(known)
    if isinstance(values.dtype, pd.CategoricalDtype):
        return codes_n, names
    order = sorted(range(len(names)), key=lambda i: names[i])
    place = np.full(len(names) + 1, _NOBODY, dtype=np.int32)
    place[order] = np.arange(len(names))
    return place[codes_n], [names[i] for i in order]


def _listed(groups: Any) -> list[Any]:
    return [groups] if isinstance(groups, str) or not isinstance(groups, Iterable) else list(groups)


def _code_of(name: Any, names: Sequence[Hashable], where: str) -> int:
    if name in names:
        return names.index(name)
    as_text = [str(n) for n in names]
    if as_text.count(str(name)) == 1:
        return as_text.index(str(name))
    raise FieldNotFound(f"{where} has no group {name!r}; {did_you_mean(str(name), as_text)}")
