"""Products with hidden units of which many are zero, as a ReLU leaves them; compiled, for CPUs.

A dense product multiplies by each zero. Here sums stay in registers while a row's active units are
gone through, one row of a tile of the other factor for each: half the units take little more than
half the time.

Axis suffixes: ``n`` rows, ``k`` columns that are summed over, ``g`` genes.
"""

from typing import Any, NamedTuple

import numpy as np

from scvi_dist.kernels.compiled import compiled, part
from scvi_dist.kernels.lane_code import SUM_BYTES, VECTOR_BYTES
from scvi_dist.kernels.row_lanes import add_dots, add_entries, copy_row, fetch_row
from scvi_dist.kernels.workspace import Workspace

STRETCH = 64
"""Columns whose part of the tile is in the cache together."""
_VECTORS = 7
"""Of sums in registers; with fewer the processor waits for each."""
TILE_BYTES = _VECTORS * VECTOR_BYTES
"""A row of a tile; 64 of them fit into 32 KiB with room for what streams past."""


_add, _add_part = add_entries(_VECTORS), add_entries(_VECTORS, is_part=True)
_dots, _dots_part = add_dots(_VECTORS), add_dots(_VECTORS, is_part=True)
_copy, _fetch = copy_row(_VECTORS), fetch_row(_VECTORS)


class Active(NamedTuple):
    """The entries of a matrix ``[n, k]`` that are not zero."""

    starts: np.ndarray
    """int64 ``[n, s + 1]``: where the entries of each stretch of columns begin, and end."""
    entries: np.ndarray
    """Unsigned integers ``[entries, 2]``, as wide as a value: where in a tile the row of the
    entry's column begins, in bytes; the bits of the value."""


