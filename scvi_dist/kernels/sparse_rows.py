"""Compiled loops that multiply sparse rows with dense ones.

Axis suffixes: ``n`` cells, ``g`` columns of the sparse matrix, ``h`` hidden units.
"""

import numpy as np

from scvi_dist.kernels.compiled import compiled
from scvi_dist.kernels.lane_code import VECTOR_BYTES
from scvi_dist.kernels.math import log1p
from scvi_dist.kernels.row_lanes import add_rows


@compiled()
def log1p_entries(x: np.ndarray, y: np.ndarray) -> None:
    """Fill ``y`` with ``log(1 + x)``."""
    for i in range(y.size):
        y[i] = log1p(x[i])


_VECTORS = 8
"""Of sums in registers: a whole row of the usual 128 float32 units."""
_add_many, _add_one = add_rows(_VECTORS), add_rows(1)


@compiled()
def multiply_rows(
    start: int,
    stop: int,
    indptr: np.ndarray,
    indices: np.ndarray,
    values: np.ndarray,
    matrix_kh: np.ndarray,
    out_nh: np.ndarray,
) -> None:
    """Fill the rows ``start … stop`` of ``out_nh`` with sparse rows times ``matrix_kh``.

    Both are contiguous, and of the type of the values.
    """
    h = matrix_kh.shape[1]
    lanes = VECTOR_BYTES // matrix_kh.itemsize
    many, ones = h - h % (_VECTORS * lanes), h - h % lanes
    zeros = np.zeros(_VECTORS * lanes, matrix_kh.dtype)
    for n in range(start, stop):
        first, end, at = indptr[n], indptr[n + 1], n * h
        for a in range(0, many, _VECTORS * lanes):
            _add_many(out_nh, at + a, zeros, 0, matrix_kh, a, h, indices, values, first, end)
        for a in range(many, ones, lanes):
            _add_one(out_nh, at + a, zeros, 0, matrix_kh, a, h, indices, values, first, end)
        for a in range(ones, h):
            total = zeros[0]
            for entry in range(first, end):
                total += values[entry] * matrix_kh[indices[entry], a]
            out_nh[n, a] = total


@compiled()
def transpose(
    indptr: np.ndarray,
    indices: np.ndarray,
    values: np.ndarray,
    starts: np.ndarray,
    rows: np.ndarray,
    sorted_values: np.ndarray,
) -> None:
    """Sort entries by column, those of a column in the order of the rows.

    ``starts`` (int64, one more than columns), ``rows`` and ``sorted_values`` become what
    ``indptr``, ``indices`` and ``values`` are of the transposed matrix.
    """
    starts[:] = 0
    for entry in range(indptr[0], indptr[-1]):
        starts[indices[entry] + 1] += 1
    # While entries are placed, each column's end is where its next entry goes.
    total = 0
    for k in range(1, starts.size):
        count = starts[k]
        starts[k] = total
        total += count
    for n in range(indptr.size - 1):
        for entry in range(indptr[n], indptr[n + 1]):
            column = indices[entry] + 1
            place = starts[column]
            starts[column] = place + 1
            rows[place] = n
            sorted_values[place] = values[entry]


@compiled()
def row_sums(indptr: np.ndarray, data: np.ndarray, sums: np.ndarray) -> None:
    """Fill ``sums`` (float64) with the sum of each row."""
    for n in range(sums.size):
        total = 0.0
        for entry in range(indptr[n], indptr[n + 1]):
            total += data[entry]
        sums[n] = total
