"""Whether the genes of CSR rows can be, and whether they fit in 16 bits: one compiled pass each."""

import numpy as np

from scvi_dist.kernels.code_cache import cached_njit


@cached_njit(nogil=True)
def first_bad_entry(indptr: np.ndarray, indices: np.ndarray, n_genes: int) -> int:
    """The first entry whose gene does not exist or is the one before it in its row; -1: none."""
    for row in range(len(indptr) - 1):
        genes = indices[indptr[row] : indptr[row + 1]]
        # Without a way out, so that it becomes vector instructions; searched again if need be.
        bad = False
        for k in range(len(genes)):
            bad |= (genes[k] < 0) | (genes[k] >= n_genes)
        for k in range(len(genes) - 1):
            bad |= genes[k] == genes[k + 1]
        if bad:
            for k in range(len(genes)):
                outside = genes[k] < 0 or genes[k] >= n_genes
                if outside or (k > 0 and genes[k] == genes[k - 1]):
                    return indptr[row] + k
    return -1


@cached_njit(nogil=True)
def narrowed(values: np.ndarray, out: np.ndarray) -> bool:
    """Copy integers to an array of uint16; False where one of them does not fit."""
    # Without a way out, so that it becomes vector instructions.
    all_bits = values.dtype.type(0)
    for k in range(len(values)):
        all_bits |= values[k]
        out[k] = values[k]
    return 0 <= all_bits <= 0xFFFF
