"""Compiled loops over CSR rows. They release the GIL; compiled code is kept on disk.

Axis suffixes: ``n`` cells, ``g`` genes.
"""

import numpy as np

from scvi_dist.kernels.code_cache import cached_njit

_PIECE_GENES = 1024


@cached_njit(nogil=True)
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
            start, stop, place = indptr[row], indptr[row + 1], out_indptr[k]
            # Loops over slices from 0 on become vector instructions; with an offset they do not.
            genes, values = indices[start:stop], data[start:stop]
            out_genes = out_indices[place : place + stop - start]
            out_values = out_data[place : place + stop - start]
            for entry in range(len(genes)):
                out_genes[entry] = genes[entry]
            for entry in range(len(values)):
                out_values[entry] = values[entry]


@cached_njit(nogil=True)
def scatter_rows(
    indptr: np.ndarray, indices: np.ndarray, data: np.ndarray, out_ng: np.ndarray
) -> None:
    """Fill a dense array with CSR rows; what it held before does not matter."""
    n_genes = out_ng.shape[1]
    for row in range(len(indptr) - 1):
        out_g = out_ng[row]
        entry, stop = indptr[row], indptr[row + 1]
        # Zeros are still in the nearest cache when counts are written over some of them. A gene
        # that is out of order waits for its piece, or comes after it: every one finds its zero.
        for first in range(0, n_genes, _PIECE_GENES):
            last = min(first + _PIECE_GENES, n_genes)
            out_g[first:last] = 0
            while entry < stop and indices[entry] < last:
                out_g[indices[entry]] = data[entry]
                entry += 1
