"""Counts of surface proteins beside the counts of genes: where they lie, and who measured which.

They lie in a table of obsm, or in a modality of their own, which a store shows as one.

Axis suffixes: ``n`` cells, ``p`` proteins.
"""

import hashlib
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from scvi_dist.data.categories import Category, kind_of, levels_of
from scvi_dist.data.spans import Range
from scvi_dist.data.store import Store, ranges_of
from scvi_dist.errors import BadCounts, FieldNotFound, SchemaMismatch, did_you_mean

ProteinMask = Mapping[str, tuple[bool, ...]]
"""Code of a panel, as text -> for each protein whether some cell of that panel has a count."""

PASS_BYTES = 32 << 20
"""What is read of the table at a time where it is passed over whole."""
_SHOWN = 5


@dataclass(frozen=True, slots=True)
class ProteinField:
    """The table of counts of proteins, as scvi-tools' registry describes it."""

    registry_key: str
    obsm_key: str
    has_own_names: bool = False
    """Whether the names were given, and do not come from the table."""

    def data_registry(self) -> dict[str, Any]:
        """Where scvi-tools finds it in an AnnData."""
        return {"attr_name": "obsm", "attr_key": self.obsm_key}

    def state_registry(self, names: Sequence[str], mask: ProteinMask | None) -> dict[str, Any]:
        """Names of the proteins, and which panels lack which."""
        columns: Any = list(names)
        if self.has_own_names:
            columns = np.array(names, dtype=object)
        elif is_numbered(names):
            columns = list(range(len(names)))
        return {"column_names": columns, **mask_state(mask)}

    def summary_stats(self, names: Sequence[str]) -> dict[str, int]:
        """``n_proteins``."""
        return {f"n_{self.registry_key}": len(names)}


def mask_state(mask: ProteinMask | None) -> dict[str, Any]:
    """The mask as scvi-tools' registry has it: absent where no panel lacks a protein."""
    if mask is None:
        return {}
    return {"protein_batch_mask": {code: np.array(seen) for code, seen in mask.items()}}


def is_numbered(names: Sequence[str]) -> bool:
    """Whether the names are 0, 1, 2, …: what proteins without names are called."""
    return list(names) == [str(i) for i in range(len(names))]


def check_proteins(store: Store, key: str, given: Sequence[str] | None) -> None:
    """Raise unless the store has that table, of as many columns as there are names.

    Raises
    ------
    FieldNotFound
        The table is not there; names the nearest one.
    SchemaMismatch
        There are more or fewer names than columns.
    """
    where, keys = store.locator.redacted_url, store.obsm_keys
    if key not in keys:
        raise FieldNotFound(
            f"the counts of proteins should be in obsm[{key!r}] of {where}; "
            f"{did_you_mean(key, keys)}"
        )
    if given is not None and len(given) != keys[key]:
        raise SchemaMismatch(
            f"obsm[{key!r}] of {where} has {keys[key]} columns, but {len(given)} names of "
            f"proteins were given: {', '.join(map(repr, given[:_SHOWN]))}, …"
        )


def names_of(store: Store, key: str, given: Sequence[str] | None) -> tuple[str, ...]:
    """Names of the proteins: given ones, else the table's, else ``"0"``, ``"1"``, …"""
    if given is not None:
        return tuple(given)
    return store.obsm_columns(key) or tuple(str(i) for i in range(store.obsm_keys[key]))


def order_of(
    store: Store, key: str, names: Sequence[str], given: Sequence[str] | None
) -> np.ndarray | None:
    """Columns of the store's table (int64) that are these proteins; None: as they are.

    Proteins are found by name where the table names them, else by position.

    Raises
    ------
    SchemaMismatch
        Proteins are missing, or their number differs.
    """
    where = f"obsm[{key!r}] of {store.locator.redacted_url}"
    here = store.obsm_columns(key) if given is None else None
    width = store.obsm_keys[key]
    if here is None or is_numbered(names):
        if width != len(names):
            raise SchemaMismatch(
                f"{where} has {width} proteins, but the model was set up with {len(names)}: "
                f"{', '.join(map(repr, names[:_SHOWN]))}, …"
            )
        return None
    if here == tuple(names):
        return None
    place = {name: column for column, name in enumerate(here)}
    missing = [name for name in names if name not in place]
    if missing:
        raise SchemaMismatch(
            f"{where} lacks {len(missing)} of the {len(names)} proteins of the model: "
            f"{', '.join(map(repr, missing[:_SHOWN]))}; it has "
            f"{', '.join(map(repr, here[:_SHOWN]))}, … Add a column of zeros for each protein "
            "that was not measured: it is then treated as missing."
        )
    return np.array([place[name] for name in names], dtype=np.int64)


