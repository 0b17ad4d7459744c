"""Rows of a sparse TileDB matrix, straight from the files of its fragments.

TileDB finds the entries of scattered rows by decoding whole tiles and comparing every coordinate
with every range. Here a tile's rows are decoded once and kept as runs, and of its columns and
values only those blocks (64 KiB) that hold an entry of a wanted row; entries go from there to
their place in the result. What :mod:`tiledb_metadata` does not accept is left to TileDB.
"""

import os
import struct
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from threading import Lock

import numpy as np

from scvi_dist.batch import CsrRows
from scvi_dist.data.big_arrays import new_array
from scvi_dist.data.on_disk.chunks import ChunkDamaged
from scvi_dist.data.soma.kernels import (
    bits,
    close_gaps,
    count_runs,
    place_runs,
    runs_of_column,
    slots_of_runs,
)
from scvi_dist.data.soma.tiledb_blocks import BLOCK_BYTES, decode_tile
from scvi_dist.data.soma.tiledb_metadata import Fragment, TileFilters

_KEPT_BYTES = 32 << 20


class TileDamaged(Exception):
    """A tile cannot be decoded, or says what its metadata exclude."""

    def __init__(self, first: int, last: int, reason: str) -> None:
        super().__init__(reason)
        self.first, self.last = first, last
        """Row identifiers that the tile covers."""


@dataclass(frozen=True, slots=True)
class Runs:
    """The rows of a tile's entries, run by run."""

    rows: np.ndarray
    """int64 ``[r]``."""
    starts: np.ndarray
    """int32 ``[r]``: first entry of each."""

    @property
    def nbytes(self) -> int:
        return self.rows.nbytes + self.starts.nbytes


@dataclass(frozen=True, slots=True)
class ColumnMap:
    """Which columns of the array are which genes."""

    lookup: np.ndarray
    """int32: gene of each column of the array; -1 for columns that are not wanted."""
    n_genes: int

    is_ascending: bool
    """Whether genes are in the order of the columns."""

    @property
    def drops(self) -> bool:
        """Whether some columns are left out."""
        return len(self.lookup) != self.n_genes


