"""The modalities of a MuData, and which row of each belongs to which cell.

Axis suffixes: ``n`` cells, ``k`` columns.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import pandas as pd

from scvi_dist.data.names import listed, repeated
from scvi_dist.data.spans import Range, expand
from scvi_dist.data.store import Store
from scvi_dist.errors import ConfigError, FieldNotFound, SchemaMismatch, did_you_mean

_USUAL = ("rna", "gex")


class Frames(Protocol):
    """Tables that have a row for each cell; every store is one."""

    @property
    def obs_columns(self) -> dict[str, str]: ...

    def read_obs(
        self, columns: Sequence[str], start: int = 0, stop: int | None = None
    ) -> pd.DataFrame: ...

    @property
    def obsm_keys(self) -> dict[str, int]: ...

    def obsm_columns(self, key: str) -> tuple[str, ...] | None: ...

    def read_obsm(self, key: str, ranges: Sequence[Range]) -> np.ndarray: ...


@dataclass(frozen=True, slots=True)
class Beside:
    """Tables of which each cell of the store has a row, or not."""

    frames: Frames
    rows: np.ndarray | None
    """int64 ``[n]``: row of each cell, -1 where there is none; ``None``: cells are in step."""

    @property
    def n_missing(self) -> int:
        """Cells that have no row."""
        return 0 if self.rows is None else int((self.rows < 0).sum())

    def read_obs(self, columns: Sequence[str], start: int, stop: int) -> pd.DataFrame:
        """Columns for cells ``start … stop - 1``; values that there are not are missing."""
        if self.rows is None:
            return self.frames.read_obs(columns, start, stop)
        wanted = self.rows[start:stop]
        present = np.flatnonzero(wanted >= 0)
        low, high = (int(wanted[present].min()), int(wanted.max()) + 1) if len(present) else (0, 0)
        table = self.frames.read_obs(columns, low, high).take(wanted[present] - low)
        if len(present) < len(wanted):
            flags = [c for c in table if pd.api.types.is_bool_dtype(table[c].dtype)]
            table = table.astype(dict.fromkeys(flags, "boolean"))
            table = table.set_axis(present).reindex(range(len(wanted)))
            text = [c for c in table if table[c].dtype == object]
            return table.assign(**{c: table[c].where(table[c].notna(), None) for c in text})
        return table.reset_index(drop=True)

    def gather(self, ranges: np.ndarray, read: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
        """``read(rows)`` of the cells' rows; zeros for cells that have none."""
        cells = expand(ranges)
        if self.rows is None:
            return read(cells)
        rows = self.rows[cells]
        present = rows >= 0
        values_nk = read(rows[present])
        if present.all():
            return values_nk
        padded = np.zeros((len(rows), values_nk.shape[1]), dtype=values_nk.dtype)
        padded[present] = values_nk
        return padded


@dataclass(frozen=True)
class Modality:
    """A modality beside the one whose counts the store has."""

    name: str
    layers: tuple[str | None, ...]
    """What it has; ``None`` is X."""
    open: Callable[[str | None], Store]
    """Its store at a layer."""
    rows: np.ndarray | None
    """int64 ``[n]``: row of each of the store's cells, -1 for none; ``None``: in step."""
    _open: dict[str | None, Store] = field(default_factory=dict)

    def store(self, layer: str | None) -> Store:
        """Opened once for each layer."""
        if layer not in self._open:
            self._open[layer] = self.open(layer)
        return self._open[layer]

    @property
    def main(self) -> Store:
        """Its store at X, or at its first layer."""
        return self.store(self.layers[0])

    @property
    def tables(self) -> dict[str, str | None]:
        """Key of obsm -> layer: the name alone is X, with a colon a layer."""
        return {
            self.name if layer is None else f"{self.name}:{layer}": layer for layer in self.layers
        }

    def close(self) -> None:
        """Close what was opened."""
        for store in self._open.values():
            store.close()


def choose_modality(names: Sequence[str], wanted: str | None, where: str) -> str:
    """The modality whose counts are read. Raises :class:`ConfigError` where it is not clear."""
    if wanted is not None:
        if wanted not in names:
            raise FieldNotFound(
                f"{where} has no modality {wanted!r}; {did_you_mean(wanted, names)}"
            )
        return wanted
    usual = [name for name in _USUAL if name in names]
    if not usual and len(names) != 1:
        raise ConfigError(
            f"{where} has the modalities {listed(names) or '-'}; say which one holds the counts "
            "(modality=...)."
        )
    return (usual or list(names))[0]


def rows_by_name(cells: np.ndarray, others: np.ndarray, where: str) -> np.ndarray | None:
    """int64: place of each cell among others of that name, -1 for none; ``None``: all in step.

    Raises :class:`SchemaMismatch` where a name that has to be found occurs twice.
    """
    if np.array_equal(cells, others):
        return None
    for names in (cells, others):
        if len(repeated(names)):
            raise SchemaMismatch(
                f"{where}: modalities hold different cells and can only be brought in step by "
                f"name, but names in obs occur more than once: {listed(repeated(names))}. Make "
                "them unique (mdata.obs_names_make_unique()) and write the data again."
            )
    return pd.Index(others, dtype=object).get_indexer(pd.Index(cells, dtype=object))


def in_step(rows: np.ndarray, n: int) -> np.ndarray | None:
    """``None`` if these are rows ``0 … n - 1``, which is the usual case; else the rows."""
    return None if len(rows) == n and np.array_equal(rows, np.arange(n)) else rows
