"""Which cells, in which order, and the number by which each cell gets its noise."""

from collections.abc import Sequence
from hashlib import blake2b
from typing import Any

import numpy as np

from scvi_dist.data.store import Store
from scvi_dist.dataloaders.rows import splitmix64
from scvi_dist.errors import ConfigError

_TAG = 0xCE115
_STRIDE = np.uint64(0xD1342543DE82EF95)


class Selection:
    """Cells of a store in the caller's order, repeats included.

    Parameters
    ----------
    n_obs
        Cells of the store.
    indices
        Rows in any order, negative ones counted from the end, or a mask ``[n_obs]``;
        ``None`` is every row, without any memory.

    Raises
    ------
    ConfigError
        Nothing is selected, or a mask has another length.
    IndexError
        A row does not exist.
    """

    def __init__(self, n_obs: int, indices: Sequence[int] | np.ndarray | None = None) -> None:
        self.n_obs = n_obs
        self._rows = None if indices is None else _checked_rows(n_obs, indices)
        self._occurrence = None if self._rows is None else _occurrences(self._rows)
        if self.n_cells == 0:
            raise ConfigError("no cells are selected: the store or the list of indices is empty.")

    @property
    def n_cells(self) -> int:
        """Cells selected, each as often as it is listed."""
        return self.n_obs if self._rows is None else len(self._rows)

    def rows(self, start: int = 0, stop: int | None = None) -> np.ndarray:
        """int64: rows of the store at positions ``start … stop - 1`` of the caller's order."""
        stop = self.n_cells if stop is None else stop
        if self._rows is None:
            return np.arange(start, stop, dtype=np.int64)
        return self._rows[start:stop]

    def at(self, positions: np.ndarray) -> np.ndarray:
        """int64: rows of the store at any positions."""
        return positions if self._rows is None else self._rows[positions]

    def subset(self, positions: np.ndarray) -> "Selection":
        """The cells at some positions, which keep their keys."""
        part = Selection(self.n_obs, self.at(positions))
        part._occurrence = None if self._occurrence is None else self._occurrence[positions]
        return part

    def reading_order(self, start: int, stop: int) -> np.ndarray | None:
        """Positions ``start … stop - 1`` sorted by their rows; None where they are already."""
        rows = self.rows(start, stop)
        if self._rows is None or bool((rows[1:] >= rows[:-1]).all()):
            return None
        return np.argsort(rows, kind="stable") + start

    def keys(self, positions: np.ndarray, seed: int) -> np.ndarray:
        """uint64: one number for each position, which its noise follows from.

        It depends on the row and on how often the row was listed before, not on the other cells:
        a cell has the same noise in every selection, and repeats are independent.
        """
        words = np.random.SeedSequence([seed, _TAG]).generate_state(1, np.uint64)
        keys = splitmix64(self.at(positions).astype(np.uint64) + words[0])
        if self._occurrence is not None:
            repeat = self._occurrence[positions].astype(np.uint64)
            keys = np.where(repeat == 0, keys, splitmix64(keys + repeat * _STRIDE))
        return keys

    def obs_names(self, store: Store, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Names of the cells at positions ``start … stop - 1``, object array of str."""
        rows = self.rows(start, stop)
        first, last = int(rows.min()), int(rows.max())
        return store.obs_names(first, last + 1)[rows - first]

    def digest(self) -> str:
        """32 hex digits, equal for equal selections."""
        content = b"all" if self._rows is None else self._rows.tobytes()
        return blake2b(str(self.n_obs).encode() + content, digest_size=16).hexdigest()


def _checked_rows(n_obs: int, indices: Any) -> np.ndarray:
    given = np.asarray(indices)
    if given.dtype == bool:
        if given.shape != (n_obs,):
            raise ConfigError(
                f"a mask of cells has one entry a cell: expected {n_obs}, seen {given.shape}."
            )
        return np.flatnonzero(given).astype(np.int64)
    if given.ndim != 1 or (len(given) and given.dtype.kind not in "iu"):
        raise ConfigError(
            "indices are row numbers in one dimension, or a mask; "
            f"seen an array of {given.dtype} with {given.ndim} dimensions."
        )
    rows = given.astype(np.int64)
    rows[rows < 0] += n_obs
    wrong = np.flatnonzero((rows < 0) | (rows >= n_obs))
    if len(wrong):
        raise IndexError(
            f"index {given[wrong[0]]} (item {wrong[0]}) is not a row of {n_obs}; "
            f"{len(wrong)} of {len(rows)} indices are not."
        )
    return rows


def _occurrences(rows: np.ndarray) -> np.ndarray | None:
    """How often the row of each position was listed before; None where no row is twice."""
    order = np.argsort(rows, kind="stable")
    is_first = np.ones(len(rows), dtype=bool)
    is_first[1:] = rows[order][1:] != rows[order][:-1]
    if is_first.all():
        return None
    place = np.arange(len(rows))
    occurrence = np.empty(len(rows), dtype=np.int64)
    occurrence[order] = place - np.maximum.accumulate(np.where(is_first, place, 0))
    return occurrence