class TileReader:
    """Rows of the fragments of one array; safe in threads. Holds no open files."""

    def __init__(
        self, fragments: Sequence[Fragment], filters: dict[str, TileFilters], dtype: np.dtype
    ) -> None:
        self._fragments = fragments
        self._filters = filters
        self._dtype = dtype
        self._lock = Lock()
        self._kept: OrderedDict[tuple[int, int], Runs] = OrderedDict()
        self._kept_bytes = 0

    @property
    def n_stored(self) -> int:
        """Entries of all fragments."""
        return sum(int(fragment.n_entries.sum()) for fragment in self._fragments)

    @property
    def block_entries(self) -> int:
        """Entries that have to be decoded together."""
        return BLOCK_BYTES // 8

    def read(self, wanted: np.ndarray, columns: ColumnMap) -> CsrRows:
        """Rows with the given identifiers (int64, ascending, unique); genes may be unsorted.

        Raises :class:`TileDamaged`.
        """
        tiles = list(self._tiles_with(wanted, columns))
        counts = np.zeros(len(wanted), dtype=np.int64)
        found: list[tuple[int, int, Runs, np.ndarray]] = []
        with ExitStack() as stack:
            files = _Files(self._fragments, stack)
            for f, t in tiles:
                runs = self._runs(files, f, t)
                slots = np.empty(len(runs.rows), dtype=np.int64)
                slots_of_runs(runs.rows, wanted, slots)
                if count_runs(slots, runs.starts, self._n_entries(f, t), counts):
                    found.append((f, t, runs, slots))
            starts = np.zeros(len(wanted) + 1, dtype=np.int64)
            np.cumsum(counts, out=starts[1:])
            indices = new_array(int(starts[-1]), np.int32)
            data = new_array(int(starts[-1]), self._dtype)
            cursor = starts[:-1].copy()
            for f, t, runs, slots in found:
                self._place(files, (f, t), runs, slots, columns, (cursor, indices, bits(data)))
        return packed(starts, cursor, indices, data, columns.n_genes)

    def _n_entries(self, f: int, t: int) -> int:
        return int(self._fragments[f].n_entries[t])

    def _tiles_with(self, wanted: np.ndarray, columns: ColumnMap) -> Iterator[tuple[int, int]]:
        """Fragment and tile of those that may hold a wanted row and a wanted column."""
        used = np.flatnonzero(columns.lookup >= 0) if columns.drops else None
        for f, fragment in enumerate(self._fragments):
            low, high, left, right = fragment.bounds.T
            hit = np.searchsorted(wanted, low) < np.searchsorted(wanted, high, side="right")
            if used is not None:
                hit &= np.searchsorted(used, left) < np.searchsorted(used, right, side="right")
            for t in np.flatnonzero(hit).tolist():
                yield f, t

    def _runs(self, files: "_Files", f: int, t: int) -> Runs:
        with self._lock:
            kept = self._kept.get((f, t))
            if kept is not None:
                self._kept.move_to_end((f, t))
                return kept
        n = self._n_entries(f, t)
        column = self._decoded(files, "d0", f, t, np.dtype(np.int64), None)
        rows, starts = np.empty(n, dtype=np.int64), np.empty(n, dtype=np.int32)
        n_runs = runs_of_column(column, rows, starts)
        runs = Runs(rows[:n_runs].copy(), starts[:n_runs].copy())
        low, high = self._fragments[f].bounds[t, :2].tolist()
        if int(runs.rows.min()) < low or int(runs.rows.max()) > high:
            raise TileDamaged(low, high, "its rows are not those that its metadata tell")
        self._keep((f, t), runs)
        return runs

    def _keep(self, key: tuple[int, int], runs: Runs) -> None:
        with self._lock:
            if key not in self._kept:
                self._kept[key] = runs
                self._kept_bytes += runs.nbytes
            while self._kept_bytes > _KEPT_BYTES:
                self._kept_bytes -= self._kept.popitem(last=False)[1].nbytes

    def _place(
        self,
        files: "_Files",
        tile: tuple[int, int],
        runs: Runs,
        slots: np.ndarray,
        columns: ColumnMap,
        out: tuple[np.ndarray, np.ndarray, np.ndarray],
    ) -> None:
        """Copy the wanted entries of one tile to where their rows are."""
        wanted = slots, runs.starts
        names = self._decoded(files, "d1", *tile, np.dtype(np.int64), wanted)
        values = self._decoded(files, "a0", *tile, self._dtype, wanted)
        bad = place_runs(*wanted, names, bits(values), columns.lookup, *out)
        if bad >= 0:
            low, high = self._fragments[tile[0]].bounds[tile[1], :2].tolist()
            raise TileDamaged(low, high, f"it has a value for column {names[bad]}")

    def _decoded(
        self,
        files: "_Files",
        name: str,
        f: int,
        t: int,
        dtype: np.dtype,
        wanted: tuple[np.ndarray, np.ndarray] | None,
    ) -> np.ndarray:
        """A tile of one file; with ``wanted`` runs only the blocks that they touch are valid."""
        n = self._n_entries(f, t)
        values = np.empty(n, dtype=dtype)
        try:
            raw = files.tile(name, f, t)
            decode_tile(raw, values.view(np.uint8), self._filters[name], dtype.itemsize, n, wanted)
        except (ChunkDamaged, struct.error, ValueError) as error:
            low, high = self._fragments[f].bounds[t, :2].tolist()
            raise TileDamaged(low, high, f"{name}.tdb: {error}") from error
        return values


class _Files:
    """Files of fragments, opened when needed and closed with the stack."""

    def __init__(self, fragments: Sequence[Fragment], stack: ExitStack) -> None:
        self._fragments, self._stack = fragments, stack
        self._handles: dict[tuple[str, int], int] = {}

    def tile(self, name: str, f: int, t: int) -> memoryview:
        """The stored bytes of a tile."""
        handle = self._handles.get((name, f))
        if handle is None:
            handle = os.open(os.path.join(self._fragments[f].folder, f"{name}.tdb"), os.O_RDONLY)
            self._stack.callback(os.close, handle)
            self._handles[name, f] = handle
        start, stop = self._fragments[f].offsets[name][t : t + 2].tolist()
        return memoryview(os.pread(handle, stop - start, start))


def packed(
    starts: np.ndarray,
    stops: np.ndarray,
    indices: np.ndarray,
    data: np.ndarray,
    n_genes: int,
) -> CsrRows:
    """Rows without the room that was left for columns that are not wanted.

    Parameters
    ----------
    starts, stops
        int64 ``[n + 1]`` and ``[n]``: the room of each row, and where its entries end.
    """
    if np.array_equal(starts[1:], stops):
        return CsrRows(starts, indices, data, n_genes)
    n = close_gaps(starts[:-1], stops, indices, bits(data))
    indptr = np.zeros_like(starts)
    np.cumsum(stops - starts[:-1], out=indptr[1:])
    return CsrRows(indptr, indices[:n].copy(), data[:n].copy(), n_genes)
