"""Whether rows of a matrix hold counts: one compiled pass that copies nothing."""

import numpy as np

from scvi_dist.kernels.compiled import compiled


@compiled()
def rows_are_counts(indptr: np.ndarray, data: np.ndarray, rows: np.ndarray) -> bool:
    """Whether each of some CSR rows has a count, and nothing that is none.

    Counts are finite whole numbers from 0 on.
    """
    for row in rows:
        values = data[indptr[row] : indptr[row + 1]]
        # Without a way out, so that it becomes vector instructions.
        is_fine, has_count = True, False
        for k in range(len(values)):
            value = values[k]
            # NaN fails every comparison, so that it never passes for clean.
            is_fine &= (value >= 0) & (value < np.inf) & (np.floor(value) == value)
            has_count |= value > 0
        if not (is_fine and has_count):
            return False
    return True
