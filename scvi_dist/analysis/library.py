"""Library sizes of each batch: the prior of a latent library size.

Axis suffixes: ``n`` cells, ``b`` batches.
"""

import warnings

import numpy as np

from scvi_dist.analysis.streaming import StoreCells
from scvi_dist.batch import REGISTRY_KEYS, CsrRows


def library_size_moments(cells: StoreCells, n_batch: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean and population variance of the log library sizes of each batch, in one pass.

    An empty cell counts with a log library size of 0, as in scvi-tools. A batch without cells
    has mean 0 and variance 1.

    Parameters
    ----------
    cells
        The cells to look at.
    n_batch
        Batches.

    Returns
    -------
    float32 ``[1, b]`` each.

    Warns
    -----
    UserWarning
        Cells are empty.
    """
    totals = np.zeros((3, n_batch))
    n_empty = 0
    for block in cells.blocks():
        batch_n = block.fields[REGISTRY_KEYS.BATCH_KEY][:, 0]
        library_n = _library_sizes(block.counts)
        n_empty += int((library_n <= 0).sum())
        log_n = np.log(np.where(library_n > 0, library_n, 1.0))
        for power in range(3):
            totals[power] += np.bincount(batch_n, log_n**power, minlength=n_batch)
    if n_empty:
        warnings.warn(
            f"{cells.source.where}: {n_empty} of {cells.n_cells} cells are empty; they pull the "
            "prior of the library size down. Leave them out.",
            UserWarning,
            stacklevel=2,
        )
    count_b, sum_b, squares_b = totals
    mean_b = sum_b / np.maximum(count_b, 1)
    variance_b = squares_b / np.maximum(count_b, 1) - mean_b**2
    variance_b = np.where(count_b > 0, np.maximum(variance_b, 0), 1.0)
    return mean_b[None].astype(np.float32), variance_b[None].astype(np.float32)


def _library_sizes(counts: CsrRows) -> np.ndarray:
    cell = np.repeat(np.arange(counts.n_cells), np.diff(counts.indptr))
    return np.bincount(cell, counts.data.astype(np.float64), minlength=counts.n_cells)
