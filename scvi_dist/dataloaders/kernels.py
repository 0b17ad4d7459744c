"""Loops over CSR rows, compiled. They release the GIL; compiled code is kept on disk.

Axis suffixes: ``n`` cells, ``g`` genes.
"""

from collections.abc import Sequence

import numpy as np

from scvi_dist.batch import CsrRows
from scvi_dist.data.big_arrays import new_array
from scvi_dist.kernels.code_cache import cached_njit

_PIECE_GENES = 1024


def gather_parts(
    parts: Sequence[CsrRows],
    starts: np.ndarray,
    ends: np.ndarray,
    n_entries: int,
    types: tuple[np.dtype, np.dtype],
) -> CsrRows:
    """Rows of some parts in arrays of their own, their indices and values of these types.

    Row ``k`` begins at the entry ``starts[k]`` of all parts' one after the other, and has
    ``ends[k + 1] - ends[k]`` of the ``n_entries``.
    """
    indptr = np.empty(len(ends), np.int64)
    indices, data = new_array(n_entries, types[0]), new_array(n_entries, types[1])
    first = 0
    for part in parts:
        gather_rows(part.indices, part.data, first, starts, ends, indptr, indices, data)
        first += len(part.indices)
    return CsrRows(indptr, indices, data, parts[0].n_genes)


@cached_njit(nogil=True)
def gather_rows(
    indices: np.ndarray,
    data: np.ndarray,
    first: int,
    starts: np.ndarray,
    ends: np.ndarray,
    out_indptr: np.ndarray,
    out_indices: np.ndarray,
    out_data: np.ndarray,
) -> None:
    """Copy those rows that lie in this part to their places in the output.

    The part holds the entries from ``first`` on; rows that begin in others are left to them.
    """
    for k in range(len(ends)):
        out_indptr[k] = ends[k] - ends[0]
    for k in range(len(starts)):
        start = starts[k] - first
        if 0 <= start < len(indices):
            place, stop = out_indptr[k], out_indptr[k + 1]
            # Loops over slices from 0 on become vector instructions; with an offset they do not.
            genes = indices[start : start + stop - place]
            values = data[start : start + stop - place]
            out_genes, out_values = out_indices[place:stop], out_data[place:stop]
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
