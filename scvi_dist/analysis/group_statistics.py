"""Statistics of the counts of groups of cells, as a table.

Axis suffixes: ``n`` cells, ``s`` groups, ``f`` features: genes, then proteins.
"""

from collections.abc import Callable, Hashable
from typing import Any

import numpy as np
import pandas as pd

from scvi_dist.analysis.differential.groups import read_groups
from scvi_dist.analysis.passes.cell_pass import Parts, run_here
from scvi_dist.analysis.raw_statistics import GroupStatistics, RawStatisticsPass
from scvi_dist.analysis.streaming import StoreCells
from scvi_dist.data.open import open_store
from scvi_dist.data.schema import SetupArgs, fit_schema
from scvi_dist.dataloaders.source import OpenSource

ALL_CELLS = "all"
"""Name of the only group where no column is named."""


def group_statistics(
    cells: Any,
    groupby: str | None = None,
    *,
    layer: str | None = None,
    run: Callable[..., dict[str, np.ndarray]] = run_here,
) -> pd.DataFrame:
    """Mean, variance, non-zeros and normalised mean of the counts of each feature in each group.

    One pass for all groups, in memory that does not grow with the cells, summed in float64.

    Parameters
    ----------
    cells
        A store, its path or URL, an AnnData; or cells that are being read already, whose genes are
        then those of their schema.
    groupby
        Column of obs; all cells are one group where None. Cells without a value are in no group.
    layer
        Layer of the counts; X where None.
    run
        Runs the pass; in this thread by default.

    Returns
    -------
    DataFrame with a row for each feature of each group that has cells, indexed by ``group`` and
    ``feature``: ``cells``, ``mean``, ``variance`` (divided by ``n - 1``), ``nonzeros`` (share of
    the cells), ``normalised_mean`` (of counts scaled to 10,000 a cell; NaN for proteins).
    """
    there = cells if isinstance(cells, StoreCells) else _opened(cells, layer)
    if groupby is None:
        codes_n = np.zeros(there.source.store.n_obs, dtype=np.int64)
        names: list[Hashable] = [ALL_CELLS]
    else:
        codes_n, names = read_groups(there.source.store, groupby)
    codes_n = codes_n[there.selection.rows()]
    known = GroupStatistics.of(run(RawStatisticsPass(codes_n, len(names)), None, there, Parts()))
    schema = there.source.schema
    present = np.flatnonzero(known.cells_s)
    features = [*schema.var_names, *(f"{name}_protein" for name in schema.protein_names)]
    index = pd.MultiIndex.from_product(
        [pd.Index([names[s] for s in present]), features], names=["group", "feature"]
    )
    values = {
        "mean": (known.mean_sg, known.protein_mean_sp),
        "variance": (known.variance_sg, known.protein_variance_sp),
        "nonzeros": (known.nonzeros_sg, known.protein_nonzeros_sp),
        "normalised_mean": (
            known.normalised_mean_sg,
            np.full_like(known.protein_mean_sp, np.nan),
        ),
    }
    columns = {name: np.hstack(both)[present].ravel() for name, both in values.items()}
    n_cells = np.repeat(known.cells_s[present].astype(np.int64), len(features))
    return pd.DataFrame({"cells": n_cells, **columns}, index=index)


def _opened(cells: Any, layer: str | None) -> StoreCells:
    store = open_store(cells, layer=layer) if layer is not None else open_store(cells)
    return StoreCells(OpenSource(store, fit_schema(store, SetupArgs())))