class ProteinReader:
    """Counts of proteins of any rows, in the model's order of proteins.

    Parameters
    ----------
    store
        Where they are.
    key
        Key of obsm.
    columns
        Columns of the table, see :func:`order_of`.
    n_proteins
        Proteins.
    """

    def __init__(self, store: Store, key: str, columns: np.ndarray | None, n_proteins: int) -> None:
        self._store, self._key, self._columns = store, key, columns
        self.n_proteins = n_proteins

    def read(self, ranges: Sequence[Range]) -> np.ndarray:
        """float32 ``[n, p]``: the rows of the ranges, one range after the other."""
        values_np = self._store.read_obsm(self._key, ranges)
        if self._columns is not None:
            values_np = values_np[:, self._columns]
        return np.ascontiguousarray(values_np, dtype=np.float32)

    def read_at(self, rows: np.ndarray) -> np.ndarray:
        """float32 ``[n, p]``: the given rows in the order given; repeats allowed."""
        wanted, back = np.unique(np.asarray(rows, dtype=np.int64), return_inverse=True)
        values_np = self.read(ranges_of(wanted))
        return values_np if np.array_equal(back, np.arange(len(wanted))) else values_np[back]

    def digest(self, n_rows: int | None = None) -> str:
        """32 hex digits of the counts of so many evenly spread rows; of all rows where None."""
        n_obs, found = self._store.n_obs, hashlib.sha256()
        if n_rows is not None and n_rows < n_obs:
            rows = np.linspace(0, n_obs - 1, n_rows).astype(np.int64)
            found.update(self.read(ranges_of(np.unique(rows))).tobytes())
            return found.hexdigest()[:32]
        step = max(1, PASS_BYTES // (4 * max(1, self.n_proteins)))
        for start in range(0, n_obs, step):
            found.update(self.read([(start, min(start + step, n_obs))]).tobytes())
        return found.hexdigest()[:32]


class ProteinPass:
    """One pass over the table, chunk by chunk: what is no count is refused, and who measured what.

    Parameters
    ----------
    reader
        The table.
    names
        Names of the proteins.
    where
        The table, for messages.
    """

    def __init__(self, reader: ProteinReader, names: Sequence[str], where: str) -> None:
        self._reader, self._names, self._where = reader, names, where
        self._seen: dict[tuple[str, Category], np.ndarray] = {}
        """Kind and category of a panel -> bool ``[p]``."""
        self._fraction: tuple[int, int, float] | None = None

    def add(self, panels: pd.Series | None, start: int, stop: int) -> None:
        """Look at rows ``start … stop - 1``, whose panels these are (None: all are of one).

        Raises
        ------
        BadCounts
            A value is missing, infinite or negative.
        """
        if panels is None:
            codes = np.zeros(stop - start, dtype=np.int64)
            levels: Sequence[Category] = (0,)
        else:
            codes, levels = levels_of(panels, self._where, start)
        step = max(1, PASS_BYTES // (4 * max(1, self._reader.n_proteins)))
        for first in range(start, stop, step):
            last = min(first + step, stop)
            values_np = self._reader.read([(first, last)])
            self._check(values_np, first)
            self._mark(values_np, codes[first - start : last - start], levels)

    def _mark(self, values_np: np.ndarray, codes: np.ndarray, levels: Sequence[Category]) -> None:
        order = np.argsort(codes, kind="stable")
        present, starts = np.unique(codes[order], return_index=True)
        seen = np.logical_or.reduceat(values_np[order] != 0, starts, axis=0)
        for code, has in zip(present.tolist(), seen, strict=True):
            level = levels[code]
            key = kind_of(level), level
            self._seen[key] = self._seen.get(key, False) | has

    def _check(self, values_np: np.ndarray, first_row: int) -> None:
        good = (values_np >= 0) & (values_np < np.inf)
        if not good.all():
            row, protein = np.argwhere(~good)[0].tolist()
            raise BadCounts(
                f"{self._where}: counts of proteins are whole numbers from 0 on; row "
                f"{first_row + row} has {values_np[row, protein]:g} for "
                f"{self._names[protein]!r}. Give the raw counts; a protein that was not measured "
                "has zeros."
            )
        if self._fraction is None:
            broken = np.argwhere(np.floor(values_np) != values_np)
            if len(broken):
                row, protein = broken[0].tolist()
                self._fraction = first_row + row, protein, float(values_np[row, protein])

    def warn_if_broken(self) -> None:
        """A ``UserWarning`` that names the first value that is not whole."""
        if self._fraction is None:
            return
        row, protein, value = self._fraction
        warnings.warn(
            f"{self._where} does not contain unnormalized count data: row {row} has {value:g} for "
            f"{self._names[protein]!r}. Are you sure this is what you want?",
            UserWarning,
            stacklevel=4,
        )

    def mask(self, panels: Sequence[Category]) -> ProteinMask | None:
        """Which proteins each panel that has cells has measured; None where that is all.

        A protein without any count in a panel was not measured there, as in scvi-tools.

        Parameters
        ----------
        panels
            Category of each code.
        """
        found = {
            str(code): tuple(self._seen[kind_of(panel), panel].tolist())
            for code, panel in enumerate(panels)
            if (kind_of(panel), panel) in self._seen
        }
        return None if all(all(seen) for seen in found.values()) else found