def n_stretches(n_columns: int) -> int:
    """Stretches that a row has."""
    return -(-n_columns // STRETCH)


@part()
def _find(line: np.ndarray, count: Any, entries: np.ndarray) -> Any:
    """Add the entries of a stretch, of which the bits are given; the number of entries then."""
    for k in range(line.size):
        entries[count, 0] = k * TILE_BYTES
        entries[count, 1] = line[k]
        # Without a branch: what is zero is written over. Its sign does not count.
        count += np.uintp(line[k] << 1 != 0)
    return count


@compiled()
def find_active(
    hidden_nh: np.ndarray,
    rows: tuple[int, int],
    units: tuple[int, int],
    by_unit: bool,
    active: Active,
) -> None:
    """Fill ``active`` with a part of the hidden units, or its transpose.

    Parameters
    ----------
    hidden_nh
        The bits of the units: unsigned integers.
    rows, units
        First and one after the last of the part.
    by_unit
        Whether the matrix has a row for each unit, and not for each row of these.
    active
        With room for all entries, and one more.
    """
    outer, inner = (units, rows) if by_unit else (rows, units)
    # An index that may be negative takes longer.
    count = np.uintp(0)
    for i in range(outer[0], outer[1]):
        for s in range(active.starts.shape[1] - 1):
            active.starts[i - outer[0], s] = count
            first = inner[0] + s * STRETCH
            last = min(first + STRETCH, inner[1])
            if by_unit:
                count = _find(hidden_nh[first:last, i], count, active.entries)
            else:
                count = _find(hidden_nh[i, first:last], count, active.entries)
        active.starts[i - outer[0], -1] = count


@part()
def _fill(matrix_kg: np.ndarray, first: int, a: int, w: int, tile: np.ndarray) -> None:
    """Copy a stretch of rows and of ``w`` columns to the tile."""
    n_genes, width = matrix_kg.shape[1], tile.shape[1]
    for k in range(min(STRETCH, matrix_kg.shape[0] - first)):
        if w == width:
            _copy(matrix_kg, (first + k) * n_genes + a, tile, k * width)
        else:
            tile[k, :w] = matrix_kg[first + k, a : a + w]


@part()
def _after(matrix_kg: np.ndarray, s: int, a: int, ends: tuple[int, int]) -> tuple[int, int]:
    """Where the tile after this one begins, and its rows: they come to the cache meanwhile.

    ``ends`` are the columns of a tile, and the last column of all plus one.
    """
    (n_columns, n_genes), (width, stop) = matrix_kg.shape, ends
    first, begin = (s + 1) * STRETCH, a
    if first >= n_columns:
        first, begin = 0, a + width
    n_rows = min(STRETCH, n_columns - first) if begin < stop else 0
    return first * n_genes + begin, n_rows


@compiled()
def multiply_active(
    active: Active,
    matrix_kg: np.ndarray,
    genes: tuple[int, int],
    bias_g: np.ndarray,
    tile: np.ndarray,
    out_ng: np.ndarray,
) -> None:
    """Fill some columns of ``out_ng`` with ``active @ matrix_kg + bias_g``.

    Parameters
    ----------
    genes
        First column and one after the last.
    bias_g
        Where it is empty, the product is added to ``out_ng``.
    tile
        Room: ``[STRETCH, TILE_BYTES // itemsize]``.
    """
    (starts, entries), (n, n_genes) = active, out_ng.shape
    n_spans, width = starts.shape[1] - 1, tile.shape[1]
    for a in range(genes[0], genes[1], width):
        w = min(width, genes[1] - a)
        for s in range(n_spans):
            _fill(matrix_kg, s * STRETCH, a, w, tile)
            next_at, n_next = _after(matrix_kg, s, a, (width, genes[1]))
            fetched = 0
            for row in range(n):
                while fetched * n < (row + 1) * n_next:
                    _fetch(matrix_kg, next_at + fetched * n_genes)
                    fetched += 1
                start, stop, at = starts[row, s], starts[row, s + 1], row * n_genes + a
                ahead = at if row + 1 == n else at + n_genes
                if w < width:
                    if s == 0 and bias_g.size > 0:
                        _add_part(out_ng, at, ahead, bias_g, a, tile, entries, start, stop, w)
                    else:
                        _add_part(out_ng, at, ahead, out_ng, at, tile, entries, start, stop, w)
                elif s == 0 and bias_g.size > 0:
                    _add(out_ng, at, ahead, bias_g, a, tile, entries, start, stop, w)
                else:
                    _add(out_ng, at, ahead, out_ng, at, tile, entries, start, stop, w)


@compiled()
def multiply_slopes(
    active: Active,
    matrix_kg: np.ndarray,
    slope_ng: np.ndarray,
    room: tuple[np.ndarray, np.ndarray],
    first: int,
    is_new: bool,
    out_nh: np.ndarray,
) -> None:
    """Add ``slope_ng @ matrix_kg.T`` to ``out_nh`` where units are active, and only there.

    Parameters
    ----------
    room
        The tile of :func:`multiply_active`, and sums ``[entries, SUM_BYTES // itemsize]``.
    first
        Column of ``out_nh`` that the first row of the matrix is for.
    is_new
        Whether ``out_nh`` is nothing yet, and becomes zero elsewhere.
    """
    (starts, entries), (tile, sums), (n, n_genes) = active, room, slope_ng.shape
    n_spans, width = starts.shape[1] - 1, tile.shape[1]
    sums[: starts[n - 1, n_spans]] = 0.0
    for a in range(0, n_genes, width):
        w = min(width, n_genes - a)
        for s in range(n_spans):
            if w < width:
                tile[:] = 0.0
            _fill(matrix_kg, s * STRETCH, a, w, tile)
            next_at, n_next = _after(matrix_kg, s, a, (width, n_genes))
            fetched = 0
            for row in range(n):
                while fetched * n < (row + 1) * n_next:
                    _fetch(matrix_kg, next_at + fetched * n_genes)
                    fetched += 1
                start, stop, at = starts[row, s], starts[row, s + 1], row * n_genes + a
                ahead = at if row + 1 == n else at + n_genes
                if w < width:
                    _dots_part(sums, slope_ng, at, ahead, tile, entries, start, stop, w)
                else:
                    _dots(sums, slope_ng, at, ahead, tile, entries, start, stop, w)
    for row in range(n):
        if is_new:
            out_nh[row] = 0.0
        for s in range(n_spans):
            for i in range(starts[row, s], starts[row, s + 1]):
                unit = first + s * STRETCH + entries[i, 0] // TILE_BYTES
                out_nh[row, unit] += sums[i].sum()


class ActiveProducts:
    """Products of one thread, in room that it keeps.

    Parameters
    ----------
    space
        Whose arrays these are.
    name
        What they are called there, after what they are for.
    hidden_nh
        Contiguous.
    """

    def __init__(self, space: Workspace, name: str, hidden_nh: np.ndarray) -> None:
        self._space, self._name, self._hidden_nh = space, name, hidden_nh
        self._bits = np.dtype(f"u{hidden_nh.itemsize}")
        width = TILE_BYTES // hidden_nh.itemsize
        self._tile = space.array(f"tile {name}", (STRETCH, width), hidden_nh.dtype)
        self._found: dict[bool, tuple[Any, Active]] = {}

    def logits(
        self,
        rows: tuple[int, int],
        units: tuple[int, int],
        weight_hg: np.ndarray,
        bias_g: np.ndarray,
        out_rg: np.ndarray,
    ) -> None:
        """Fill ``out_rg`` with the units of these rows times the weights, plus the bias."""
        active = self._active(rows, units, by_unit=False)
        genes = (0, out_rg.shape[1])
        multiply_active(active, weight_hg, genes, bias_g, self._tile, out_rg)

    def add_weights(
        self,
        rows: tuple[int, int],
        units: tuple[int, int],
        slope_rg: np.ndarray,
        genes: tuple[int, int],
        gradient_hg: np.ndarray,
        is_new: bool,
    ) -> None:
        """Add the transposed units of these rows times their slopes, for some genes.

        ``is_new`` says that nothing is there to be added to.
        """
        active = self._active(rows, units, by_unit=True)
        real = self._hidden_nh.dtype
        before_g = np.zeros(gradient_hg.shape[1] if is_new else 0, real)
        multiply_active(active, slope_rg, genes, before_g, self._tile, gradient_hg)

    def slopes(
        self,
        rows: tuple[int, int],
        units: tuple[int, int],
        weight_hg: np.ndarray,
        slope_rg: np.ndarray,
        slope_rh: np.ndarray,
        is_new: bool,
    ) -> None:
        """Add the slopes of these rows times the weights, for units that are not zero.

        ``slope_rh`` is of all units of these rows. ``is_new`` says that nothing is there to be
        added to: other units get zero.
        """
        active, real = self._active(rows, units, by_unit=False), self._hidden_nh.dtype
        room = active.entries.shape[0], SUM_BYTES // real.itemsize
        sums = self._space.array(f"sums {self._name}", room, real)
        rest = (self._tile, sums), units[0], is_new, slope_rh
        multiply_slopes(active, weight_hg, slope_rg, *rest)

    def _active(self, rows: tuple[int, int], units: tuple[int, int], by_unit: bool) -> Active:
        """The entries of some units of these rows, which are not looked for twice in turn."""
        asked, found = (rows, units), self._found.get(by_unit)
        if found is not None and found[0] == asked:
            return found[1]
        outer, inner = (units, rows) if by_unit else (rows, units)
        n, n_columns = outer[1] - outer[0], inner[1] - inner[0]
        name = f"{'units' if by_unit else 'rows'} {self._name}"
        # One more: what comes after the last is written before it is known to be zero.
        room = n * n_columns + 1, 2
        active = Active(
            self._space.array(f"starts of {name}", (n, n_stretches(n_columns) + 1), np.int64),
            self._space.array(f"entries of {name}", room, self._bits),
        )
        find_active(self._hidden_nh.view(self._bits), rows, units, by_unit, active)
        self._found[by_unit] = asked, active
        return active
