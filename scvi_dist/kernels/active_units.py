"""Products with hidden units of which many are zero, as a ReLU leaves them; compiled, for CPUs.

A dense product multiplies by each zero. Here sums stay in registers while a row's active units are
gone through, one row of a tile of the other factor for each: half the units take little more than
half the time.

Axis suffixes: ``n`` rows, ``k`` columns that are summed over, ``g`` genes.
"""

from typing import NamedTuple

import numpy as np

from scvi_dist.kernels.compiled import compiled
from scvi_dist.kernels.row_lanes import VECTOR_BYTES, add_rows
from scvi_dist.kernels.workspace import Workspace

STRETCH = 64
"""Columns whose part of the tile is in the cache together."""
_VECTORS = 6
"""Of sums in registers; with fewer the processor waits for each."""
TILE_BYTES = _VECTORS * VECTOR_BYTES
"""A row of a tile; 64 of them fit into 32 KiB with room for what streams past."""


_add_rows = add_rows(_VECTORS)


class Active(NamedTuple):
    """The entries of a matrix ``[n, k]`` that are not zero."""

    starts: np.ndarray
    """int64 ``[n, s + 1]``: where the entries of each stretch of columns begin, and end."""
    columns: np.ndarray
    """int32: column of each entry, counted from the first of its stretch."""
    values: np.ndarray


def n_stretches(n_columns: int) -> int:
    """Stretches that a row has."""
    return -(-n_columns // STRETCH)


@compiled()
def find_active(
    hidden_nh: np.ndarray,
    rows: tuple[int, int],
    units: tuple[int, int],
    by_unit: bool,
    active: Active,
) -> int:
    """Fill ``active`` with a part of the hidden units, or its transpose; the number of entries.

    Parameters
    ----------
    rows, units
        First and one after the last of the part.
    by_unit
        Whether the matrix has a row for each unit, and not for each row of these.
    active
        With room for all entries.
    """
    outer, inner = (units, rows) if by_unit else (rows, units)
    count = 0
    for i in range(outer[0], outer[1]):
        for s in range(active.starts.shape[1] - 1):
            active.starts[i - outer[0], s] = count
            first = inner[0] + s * STRETCH
            for j in range(first, min(first + STRETCH, inner[1])):
                value = hidden_nh[j, i] if by_unit else hidden_nh[i, j]
                active.columns[count] = j - first
                active.values[count] = value
                # Without a branch: what is zero is written over. A NaN is no zero.
                count += value != 0.0
        active.starts[i - outer[0], -1] = count
    return count


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
        Room: ``[STRETCH + 1, TILE_BYTES // itemsize]``.
    """
    n, n_genes = out_ng.shape
    starts, columns, values = active.starts, active.columns, active.values
    width, spare = tile.shape[1], tile[STRETCH]
    for a in range(genes[0], genes[1], width):
        w = min(width, genes[1] - a)
        for s in range(starts.shape[1] - 1):
            first = s * STRETCH
            for k in range(min(STRETCH, matrix_kg.shape[0] - first)):
                tile[k, :w] = matrix_kg[first + k, a : a + w]
            is_first = s == 0 and bias_g.size > 0
            for row in range(n):
                start, stop, at = starts[row, s], starts[row, s + 1], row * n_genes + a
                if w < width:
                    spare[:w] = bias_g[a : a + w] if is_first else out_ng[row, a : a + w]
                    _add_rows(spare, 0, spare, 0, tile, 0, width, columns, values, start, stop)
                    out_ng[row, a : a + w] = spare[:w]
                elif is_first:
                    _add_rows(out_ng, at, bias_g, a, tile, 0, width, columns, values, start, stop)
                else:
                    _add_rows(out_ng, at, out_ng, at, tile, 0, width, columns, values, start, stop)


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
        real = hidden_nh.dtype
        room = space.array(f"tile {name}", ((STRETCH + 1) * TILE_BYTES + TILE_BYTES,), np.uint8)
        # A vector that lies in two lines of the cache takes twice as long.
        first = -room.ctypes.data % VECTOR_BYTES
        room = room[first : first + (STRETCH + 1) * TILE_BYTES]
        self._tile = room.view(real).reshape(STRETCH + 1, -1)

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

    def _active(self, rows: tuple[int, int], units: tuple[int, int], by_unit: bool) -> Active:
        outer, inner = (units, rows) if by_unit else (rows, units)
        n, n_columns = outer[1] - outer[0], inner[1] - inner[0]
        # One more: what comes after the last is written before it is known to be zero.
        room, real = (n * n_columns + 1,), self._hidden_nh.dtype
        active = Active(
            self._space.array(f"starts {self._name}", (n, n_stretches(n_columns) + 1), np.int64),
            self._space.array(f"columns {self._name}", room, np.int32),
            self._space.array(f"values {self._name}", room, real),
        )
        find_active(self._hidden_nh, rows, units, by_unit, active)
        return active
