"""Compiled products of small dense matrices: done before a matrix library has begun.

Axis suffixes: ``n`` rows, ``k`` columns that are summed over, ``h`` units.
"""

from typing import Any

import numpy as np

from scvi_dist.kernels.compiled import SUMS, compiled, part
from scvi_dist.kernels.sparse_rows import add_row_products, row_widths


@part(SUMS)
def dot(x: np.ndarray, y: np.ndarray) -> Any:
    """The scalar product."""
    total = x.dtype.type(0.0)
    for i in range(x.size):
        total += x[i] * y[i]
    return total


@part()
def multiply_dense(x_nk: np.ndarray, matrix_kh: np.ndarray, out_nh: np.ndarray) -> None:
    """Fill ``out_nh`` with ``x_nk @ matrix_kh``; all are contiguous."""
    (n_rows, n_columns), h = x_nk.shape, matrix_kh.shape[1]
    columns, zeros = np.arange(n_columns), np.zeros((1, h), out_nh.dtype)
    widths = row_widths(matrix_kh)
    for n in range(n_rows):
        add_row_products(out_nh, n * h, zeros, 0, matrix_kh, columns, x_nk[n], 0, n_columns, widths)


@compiled()
def multiply_few(x_nk: np.ndarray, weight_hk: np.ndarray, units_nh: np.ndarray) -> None:
    """Fill ``units_nh`` with ``x_nk @ weight_hk.T``, of few inputs; all are contiguous."""
    multiply_dense(x_nk, np.ascontiguousarray(weight_hk.T), units_nh)


@compiled()
def multiply_few_slopes(
    gradient_nh: np.ndarray,
    x_nk: np.ndarray,
    weight_hk: np.ndarray,
    by_weight_hk: np.ndarray,
    by_x_nc: np.ndarray,
) -> None:
    """Fill derivatives by the factors of :func:`multiply_few`, from those by the product.

    Parameters
    ----------
    by_weight_hk
        ``[0, 0]`` where it is not wanted.
    by_x_nc
        By the first inputs.
    """
    if by_weight_hk.size:
        by_weight_kh = np.empty((weight_hk.shape[1], weight_hk.shape[0]), weight_hk.dtype)
        multiply_dense(np.ascontiguousarray(x_nk.T), gradient_nh, by_weight_kh)
        by_weight_hk[:] = by_weight_kh.T
    weight_kh = np.ascontiguousarray(weight_hk.T)
    for n in range(len(x_nk)):
        for k in range(by_x_nc.shape[1]):
            by_x_nc[n, k] = dot(gradient_nh[n], weight_kh[k])
