"""obsm of several stores as one: tables by the names of their columns, arrays by their width.

Axis suffixes: ``n`` cells, ``k`` columns.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from scvi_dist.data.joined.alignment import ColumnPlan, Join, NamedColumns, source_columns
from scvi_dist.data.names import shared_names
from scvi_dist.data.spans import Range
from scvi_dist.data.store import Store
from scvi_dist.errors import FieldNotFound, SchemaMismatch, did_you_mean

StoredObsm = dict[str, int | np.ndarray]
"""Key -> names of the columns (object array of str), or their number where they have none."""


def obsm_of(store: Store) -> StoredObsm:
    """What there is in obsm of a store."""
    found: StoredObsm = {}
    for key, width in store.obsm_keys.items():
        names = store.obsm_columns(key)
        found[key] = width if names is None else shared_names(np.array(names, dtype=object))
    return found


@dataclass(frozen=True)
class JoinedObsm:
    """One key of obsm over all stores."""

    key: str
    width: int
    names: tuple[str, ...] | None
    """Of the columns; ``None`` for arrays."""
    plans: tuple[ColumnPlan | None, ...]
    """For each store; ``None`` for a store that has not the key: its cells have 0."""

    def read(self, part: int, store: Store, ranges: Sequence[Range]) -> np.ndarray:
        """float32 ``[n, k]`` of one of the stores."""
        plan = self.plans[part]
        if plan is not None:
            return plan.place_dense(store.read_obsm(self.key, ranges))
        n = sum(stop - start for start, stop in ranges)
        return np.zeros((n, self.width), dtype=np.float32)


@dataclass(frozen=True)
class ObsmJoin:
    """What obsm of several stores has in common.

    Columns with names are joined like genes: a store that lacks a protein, or all of them, has 0
    under an outer join. Arrays without names need the same width everywhere.
    """

    stored: Sequence[StoredObsm]
    join: Join | None
    where: str
    where_of: Callable[[int], str]
    _joined: dict[str, JoinedObsm] = field(default_factory=dict)

    def keys(self) -> dict[str, int]:
        """Keys that can be read, with their numbers of columns."""
        named = dict.fromkeys(key for stored in self.stored for key in stored)
        widths = {}
        for key in named:
            try:
                widths[key] = self.joined(key).width
            except SchemaMismatch:
                continue  # said when it is asked for
        return widths

    def joined(self, key: str) -> JoinedObsm:
        """How to read a key.

        Raises :class:`FieldNotFound` if no store has it, :class:`SchemaMismatch` that names a
        store where it is missing or differs.
        """
        if key not in self._joined:
            found = [stored.get(key) for stored in self.stored]
            if all(columns is None for columns in found):
                raise FieldNotFound(
                    f"{self.where}: obsm has no {key!r}; {did_you_mean(key, self.keys())}"
                )
            named = [columns is None or isinstance(columns, np.ndarray) for columns in found]
            everywhere = all(columns is not None for columns in found)
            by_name = all(named) and (everywhere or self.join == "outer")
            self._joined[key] = self._named(key, found) if by_name else self._plain(key, found)
        return self._joined[key]

    def _named(self, key: str, found: Sequence[int | np.ndarray | None]) -> JoinedObsm:
        have = [i for i, columns in enumerate(found) if columns is not None]
        lists = [columns for columns in found if isinstance(columns, np.ndarray)]
        columns = NamedColumns(lists, lambda i: self.where_of(have[i]), f"columns of obsm[{key!r}]")
        joined = columns.joined(self.join)
        plans: list[ColumnPlan | None] = [None] * len(found)
        for i, names in zip(have, lists, strict=True):
            plans[i] = ColumnPlan.of(source_columns(names, joined), len(names))
        return JoinedObsm(key, len(joined), tuple(joined.tolist()), tuple(plans))

    def _plain(self, key: str, found: Sequence[int | np.ndarray | None]) -> JoinedObsm:
        widths = [len(c) if isinstance(c, np.ndarray) else c for c in found]
        odd = next((i for i, width in enumerate(widths) if width is None), None)
        if odd is None:
            odd = next((i for i, width in enumerate(widths) if width != widths[0]), None)
        if odd is not None:
            hint = " join='outer' has 0 where a store lacks columns that have names."
            raise SchemaMismatch(
                f"{self.where}: obsm[{key!r}] has to have the same columns in every store; "
                f"{self.where_of(odd)} has {widths[odd] or 'none'}.{hint}"
            )
        width = widths[0] or 0
        return JoinedObsm(key, width, None, (ColumnPlan(None, None, width),) * len(found))
