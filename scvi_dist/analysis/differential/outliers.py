"""Cells that lie apart from their population in the latent space are left out of it.

Axis suffixes: ``n`` cells, ``k`` latent.
"""

import warnings
from collections.abc import Iterator

import numpy as np

from scvi_dist.analysis.differential.decode import PosteriorPass
from scvi_dist.analysis.differential.groups import Comparison, Grouping
from scvi_dist.analysis.differential.sample import Executor
from scvi_dist.analysis.passes.cell_pass import Parts
from scvi_dist.analysis.streaming import StoreCells
from scvi_dist.errors import ConfigError
from scvi_dist.module.base import BaseModule


def without_outliers(
    module: BaseModule, cells: StoreCells, grouping: Grouping, run: Executor
) -> Iterator[Grouping]:
    """Each comparison by itself, without the outliers of either side.

    One pass encodes all cells that take part; their latent means stay in memory. The counts of
    outliers are described still, as in scvi-tools.
    """
    taking_part = np.flatnonzero(grouping.codes_n >= 0)
    selection = cells.selection.subset(taking_part)
    those = StoreCells(cells.source, selection, cells.config)
    mean_nk = run(PosteriorPass(), module, those, Parts())["loc"]
    place_n = np.full(len(grouping.codes_n), -1, dtype=np.int64)
    place_n[taking_part] = np.arange(len(taking_part))
    for comparison in grouping.comparisons:
        yield _kept(grouping, comparison, mean_nk, place_n)


def _kept(
    grouping: Grouping, comparison: Comparison, mean_nk: np.ndarray, place_n: np.ndarray
) -> Grouping:
    """Strata by which sides a cell is of (1, 4), and in which it is an outlier (2, 8)."""
    marks_n = np.zeros(len(grouping.codes_n), dtype=np.int64)
    for strata, is_of, is_outlier in ((comparison.first, 1, 2), (comparison.second, 4, 8)):
        rows = grouping.rows(strata)
        marks_n[rows] |= is_of
        marks_n[rows[_outliers(mean_nk[place_n[rows]])]] |= is_outlier
    known = [mark for mark in np.unique(marks_n).tolist() if mark]
    code_of = np.full(16, -1, dtype=np.int32)
    code_of[known] = np.arange(len(known))

    def of(wanted: int, unwanted: int) -> tuple[int, ...]:
        return tuple(int(code_of[mark]) for mark in known if mark & wanted and not mark & unwanted)

    kept = Comparison(
        group1=comparison.group1,
        group2=comparison.group2,
        first=of(1, 2),
        second=of(4, 8),
        counted_first=of(1, 0),
        counted_second=of(4, 0),
    )
    if not kept.first or not kept.second:
        raise ConfigError(
            f"{comparison.group1!r} or {comparison.group2!r} has only outliers: leave "
            "filter_outlier_cells out."
        )
    return Grouping(code_of[marks_n], (kept,), grouping.is_named)


def _outliers(mean_nk: np.ndarray) -> np.ndarray:
    """bool ``[n]``; none where the covariance cannot be estimated."""
    from sklearn.covariance import EllipticEnvelope

    try:
        return EllipticEnvelope(random_state=0).fit_predict(mean_nk.astype(np.float64)) != 1
    except ValueError as error:
        warnings.warn(
            f"no outliers are left out of a population of {len(mean_nk)} cells: its covariance "
            f"in the latent space cannot be estimated ({error}).",
            UserWarning,
            stacklevel=2,
        )
        return np.zeros(len(mean_nk), dtype=bool)
