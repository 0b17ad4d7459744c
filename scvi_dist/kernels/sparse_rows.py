"""Compiled loops that multiply sparse rows with dense ones.

Axis suffixes: ``n`` cells, ``g`` columns of the sparse matrix, ``h`` hidden units.
"""

import numpy as np

from scvi_dist.kernels.compiled import SUMS, compiled, part
from scvi_dist.kernels.math import log1p


@compiled()
def log1p_entries(x: np.ndarray, y: np.ndarray) -> None:
    """Fill ``y`` with ``log(1 + x)``."""
    for i in range(y.size):
        y[i] = log1p(x[i])


@part(SUMS)
def _add_four(total: np.ndarray, rows: tuple[np.ndarray, ...], values: tuple[float, ...]) -> None:
    one, two, three, four = rows
    a, b, c, d = values
    for k in range(total.size):
        total[k] += (a * one[k] + b * two[k]) + (c * three[k] + d * four[k])


@part(SUMS)
def _add_one(total: np.ndarray, row: np.ndarray, value: float) -> None:
    for k in range(total.size):
        total[k] += value * row[k]


@compiled()
def multiply_rows(
    start: int,
    stop: int,
    indptr: np.ndarray,
    indices: np.ndarray,
    values: np.ndarray,
    weight_gh: np.ndarray,
    out_nh: np.ndarray,
) -> None:
    """Add the product of the rows ``start … stop`` with ``weight_gh`` to ``out_nh``."""
    for n in range(start, stop):
        total, entry, end = out_nh[n], indptr[n], indptr[n + 1]
        while entry + 4 <= end:
            i, j, k, m = indices[entry], indices[entry + 1], indices[entry + 2], indices[entry + 3]
            _add_four(
                total,
                (weight_gh[i], weight_gh[j], weight_gh[k], weight_gh[m]),
                (values[entry], values[entry + 1], values[entry + 2], values[entry + 3]),
            )
            entry += 4
        while entry < end:
            _add_one(total, weight_gh[indices[entry]], values[entry])
            entry += 1


@compiled()
def scatter_rows(
    start: int,
    stop: int,
    indptr: np.ndarray,
    indices: np.ndarray,
    values: np.ndarray,
    slope_nh: np.ndarray,
    gradient_gh: np.ndarray,
) -> None:
    """Add the outer products of rows and slopes to the columns ``start … stop`` of the gradient.

    Columns and not rows: then threads never write to the same place, and each place is added to
    in the order of the rows, however many threads there are.
    """
    for n in range(len(indptr) - 1):
        slope = slope_nh[n, start:stop]
        for entry in range(indptr[n], indptr[n + 1]):
            _add_one(gradient_gh[indices[entry], start:stop], slope, values[entry])


@compiled()
def row_sums(indptr: np.ndarray, data: np.ndarray, sums: np.ndarray) -> None:
    """Fill ``sums`` (float64) with the sum of each row."""
    for n in range(sums.size):
        total = 0.0
        for entry in range(indptr[n], indptr[n + 1]):
            total += data[entry]
        sums[n] = total
