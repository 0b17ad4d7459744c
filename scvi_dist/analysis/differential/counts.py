"""What counts say of both sides of a comparison, from sums over strata.

Axis suffixes: ``n`` cells, ``f`` features: genes, then proteins, ``s`` strata, ``u`` sides.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from scvi_dist.analysis.differential.decode import DecodeOptions
from scvi_dist.analysis.differential.groups import Comparison, Grouping
from scvi_dist.analysis.differential.table import raw_columns
from scvi_dist.analysis.passes.cell_pass import Partial
from scvi_dist.analysis.raw_statistics import GroupStatistics, united
from scvi_dist.analysis.streaming import StoreCells

Columns = dict[str, Any]


@dataclass(frozen=True, slots=True)
class CountsOfSides:
    """What is known of the counts of both sides of a comparison."""

    known: GroupStatistics
    """Groups: first and second side as they are compared, then as they are described."""

    def means(self, how: DecodeOptions) -> tuple[np.ndarray, np.ndarray]:
        """Mean counts of each side, ``[f]``."""
        both = []
        for side in (0, 1):
            parts = [self.known.mean_sg[side]] * how.genes
            parts += [self.known.protein_mean_sp[side]] * how.proteins
            both.append(np.concatenate(parts))
        return both[0], both[1]

    def columns(self, how: DecodeOptions) -> Columns:
        """Columns of the table."""
        return raw_columns(self.known, 2, 3, genes=how.genes, proteins=how.proteins)


def taking_part(cells: StoreCells, grouping: Grouping) -> tuple[StoreCells, np.ndarray]:
    """The cells that are in some stratum, and the stratum of each."""
    codes_n = grouping.codes_n
    if bool((codes_n >= 0).all()):
        return cells, codes_n
    rows = np.flatnonzero(codes_n >= 0)
    return StoreCells(cells.source, cells.selection.subset(rows), cells.config), codes_n[rows]


def counts_of(sums: Partial, comparison: Comparison, n_strata: int) -> CountsOfSides:
    """From the sums of all strata."""
    sides = (
        comparison.first,
        comparison.second,
        comparison.counted_first or comparison.first,
        comparison.counted_second or comparison.second,
    )
    members_us = np.array([[s in side for s in range(n_strata)] for side in sides])
    return CountsOfSides(GroupStatistics.of(united(sums, members_us)))
