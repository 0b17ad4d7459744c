"""Compiled loops that multiply sparse rows with dense ones.

Axis suffixes: ``n`` cells, ``g`` columns of the sparse matrix, ``h`` hidden units.
"""

from typing import Any

import numpy as np

from scvi_dist.kernels.compiled import compiled, part
from scvi_dist.kernels.lane_code import VECTOR_BYTES
from scvi_dist.kernels.math import log, log1p
from scvi_dist.kernels.row_lanes import add_rows


@compiled()
def log1p_entries(x: np.ndarray, y: np.ndarray) -> None:
    """Fill ``y`` with ``log(1 + x)``."""
    for i in range(y.size):
        y[i] = log1p(x[i])


_VECTORS = 8
"""Of sums in registers: a whole row of the usual 128 float32 units."""
_add_many, _add_one = add_rows(_VECTORS), add_rows(1)

MOST_BYTES = 4 * 1024 * 1024
"""Of a dense matrix whose rows are taken in any order. Of a larger one ..."""
BLOCK_BYTES = 256 * 1024
"""... these are multiplied before others are, and stay in the cache meanwhile."""
_COLUMNS = 512
"""Whose entries are placed at once: the places are in the cache."""


@part()
def row_widths(matrix_kh: np.ndarray) -> tuple[int, int, int]:
    """Lanes of a vector, and where in a row the many vectors and the single ones end.

    Asked once for all rows: to divide takes as long as to multiply some of them.
    """
    h, lanes = matrix_kh.shape[1], VECTOR_BYTES // matrix_kh.itemsize
    return lanes, h - h % (_VECTORS * lanes), h - h % lanes


@part(inlined=True)
def add_row_products(
    out: np.ndarray,
    at: int,
    before: np.ndarray,
    before_at: int,
    matrix_kh: np.ndarray,
    columns: np.ndarray,
    values: np.ndarray,
    first: int,
    end: int,
    widths: tuple[int, int, int],
) -> None:
    """Fill a row of ``out`` with one of ``before`` plus a sparse row times ``matrix_kh``.

    Parameters
    ----------
    at, before_at
        Elements that the rows begin with.
    columns, values, first, end
        The sparse row is the entries from the first on, to the one before the end.
    widths
        See :func:`row_widths`.
    """
    h, (lanes, many, ones) = matrix_kh.shape[1], widths
    for a in range(0, many, _VECTORS * lanes):
        old = before_at + a
        _add_many(out, at + a, before, old, matrix_kh, a, h, columns, values, first, end)
    for a in range(many, ones, lanes):
        old = before_at + a
        _add_one(out, at + a, before, old, matrix_kh, a, h, columns, values, first, end)
    for a in range(ones, h):
        total = before[before_at // h, a]
        for entry in range(first, end):
            total += values[entry] * matrix_kh[columns[entry], a]
        out[at // h, a] = total


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

    Both are contiguous, and of the type of the values. Entries are added in the order that they
    have in their row. Large matrices are gone through block by block, which is as fast as it can
    be where the columns of a row are in order.
    """
    (k, h), n_bytes = matrix_kh.shape, matrix_kh.size * matrix_kh.itemsize
    n_blocks = 1 if n_bytes <= MOST_BYTES else -(-n_bytes // BLOCK_BYTES)
    begins, widths = indptr[start:stop].copy(), row_widths(matrix_kh)
    zeros = np.zeros((1, h), matrix_kh.dtype)
    for block in range(n_blocks):
        limit = k * (block + 1) // n_blocks
        before = zeros if block == 0 else out_nh
        for n in range(start, stop):
            first, end, at = begins[n - start], indptr[n + 1], n * h
            if block + 1 < n_blocks:
                end = _first_from(limit, indices, first, end)
                begins[n - start] = end
            old = 0 if block == 0 else at
            add_row_products(
                out_nh, at, before, old, matrix_kh, indices, values, first, end, widths
            )


@part()
def _first_from(limit: int, indices: np.ndarray, first: int, end: int) -> Any:
    """The first entry of a span whose column is not below the limit; else the end."""
    # Indices that may be negative take longer, here and below.
    entry, last = np.uintp(first), np.uintp(end)
    while entry < last and indices[entry] < limit:
        entry += np.uintp(1)
    return np.int64(entry)


@compiled()
def transpose(
    columns: tuple[int, int],
    csr: tuple[np.ndarray, np.ndarray, np.ndarray],
    are_sorted: bool,
    transposed: tuple[np.ndarray, np.ndarray, np.ndarray],
) -> None:
    """Sort entries by column, those of a column in the order of the rows.

    Parameters
    ----------
    columns
        First and one after the last of those that are wanted: all, where rows are not sorted.
    csr
        ``indptr``, ``indices`` and values.
    are_sorted
        See :func:`are_sorted`.
    transposed
        ``starts`` (int64, one more than the wanted columns), ``rows`` and values: become what the
        arrays of ``csr`` are, of the transposed matrix. Of the last two, the places that are for
        these columns are filled.
    """
    (a, b), (indptr, indices, values) = columns, csr
    starts, rows, sorted_values = transposed
    begins, ends = indptr[:-1].copy(), indptr[1:].copy()
    total = 0
    if are_sorted:
        for n in range(begins.size):
            row = indices[indptr[n] : indptr[n + 1]]
            ends[n] = begins[n] + np.searchsorted(row, b)
            begins[n] += np.searchsorted(row, a)
            total += begins[n] - indptr[n]
    starts[:] = 0
    next_column = np.uintp(1) - np.uintp(a)
    for n in range(begins.size):
        for entry in range(np.uintp(begins[n]), np.uintp(ends[n])):
            starts[np.uintp(indices[entry]) + next_column] += 1
    # While entries are placed, each column's end is where its next entry goes.
    starts[0] = total
    for k in range(1, starts.size):
        count = starts[k]
        starts[k] = total
        total += count
    step = _COLUMNS if are_sorted else b - a
    for limit in range(a + step, b + step, step):
        for n in range(begins.size):
            i, last = np.uintp(begins[n]), np.uintp(ends[n])
            while i < last and indices[i] < limit:
                column = np.uintp(indices[i]) + next_column
                place = np.uintp(starts[column])
                starts[column] = place + np.uintp(1)
                rows[place] = n
                sorted_values[place] = values[i]
                i += np.uintp(1)
            begins[n] = i


@compiled()
def are_sorted(indptr: np.ndarray, indices: np.ndarray) -> bool:
    """Whether the columns of each row ascend."""
    for n in range(indptr.size - 1):
        row = indices[indptr[n] : indptr[n + 1]]
        n_falls = 0
        for i in range(row.size - 1):
            n_falls += row[i + 1] < row[i]
        if n_falls:
            return False
    return True


@part()
def _row_sum(indptr: np.ndarray, data: np.ndarray, n: int) -> float:
    total = 0.0
    for entry in range(indptr[n], indptr[n + 1]):
        total += data[entry]
    return total


@compiled()
def row_sums(indptr: np.ndarray, data: np.ndarray, sums: np.ndarray) -> None:
    """Fill ``sums`` (float64) with the sum of each row."""
    for n in range(sums.size):
        sums[n] = _row_sum(indptr, data, n)


@compiled()
def log_row_sums(indptr: np.ndarray, data: np.ndarray, logs: np.ndarray) -> None:
    """Fill ``logs`` with the logarithm of the sum of each row."""
    for n in range(logs.size):
        logs[n] = log(_row_sum(indptr, data, n))
