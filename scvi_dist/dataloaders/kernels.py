"""Compiled loops over CSR rows. They release the GIL; compiled code is kept on disk.

Axis suffixes: ``n`` cells, ``g`` genes.
"""

import numpy as np
from numba import njit


@njit(nogil=True, cache=True)
def gather_rows(
    indptr: np.ndarray,
    indices: np.ndarray,
    data: np.ndarray,
    first: int,
    pick: np.ndarray,
    out_indptr: np.ndarray,
    out_indices: np.ndarray,
    out_data: np.ndarray,
) -> None:
    """Copy those picked rows that lie in this part to their places in the output.

    The part holds the rows ``first … first + n - 1``; others are left to other parts.
    """
    last = first + len(indptr) - 1
    for k in range(len(pick)):
        if first <= pick[k] < last:
            row = pick[k] - first
            shift = out_indptr[k] - indptr[row]
            for entry in range(indptr[row], indptr[row + 1]):
                out_indices[entry + shift] = indices[entry]
                out_data[entry + shift] = data[entry]


@njit(nogil=True, cache=True)
def scatter_rows(
    indptr: np.ndarray, indices: np.ndarray, data: np.ndarray, out_ng: np.ndarray
) -> None:
    """Write CSR rows into a dense array of zeros."""
    for row in range(len(indptr) - 1):
        for entry in range(indptr[row], indptr[row + 1]):
            out_ng[row, indices[entry]] = data[entry]
