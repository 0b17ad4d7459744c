"""What a model of marker genes has to know of all cells: one pass, whatever their number.

Axis suffixes: ``n`` cells, ``g`` marker genes.
"""

import warnings
from dataclasses import dataclass

import numpy as np

from scvi_dist.analysis.streaming import StoreCells
from scvi_dist.batch import CsrRows


@dataclass(frozen=True, kw_only=True, slots=True)
class MarkerStatistics:
    """Facts of the counts of marker genes over all cells; shards change none of them."""

    mean_g: np.ndarray
    """float64: mean count of each gene."""
    smallest: float
    """The smallest count of any marker gene in any cell."""
    largest: float
    """The largest one."""

    def basis_means(self, n_basis: int) -> np.ndarray:
        """float32: equally spaced values from the smallest count to the largest."""
        # Between float32 numbers, as counts are: scvi-tools' values bit for bit.
        return np.linspace(np.float32(self.smallest), np.float32(self.largest), n_basis)

    def standardised_means(self) -> np.ndarray:
        """float32 ``[g]``: the means as deviations from their mean, in standard deviations."""
        deviation = self.mean_g.std()
        centred_g = self.mean_g - self.mean_g.mean()
        return (centred_g / (deviation if deviation > 0 else 1.0)).astype(np.float32)


def marker_statistics(
    cells: StoreCells, columns: np.ndarray | None = None, totals_n: np.ndarray | None = None
) -> MarkerStatistics:
    """Statistics of the marker genes, and on the way the total counts of all genes.

    Parameters
    ----------
    cells
        The cells, in the order of the store.
    columns
        int64: which of the genes that are read are markers; all of them where None.
    totals_n
        float64: filled with the sum of each cell's counts over *all* genes that are read.
    """
    sum_g: np.ndarray | None = None
    smallest, largest = np.inf, -np.inf
    for block in cells.blocks():
        if totals_n is not None:
            totals_n[block.positions] = row_totals(block.counts)
        markers = block.counts.to_scipy()
        if columns is not None:
            markers = markers[:, columns]
        block_sum_g = np.asarray(markers.sum(axis=0, dtype=np.float64)).ravel()
        sum_g = block_sum_g if sum_g is None else sum_g + block_sum_g
        smallest = min(smallest, float(markers.min()))
        largest = max(largest, float(markers.max()))
    assert sum_g is not None, "a store has cells"
    return MarkerStatistics(mean_g=sum_g / cells.n_cells, smallest=smallest, largest=largest)


def row_totals(counts: CsrRows) -> np.ndarray:
    """float64 ``[n]``: the sum of each row."""
    cell = np.repeat(np.arange(counts.n_cells), np.diff(counts.indptr))
    return np.bincount(cell, counts.data.astype(np.float64), minlength=counts.n_cells)


def library_totals(cells: StoreCells) -> np.ndarray:
    """float64 ``[n]``: the sum of each cell's counts, in one pass."""
    totals_n = np.empty(cells.n_cells)
    for block in cells.blocks():
        totals_n[block.positions] = row_totals(block.counts)
    return totals_n


def size_factors(totals_n: np.ndarray, where: str, mean_total: float | None = None) -> np.ndarray:
    """float32 ``[n]``: total counts as multiples of their mean, or of a mean given.

    An empty cell counts as one of a single count, since its logarithm is taken.

    Warns
    -----
    UserWarning
        Cells are empty.
    """
    empty = totals_n <= 0
    if empty.any():
        warnings.warn(
            f"{where}: {int(empty.sum())} of {len(totals_n)} cells have no counts (the first is "
            f"row {int(np.flatnonzero(empty)[0])}); nothing is known of their type. Leave them "
            "out.",
            UserWarning,
            stacklevel=2,
        )
    mean = totals_n.mean() if mean_total is None else mean_total
    return (np.where(empty, 1.0, totals_n) / mean).astype(np.float32)
